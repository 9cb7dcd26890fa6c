"""Exports a trained model for CTranslate2, stock fairseq, safetensors or ONNX Runtime."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import torch

from kd_plugin.checkpoints.ctranslate2_models import convert
from kd_plugin.checkpoints.exported import DESCRIPTION, description_of, read_description
from kd_plugin.checkpoints.finite import check_range
from kd_plugin.checkpoints.open import Checkpoint, open_checkpoint
from kd_plugin.checkpoints.stock import write_stock_checkpoint
from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import Marks, check_text
from kd_plugin.corpus.translations import Translations
from kd_plugin.decoding.base import Tokens
from kd_plugin.errors import KDPluginError
from kd_plugin.export.check import CHECKPOINT, SEARCH, check_sentences, compare
from kd_plugin.export.options import ONNX, SUBWORDS, Export, check_flags
from kd_plugin.export.safetensors_model import write_safetensors
from kd_plugin.export.vocabulary_map import write_vocabulary_map
from kd_plugin.files.atomic import digest_of, make_folder, temporary_beside, write_json
from kd_plugin.files.locks import Claim, lock_beside
from kd_plugin.files.protection import check_outputs
from kd_plugin.runners.progress import progress

VOCABULARY_MAP = "vmap.txt"


def export(args: Export) -> None:
    """Writes the folder, completely or not at all.

    Raises:
        KDPluginError: naming the flag or the file; no folder is left behind
    """
    check_flags(args)
    if args.check and not Path(args.check).is_file():
        raise KDPluginError(f"--check {args.check}: no such file. Remedy: raw text, one sentence per line")
    output = Path(args.output)
    check_outputs(args.inputs, [("--output", args.output)])
    _refuse_existing(output)
    import_user_code(args.user_dir, FLAG)
    make = _prepared_onnx if args.format == ONNX else _prepared
    write, parameters = make(args)
    temporary = temporary_beside(Path(os.path.abspath(output)))
    make_folder(temporary.parent, "--output")
    claim = _claim(Path(os.path.abspath(output)))
    try:
        temporary.mkdir()
        folder = temporary / "export"
        write(folder)
        for path in folder.iterdir():
            path.chmod(0o666 & ~_umask())  # safetensors makes files readable by their owner only
        _refuse_existing(output)
        os.rename(folder, output)
    except OSError as error:
        raise KDPluginError(
            f"--output {output}: {error.strerror or error}. Remedy: free some space, or use another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        claim.finish()
    sizes = [path.stat().st_size for path in output.iterdir()]
    print(f"{output}: {args.format}, {parameters:,} parameters, {sum(sizes):,} bytes in {len(sizes)} files")


def _prepared(args: Export) -> Tuple[Callable[[Path], None], int]:
    """What writes the folder of a translation model, after all checks that need no writing; its parameters."""
    overrides = {} if args.dict_dir is None else {"data": args.dict_dir}
    subwords = args.subwords.open()
    opened = open_checkpoint(args.checkpoint, overrides, args.source_lang, args.target_lang)
    subwords.check(args.checkpoint, *(dictionary.symbols for dictionary in opened.dictionaries))
    sentences = check_sentences(opened, args.check, subwords) if args.check else []
    if args.fp16 or "float16" in (args.quantization or "").split("_"):
        remedy = "without --fp16" if args.fp16 else "--quantization float32 or int8"
        check_range(opened.model, torch.float16, opened.path, remedy)

    def write(folder: Path) -> None:
        (_to_ctranslate2 if args.format == "ctranslate2" else _with_dictionaries)(opened, folder, args)
        digests: Dict[str, Any] = {}
        for side, one in subwords.models().items():
            shutil.copyfile(str(one.path), folder / SUBWORDS[side])
            digests[f"{side}_sentencepiece_sha256".lstrip("_")] = one.sha256
        # the search behind the check's numbers
        search = {name: getattr(SEARCH, name) for name in ("beam", "max_len_a", "max_len_b", "lenpen")}
        description = {**read_description(folder), **digests, "search": search}
        if args.check:
            checks = compare(opened, folder, args, overrides, sentences, subwords.target)
            description.update({name: check._asdict() for name, check in checks.items()})
        write_json(folder / DESCRIPTION, description)

    return write, opened.parameters


def _prepared_onnx(args: Export) -> Tuple[Callable[[Path], None], int]:
    """The same for a model that classifies or tags."""
    from kd_plugin.export.onnx_model import prepared  # the library is an extra

    return prepared(args)


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output) and not (output.is_dir() and not output.is_symlink() and not any(output.iterdir())):
        raise KDPluginError(f"--output {output}: already exists. Remedy: remove it, or name another folder")


def _claim(output: Path) -> Claim:
    """Claims a lock beside the folder, which appears only when it is complete."""
    job = digest_of(str(output))  # any value will do: a killed run leaves nothing unfinished there
    return Claim(lock_beside(output), f"--output {output}", job, lambda begun: _refuse_existing(output))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _to_ctranslate2(opened: Checkpoint, folder: Path, args: Export) -> None:
    vocabulary_map: Optional[Path] = None
    if args.vocabulary_map_from:
        vocabulary_map = folder.with_name(VOCABULARY_MAP)
        symbols = [dictionary.symbols for dictionary in opened.dictionaries]
        pairs = progress(_segmented(opened, args), None, "vocabulary map", "pair")
        number = write_vocabulary_map(vocabulary_map, pairs, *symbols)
        print(f"vocabulary map: from {number:,} sentence pairs, {vocabulary_map.stat().st_size:,} bytes")
    convert(opened, folder, args.quantization or "int8", vocabulary_map, args.max_positions)


def _with_dictionaries(opened: Checkpoint, folder: Path, args: Export) -> None:
    """Writes the formats that keep fairseq's dictionaries: fairseq, safetensors."""
    folder.mkdir()
    if args.format == "fairseq":
        write_stock_checkpoint(opened, folder / CHECKPOINT, args.fp16)
    else:
        write_safetensors(opened, folder, args.fp16)
    _copy_dictionaries(opened, folder)
    write_json(folder / DESCRIPTION, description_of(opened, args.format, dtype="float16" if args.fp16 else "float32"))


