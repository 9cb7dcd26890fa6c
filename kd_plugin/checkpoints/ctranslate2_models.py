"""Converts a fairseq checkpoint to a CTranslate2 model: with the plugin's safe reader and CTranslate2's own code."""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Optional

from fairseq.models import MODEL_REGISTRY

from kd_plugin.checkpoints.converter_reads import Reads
from kd_plugin.checkpoints.exported import DESCRIPTION, description_of
from kd_plugin.checkpoints.open import Checkpoint
from kd_plugin.checkpoints.stock import flat_options
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import temporary_beside, write_json
from kd_plugin.files.json_text import parse_json

INSTALL = "pip install 'kd-plugin[export]'"
# what CTranslate2's converters raise for models that they cannot convert
CANNOT = (AttributeError, KeyError, NotImplementedError, RuntimeError, ValueError)
MODELS = ("transformer", "transformer_align")
# options of fairseq's transformers that CTranslate2's converter ignores, or fails on without naming them
UNKNOWN_TO_CTRANSLATE2 = (
    "adaptive_softmax_cutoff",
    "base_layers",
    "cross_self_attention",
    "no_cross_attention",
    "no_decoder_final_norm",
    "no_token_positional_embeddings",
    "quant_noise_scalar",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)
MUST_BE_EQUAL = (
    ("encoder_normalize_before", "decoder_normalize_before"),
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("decoder_output_dim", "decoder_embed_dim"),
)


def convert(
    checkpoint: Checkpoint,
    folder: Path,
    quantization: str = "float32",
    vocabulary_map: Optional[Path] = None,
    max_positions: Optional[int] = None,
) -> Path:
    """Writes a checkpoint as a CTranslate2 model.

    Args:
        folder: of the model; appears complete or not at all. If two processes write it at the same time, the second one
            keeps the first one's result
        quantization: of the stored weights, by CTranslate2's names
        vocabulary_map: a file in CTranslate2's format to copy into the model's folder
        max_positions: keep only this many sinusoidal positions: the longest sentence, with its end, that the model
            will read or write

    Returns:
        `folder`

    Raises:
        KDPluginError: CTranslate2 is not installed or cannot run such a model, or the quantization is unknown
    """
    accepted = quantizations()
    if quantization not in accepted:
        raise KDPluginError(f"--quantization {quantization}: unknown to CTranslate2. Remedy: {', '.join(accepted)}")
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise KDPluginError(f"{folder}: already exists. Remedy: remove it, or name another folder")
    options = _options(checkpoint)
    source_tokens, target_tokens = checkpoint.max_source_tokens, checkpoint.max_target_tokens
    if max_positions is not None:
        _shorten(options, max_positions, checkpoint.path)
        source_tokens, target_tokens = (min(tokens, max_positions - 1) for tokens in (source_tokens, target_tokens))

    limits = {"max_source_tokens": source_tokens, "max_target_tokens": target_tokens}
    description = description_of(checkpoint, "ctranslate2", quantization=quantization, **limits)
    try:
        return write_model(_converter(checkpoint, options), folder, description, quantization, vocabulary_map)
    except KDPluginError:
        raise
    except CANNOT as error:
        raise _cannot(checkpoint.path, " ".join(str(error).split())[:300]) from error


