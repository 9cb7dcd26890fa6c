"""What became of a teacher's weights: printed, and written into the manifest beside the student."""

import shlex
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from kd_plugin.initialise.teacher import Teacher
from kd_plugin.initialise.vocabulary import Matched
from kd_plugin.initialise.whole import SIDES, Whole
from kd_plugin.initialise.width import Narrowed
from kd_plugin.version import __version__

# the options that determine a model's shape and its answers, as flags of fairseq-train; others concern its training
FLAGS = [
    *(
        f"{side}_{name}"
        for side in SIDES
        for name in "layers embed_dim ffn_embed_dim attention_heads normalize_before learned_pos".split()
    ),
    *"decoder_output_dim share_decoder_input_output_embed share_all_embeddings layernorm_embedding".split(),
    *"no_scale_embedding no_token_positional_embeddings no_decoder_final_norm activation_fn".split(),
    *"max_source_positions max_target_positions".split(),
]
DEFAULTS = {"activation_fn": "relu", "max_source_positions": 1024, "max_target_positions": 1024}


class Made(NamedTuple):
    """A student.

    Args:
        layers: the teacher's layers that each side keeps
        matched: its symbols, source and target; None: the teacher's
        sampled: whether sample text was looked at
        nll: on the validation set, of the student and of random weights, bits per token; None: without data
    """

    teacher: Teacher
    layers: Dict[str, List[int]]
    matched: Optional[Tuple[Matched, Matched]]
    narrowed: Narrowed
    sampled: bool
    parameters: int
    nll: Optional[Tuple[float, float]]


def training_flags(whole: Whole) -> List[str]:
    """The flags with which fairseq-train builds this model."""
    flags = ["--arch", "transformer"]
    for name in FLAGS:
        value = whole.options.get(name)
        if name == "decoder_output_dim" and value == whole.dim("decoder"):
            continue
        if value is None or value is False or value == DEFAULTS.get(name):
            continue
        flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return flags


def manifest(made: Made) -> Dict[str, Any]:
    """The content of STUDENT.init.json."""
    teacher, narrowed = made.teacher, made.narrowed
    described: Dict[str, Any] = {
        "format": "kd_plugin student from a teacher",
        "version": 1,
        "kd_plugin": __version__,
        "teacher": {
            "path": teacher.path,
            "sha256": teacher.sha256,
            "what": teacher.what,
            "parameters": teacher.parameters,
            "copy_differs_by": teacher.difference,
        },
        "parameters": made.parameters,
        "fairseq_train": training_flags(narrowed.whole),
        "layers": made.layers,
        "kept_energy": {side: basis.kept for side, basis in narrowed.bases.items()},
        "ranks": {side: list(basis.map.shape) for side, basis in narrowed.bases.items()},
        "heads": narrowed.heads,
        "units": narrowed.units,
        "sample_text": made.sampled,
        "errors": narrowed.errors,
    }
    if made.matched is not None:
        described["symbols"] = {
            side: {"copied": one.copied, "averaged": one.averaged, "unknown": one.unknown}
            for side, one in zip(("source", "target"), made.matched)
        }
    if made.nll is not None:
        described["valid_nll"] = {"student": made.nll[0], "random": made.nll[1]}
    return described


def said(made: Made, output: Path) -> List[str]:
    """The lines to print."""
    teacher, whole = made.teacher, made.narrowed.whole
    lines = [
        f"teacher {teacher.path}: {teacher.what}, {teacher.parameters:,} parameters; a full copy's logits differ by "
        f"{teacher.difference:.1g} of the largest"
    ]
    lines += [f"note: {note}" for note in teacher.notes]
    for side in SIDES:
        kept, number = made.layers[side], teacher.whole.layers(side)
        which = "all" if kept == list(range(number)) else ", ".join(map(str, kept))
        lines.append(f"{side} layers: {which} of {number}")
    if made.matched is not None:
        lines += [_symbols(side, one) for side, one in zip(("source", "target"), made.matched)]
    lines += _sizes(made)
    if made.nll is not None:
        lines.append(f"valid nll before training, bits per token: {made.nll[0]:.3f}; random weights: {made.nll[1]:.3f}")
    flags = " ".join(map(shlex.quote, training_flags(whole)))
    return [
        *lines,
        f"{output}: {made.parameters:,} parameters. Train it with --finetune-from-model {shlex.quote(str(output))} and",
        f"  {flags}",
    ]


def _symbols(side: str, matched: Matched) -> str:
    parts = [f"{matched.copied:,} of {len(matched.rows) - 4:,} copied"]
    if matched.averaged:
        number = sum(map(len, matched.averaged.values())) / len(matched.averaged)
        parts.append(f"{len(matched.averaged):,} averaged, of {number:.1f} parts each")
    if matched.unknown:
        parts.append(f"{len(matched.unknown):,} unknown to the teacher, as its <unk>: {_some(matched.unknown)}")
    return f"{side} symbols: {'; '.join(parts)}"


def _sizes(made: Made) -> List[str]:
    narrowed, before = made.narrowed, made.teacher.whole
    by = "on sample text" if made.sampled else "by their weights"
    lines = []
    for side, basis in narrowed.bases.items():
        if not basis.is_whole:
            lines.append(
                f"{side} width: {before.dim(side)} → {narrowed.whole.dim(side)}, with {basis.kept:.1%} of the energy"
            )
        if narrowed.whole.heads(side) < before.heads(side):
            lines.append(f"{side} heads: {narrowed.whole.heads(side)} of {before.heads(side)}, the strongest {by}")
        if narrowed.whole.units(side) < before.units(side):
            lines.append(f"{side} units: {narrowed.whole.units(side)} of {before.units(side)}, the strongest {by}")
    for what, found in _kinds(narrowed.errors).items():
        name = max(found, key=lambda name: found[name])
        mean = sum(found.values()) / len(found)
        largest = f", the largest {found[name]:.3f} in {name}" if len(found) > 1 else ""
        lines.append(f"{what} reconstructed with a relative error of {mean:.3f}{largest}")
    return lines


def _kinds(errors: Dict[str, float]) -> Dict[str, Dict[str, float]]:
    kinds: Dict[str, Dict[str, float]] = {}
    for name, error in errors.items():
        kind = "output projection" if "output_projection" in name else "embeddings"
        if "norm" in name:
            kind = "layer norms"
        elif name.endswith("_attn"):
            kind = "attention heads"
        kinds.setdefault(kind, {})[name] = error
    return kinds


def _some(symbols: List[str]) -> str:
    return " ".join(symbols[:5]) + (" …" if len(symbols) > 5 else "")