def _copy_dictionaries(opened: Checkpoint, folder: Path) -> None:
    # a single joined dictionary is found as dict.txt
    names = ["dict.txt"] if opened.languages is None else [f"dict.{language}.txt" for language in opened.languages]
    for name, dictionary, path in zip(names, opened.dictionaries, opened.dictionary_paths):
        if opened.changes_dictionaries:
            dictionary.save(str(folder / name))
        else:
            shutil.copyfile(path, folder / name)


def _segmented(opened: Checkpoint, args: Export) -> Iterator[Tuple[Tokens, Tokens]]:
    """The symbols of the pairs of --vocabulary-map-from.

    Raises:
        KDPluginError: after the last pair, if most lines are segmented differently
    """
    sides = args.subwords.open()
    marks = Marks(), Marks()
    for pair in _corpus(args):
        for one, text in zip(marks, pair):
            one.add(text)
        yield sides.source.encode(pair[0]), sides.target.encode(pair[1])
    for one, subwords, dictionary in zip(marks, sides, opened.dictionaries):
        check_text(one, subwords.path is not None, dictionary.symbols, "--vocabulary-map-from")


def _corpus(args: Export) -> Iterator[Tuple[str, str]]:
    """The raw pairs of --vocabulary-map-from."""
    flag, names = "--vocabulary-map-from", args.vocabulary_map_from or []
    if len(names) == 1:
        for record in Translations(Path(names[0])).records():
            for hypothesis in record.hypotheses:
                yield record.source, hypothesis.text
        return
    sources, targets = (numbered_lines(Path(name), flag) for name in names)
    for source, target in itertools.zip_longest(sources, targets):
        if source is None or target is None:
            raise KDPluginError(f"{flag}: {names[0]} and {names[1]} differ in number of lines. Remedy: parallel text")
        yield source[1], target[1]