def write_model(
    converter: Any,
    folder: Path,
    description: Dict[str, Any],
    quantization: str = "float32",
    vocabulary_map: Optional[Path] = None,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Let one of CTranslate2's converters write a model, as a whole or not at all.

    Args:
        folder: as `convert`'s; errors, too, but for what the converter itself raises (CANNOT)
        description: for the file beside it
        check: of the model in another folder, before it is there
    """
    import ctranslate2

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        vmap = str(vocabulary_map) if vocabulary_map else None
        converter.convert(str(temporary), vmap=vmap, quantization=quantization)
        write_json(temporary / DESCRIPTION, {**description, "ctranslate2": ctranslate2.__version__})
        check(temporary)
        _rename(temporary, folder)
    except OSError as error:
        raise KDPluginError(
            f"{folder}: cannot be written: {error.strerror or error}. Remedy: free some space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _converter(checkpoint: Checkpoint, options: argparse.Namespace) -> Any:
    """CTranslate2's converter for fairseq, except that it takes a model that is already built."""
    from ctranslate2.converters import fairseq
    from ctranslate2.converters.converter import Converter

    class OfModel(Converter):  # type: ignore[misc]
        def _load(self) -> Any:
            model, reads = checkpoint.model, Reads()
            spec = fairseq._get_model_spec(options)
            with reads:
                fairseq.set_transformer_encoder(spec.encoder, model.encoder)
                fairseq.set_transformer_decoder(spec.decoder, model.decoder)
            left_out = reads.left_out(model)
            if left_out:
                more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
                raise _cannot(checkpoint.path, f"CTranslate2's converter ignores {', '.join(left_out[:3])}{more}")
            for side, positions in (
                (spec.encoder, options.max_source_positions),
                (spec.decoder, options.max_target_positions),
            ):
                encodings = side.position_encodings
                encodings.encodings = encodings.encodings[:positions]
            source, target = map(fairseq._get_vocab, checkpoint.dictionaries)
            spec.register_source_vocabulary(source)
            spec.register_target_vocabulary(target)
            spec.config.decoder_start_token = spec.config.eos_token
            spec.config.add_source_eos = True
            return spec

    return OfModel()


def vocabulary(folder: Path, side: str) -> FrozenSet[str]:
    """The symbols in a CTranslate2 model's vocabulary. side: source or target"""
    for name in (f"{side}_vocabulary", "shared_vocabulary"):
        for path in (folder / f"{name}.json", folder / f"{name}.txt"):
            if path.is_file():
                try:
                    text = path.read_text(encoding="utf-8")
                    return frozenset(parse_json(text) if path.suffix == ".json" else text.split("\n"))
                except (OSError, TypeError, ValueError) as error:
                    raise KDPluginError(
                        f"{path}: not a CTranslate2 vocabulary ({error}). Remedy: export again"
                    ) from error
    raise KDPluginError(f"{folder}: contains no {side} vocabulary. Remedy: the whole exported folder")


def _rename(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / "model.bin").is_file():  # otherwise another process was faster
            raise


def _options(checkpoint: Checkpoint) -> argparse.Namespace:
    """All flags that CTranslate2's converter needs, taken from the model as built by fairseq."""
    model = checkpoint.model
    name = next((name for name in MODELS if type(model) is MODEL_REGISTRY[name]), None)
    if name is None:
        raise _cannot(checkpoint.path, f"it is a {type(model).__name__}; CTranslate2 supports {' and '.join(MODELS)}")
    flat = flat_options(model.cfg)
    for option in UNKNOWN_TO_CTRANSLATE2:
        if flat.get(option):
            raise _cannot(checkpoint.path, f"CTranslate2 does not support --{option.replace('_', '-')}")
    for one, other in MUST_BE_EQUAL:
        if flat[one] != flat[other]:
            raise _cannot(checkpoint.path, f"--{one} {flat[one]} and --{other} {flat[other]} differ".replace("_", "-"))
    for dictionary, path in zip(checkpoint.dictionaries, checkpoint.dictionary_paths):
        if len(set(dictionary.symbols)) != len(dictionary):
            raise _cannot(checkpoint.path, f"{path} contains a symbol twice (#fairseq:overwrite)")
    if name == "transformer_align":  # fairseq allows a layer that does not exist, but CTranslate2 crashes
        flat["alignment_layer"] = min(int(flat.get("alignment_layer") or 0), int(flat["decoder_layers"]) - 1)
    return argparse.Namespace(**{**flat, "arch": name, "_name": name, "task": "translation"})


def _shorten(options: argparse.Namespace, max_positions: int, path: str) -> None:
    if options.encoder_learned_pos or options.decoder_learned_pos:
        raise _cannot(path, "--max-positions does not work with learned positions")
    if not 2 <= max_positions <= min(options.max_source_positions, options.max_target_positions):
        raise _cannot(path, f"--max-positions {max_positions} must be between 2 and {options.max_source_positions}")
    options.max_source_positions = options.max_target_positions = max_positions


def _cannot(path: str, reason: str) -> KDPluginError:
    return KDPluginError(
        f"{path}: cannot be converted to CTranslate2: {reason}. Remedy: a plain transformer, such as the plugin's "
        "students, or the formats fairseq and safetensors, and fairseq's own decoder"
    )


def _ctranslate2() -> Any:
    try:
        import ctranslate2
    except ImportError as error:
        raise KDPluginError(f"CTranslate2 cannot be imported ({error}). Remedy: {INSTALL}") from error
    return ctranslate2


def check_installed() -> None:
    """Refuses to go on without CTranslate2."""
    _ctranslate2()


def quantizations() -> List[str]:
    """CTranslate2's names for types of stored weights."""
    _ctranslate2()
    from ctranslate2.specs.model_spec import ACCEPTED_MODEL_TYPES

    return sorted(ACCEPTED_MODEL_TYPES)


def open_translator(
    folder: Path, device: str = "cpu", compute_type: str = "default", threads: int = 0, device_index: int = 0
) -> Any:
    """Opens a converted model as a ctranslate2.Translator.

    Args:
        compute_type: "default" computes in the type of the stored weights if the device supports it
        threads: per batch; 0: CTranslate2's choice
        device_index: which of several GPUs

    Raises:
        KDPluginError: CTranslate2 is not installed, or cannot run the model on this device
    """
    ctranslate2 = _ctranslate2()
    try:
        return ctranslate2.Translator(
            str(folder),
            device=device,
            device_index=device_index,
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=threads,
        )
    except (RuntimeError, ValueError) as error:
        raise KDPluginError(
            f"{folder}: CTranslate2 cannot run it on {device} with {compute_type} ({str(error).strip()}). Remedy: a "
            "folder of kd-plugin export --format ctranslate2, and types that the device supports"
        ) from error
