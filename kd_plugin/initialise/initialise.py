"""`kd-plugin init`: from a teacher's weights to a student's checkpoint."""

import io
import json
import os
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from fairseq.data import Dictionary, data_utils

from kd_plugin.checkpoints.build import count_of, freeze
from kd_plugin.checkpoints.describe import check_direction
from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.stock import own_weights, stock_state
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import make_folder
from kd_plugin.files.protection import Named, check_outputs, write_output
from kd_plugin.initialise.data import Corpus, longest_of, nll_of
from kd_plugin.initialise.from_fairseq import open_fairseq
from kd_plugin.initialise.from_huggingface import open_huggingface
from kd_plugin.initialise.layers import chosen_layers, keep_layers
from kd_plugin.initialise.output import factorise_output
from kd_plugin.initialise.positions import keep_positions
from kd_plugin.initialise.sizes import check_sizes
from kd_plugin.initialise.statistics import Statistics, statistics_of
from kd_plugin.initialise.summary import Made, manifest, said
from kd_plugin.initialise.teacher import Teacher
from kd_plugin.initialise.vocabulary import Matched, change_vocabulary, match_symbols
from kd_plugin.initialise.whole import SIDES, Whole, build, untrained
from kd_plugin.initialise.width import Sizes, narrow
from kd_plugin.runners.progress import progress


class Init(NamedTuple):
    """The options of `kd-plugin init`."""

    teacher: str
    output: str
    encoder_layers: Optional[str] = None
    decoder_layers: Optional[str] = None
    embed_dim: Optional[int] = None
    ffn_dim: Optional[int] = None
    heads: Optional[int] = None
    decoder_output_dim: Optional[int] = None
    max_source_positions: Optional[int] = None
    max_target_positions: Optional[int] = None
    dict_dir: Optional[str] = None
    teacher_dict_dir: Optional[str] = None
    approximate_activation: bool = False
    user_dir: Optional[str] = None
    source_lang: Optional[str] = None
    target_lang: Optional[str] = None
    data: Optional[str] = None
    sample_sentences: int = 500
    max_tokens: int = 4000
    seed: int = 1
    subwords: SubwordOptions = SubwordOptions()
    inputs: List[Named] = []


def initialise(args: Init) -> None:
    """Writes the student's checkpoint and its manifest, and prints what became of the teacher's weights.

    Raises:
        KDPluginError: naming the flag or the file; nothing is written
    """
    output = Path(args.output)
    described = manifest_of(output)
    check_languages(args.source_lang, args.target_lang)
    check_outputs(args.inputs, files=[("--output", output), ("--output", described)])
    import_user_code(args.user_dir, FLAG)
    subwords = args.subwords.open()
    teacher = _open_teacher(args)
    whole = teacher.whole
    dictionaries, languages = _student_dictionaries(args, teacher)
    sizes = Sizes(args.embed_dim, args.ffn_dim, args.heads)
    check_sizes(whole, sizes, args.decoder_output_dim)
    flags = {"encoder": args.encoder_layers, "decoder": args.decoder_layers}
    layers = {side: chosen_layers(flags[side], whole.layers(side), f"--{side}-layers") for side in SIDES}
    limits = {"source": args.max_source_positions, "target": args.max_target_positions}
    train, valid = _corpora(args, dictionaries, languages)

    whole = keep_positions(keep_layers(whole, layers), limits)
    matched: Optional[Tuple[Matched, Matched]] = None
    if dictionaries is not None:
        ours = (whole.dictionaries[side] for side in (0, 1))
        pairs = [match_symbols(*each) for each in zip(dictionaries, ours, subwords)]
        matched = pairs[0], pairs[1]
        whole = change_vocabulary(whole, dictionaries, matched)
    statistics = _statistics(args, whole, sizes, train)
    narrowed = narrow(whole, sizes, statistics)
    if args.decoder_output_dim is not None:
        narrowed = factorise_output(narrowed, args.decoder_output_dim)
    model = build(narrowed.whole)
    weights = own_weights(model)
    check_finite(weights, str(output))
    nll = None if valid is None else (nll_of(model, valid), nll_of(_random(narrowed.whole, args.seed), valid))
    made = Made(teacher, layers, matched, narrowed, statistics is not None, count_of(model), nll)

    make_folder(output.parent, "--output")
    buffer = io.BytesIO()
    torch.save(stock_state(narrowed.whole.options, weights, languages, teacher.task, teacher.smoothing), buffer)
    content = json.dumps(manifest(made), indent=1, ensure_ascii=False).encode() + b"\n"
    write_output(described, content, "--output", lambda path: False)
    try:
        write_output(output, buffer.getvalue(), "--output", lambda path: False)
    except BaseException:
        described.unlink()
        raise
    print("\n".join(said(made, output)))


def manifest_of(output: Path) -> Path:
    """The manifest beside a checkpoint: student.pt → student.init.json."""
    return output.with_name(f"{output.name[: -len('.pt')] if output.suffix == '.pt' else output.name}.init.json")


def _open_teacher(args: Init) -> Teacher:
    if not is_huggingface(args.teacher):
        if args.approximate_activation:
            raise KDPluginError("--approximate-activation: is for Hugging Face folders. Remedy: leave it out")
        return open_fairseq(args.teacher, args.teacher_dict_dir, args.source_lang, args.target_lang)
    for flag, value in ((FLAG, args.user_dir), ("--teacher-dict-dir", args.teacher_dict_dir)):
        if value:
            raise KDPluginError(
                f"{flag}: is for fairseq checkpoints, and {args.teacher} is not one. Remedy: leave it out"
            )
    if args.dict_dir is None and args.data is None:
        raise KDPluginError(
            f"{args.teacher}: a Hugging Face folder has no dictionary for fairseq. Remedy: --dict-dir with the "
            "student's, which kd-plugin vocabulary makes of the folder's pieces"
        )
    return open_huggingface(args.teacher, args.approximate_activation)


def _student_dictionaries(
    args: Init, teacher: Teacher
) -> Tuple[Optional[Tuple[Dictionary, Dictionary]], Optional[List[str]]]:
    """The student's dictionaries (None: the teacher's) and languages (None: unknown)."""
    folder = args.dict_dir or args.data
    inferred = data_utils.infer_language_pair(folder) if folder and os.path.isdir(folder) else (None, None)
    known = teacher.languages or (None, None)
    given = (args.source_lang, args.target_lang)
    source, target = (own or found or of for own, found, of in zip(given, inferred, known))
    languages = [source, target] if source and target else None
    if teacher.languages is not None and languages is not None:
        check_direction(teacher.path, teacher.languages, languages)
    if folder is None:
        if teacher.changes_dictionaries:
            raise KDPluginError(
                f"{teacher.path}: its own task changes the dictionaries of its files. Remedy: --dict-dir with the "
                "student's"
            )
        return None, languages
    found = _dictionaries_in(folder, "--dict-dir" if args.dict_dir else "--data", source, target)
    if args.dict_dir and args.data:
        for ours, theirs in zip(found, _dictionaries_in(args.data, "--data", source, target)):
            if ours.symbols != theirs.symbols:
                raise KDPluginError(
                    f"--data {args.data}: was binarised with other dictionaries than --dict-dir {args.dict_dir}. "
                    "Remedy: leave out --dict-dir, or binarise the data with its dictionaries"
                )
    return found, languages


def _dictionaries_in(
    folder: str, flag: str, source: Optional[str], target: Optional[str]
) -> Tuple[Dictionary, Dictionary]:
    found = []
    for side, language in (("source", source), ("target", target)):
        names = [f"dict.{language}.txt", "dict.txt"] if language else ["dict.txt"]
        path = next(filter(os.path.isfile, (os.path.join(folder, name) for name in names)), None)
        if path is None:
            unknown = "" if language else f"; the {side} language is unknown: --{side}-lang"
            raise KDPluginError(
                f"{flag} {folder}: has no {' or '.join(names)}{unknown}. Remedy: the folder with the student's "
                "dictionaries, as fairseq-preprocess or kd-plugin vocabulary writes them"
            )
        found.append(load_dictionary(path))
    return found[0], found[1]


def _corpora(
    args: Init, dictionaries: Optional[Tuple[Dictionary, Dictionary]], languages: Optional[List[str]]
) -> Tuple[Optional[Corpus], Optional[Corpus]]:
    """--data's train (None: without it, or not wanted) and valid."""
    if args.data is None or dictionaries is None:
        return None, None
    if languages is None:
        raise KDPluginError(
            f"--data {args.data}: its languages are not in its file names. Remedy: --source-lang and --target-lang"
        )
    valid = Corpus(args.data, "valid", languages, dictionaries, args.max_tokens)
    if not args.sample_sentences:
        return None, valid
    return Corpus(args.data, "train", languages, dictionaries, args.max_tokens), valid


def _statistics(args: Init, whole: Whole, sizes: Sizes, train: Optional[Corpus]) -> Optional[Statistics]:
    if train is None or not any(sizes):
        return None
    model = build(whole)
    batches = train.batches(longest_of(model), args.sample_sentences)
    return statistics_of(model, progress(batches, None, "sample text", "batch"))


def _random(whole: Whole, seed: int) -> Any:
    """The same model, as fairseq-train begins without a teacher."""
    torch.manual_seed(seed)
    model = untrained(whole.options, whole.dictionaries)
    freeze(model)
    return model
