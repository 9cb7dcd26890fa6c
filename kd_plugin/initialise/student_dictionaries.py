"""Writes a student's dictionaries and sentencepiece models with its teacher's pieces: all, or those a corpus needs."""

import functools
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.checkpoints.tokenizer import Tokenizer
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.pieces import Counts, Pieces, read_pieces
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subwords import JOINT, SubwordOptions
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import make_folder, write_atomically
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.runners.progress import progress

# pip's sentencepiece has no spm_encode
ENCODE = (
    "python -c 'import sys, sentencepiece as s; m = s.SentencePieceProcessor(model_file=sys.argv[1]); "
    '[print(*m.encode(line.rstrip("\\n"), out_type=str)) for line in sys.stdin]\''
)
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq adds them; dictionary files do not list them


class Wanted(NamedTuple):
    """The options of `kd-plugin vocabulary`."""

    teacher: str
    output: str
    source_lang: str
    target_lang: str
    subset: Optional[List[str]]
    coverage: float
    joined_dictionary: bool
    dict_dir: Optional[str]
    user_dir: Optional[str]
    subwords: SubwordOptions
    inputs: List[Named]


class Side(NamedTuple):
    """One language of a teacher: its segmentation, and the index of each symbol in its vocabulary."""

    language: str
    pieces: Pieces
    indices: Dict[str, int]


class Row(NamedTuple):
    """A language's row in the final table. whole, cut: counts of the corpus with all pieces and with those kept"""

    language: str
    teacher: int
    kept: int
    whole: Optional[Counts] = None
    cut: Optional[Counts] = None


def write_vocabulary(wanted: Wanted) -> None:
    """Writes dict.LANG.txt and the sentencepiece models, and prints what the subset changes.

    Raises:
        KDPluginError: naming the flag or the file
    """
    check_languages(wanted.source_lang, wanted.target_lang)
    check_outputs(wanted.inputs, [("--output", wanted.output)])
    folder = Path(wanted.output)
    if folder.is_dir() and any(folder.iterdir()):
        raise KDPluginError(f"--output {folder}: already contains files. Remedy: a new folder")
    files = _corpus(wanted)
    source, target = _sides(wanted)
    one_model = source.pieces.content == target.pieces.content
    if wanted.joined_dictionary and not one_model:
        raise KDPluginError(
            "--joined-dictionary: this teacher has one sentencepiece model per language. Remedy: leave it out"
        )
    if wanted.joined_dictionary:
        every = [*files[0], *files[1]] if files is not None else None
        row, model, text = _cut(source._replace(language="joined"), every, wanted.coverage)
        rows, contents = [row], {"dict.txt": text, "sentencepiece.model": model}
    else:
        rows, contents = [], {}
        for number, side in enumerate((source, target)):
            row, model, text = _cut(side, None if files is None else files[number], wanted.coverage)
            rows.append(row)
            contents[f"dict.{side.language}.txt"] = text
            contents[f"sentencepiece.{side.language}.model"] = model
        if files is None and one_model:
            contents["sentencepiece.model"] = contents.pop(f"sentencepiece.{source.language}.model")
            del contents[f"sentencepiece.{target.language}.model"]
    make_folder(folder, "--output")
    for name, content in contents.items():
        write_atomically(folder / name, content)
    print(_table(rows))
    print(_commands(wanted, folder, contents))


def _corpus(wanted: Wanted) -> Optional[Tuple[List[Path], List[Path]]]:
    """The --subset files of each language, told apart by their endings."""
    if wanted.subset is None:
        return None
    found: Tuple[List[Path], List[Path]] = ([], [])
    endings = [f".{wanted.source_lang}", f".{wanted.target_lang}"]
    for path in map(Path, wanted.subset):
        name = path.name[: -len(".gz")] if path.suffix == ".gz" else path.name
        side = next((number for number, ending in enumerate(endings) if name.endswith(ending)), None)
        if side is None:
            raise KDPluginError(
                f"--subset {path}: its name does not show the language. Remedy: raw text in files that end in "
                f"{endings[0]} and {endings[1]}"
            )
        if not path.is_file():
            raise KDPluginError(f"--subset {path}: no such file. Remedy: raw text, one sentence per line")
        found[side].append(path)
    for ending, files in zip(endings, found):
        if not files:
            raise KDPluginError(f"--subset: no file ends in {ending}. Remedy: raw text of both languages")
    return found


def _sides(wanted: Wanted) -> Tuple[Side, Side]:
    languages = wanted.source_lang, wanted.target_lang
    if is_huggingface(wanted.teacher):
        if wanted.user_dir:
            raise KDPluginError(
                f"{FLAG}: is for fairseq checkpoints, and {wanted.teacher} is not one. Remedy: leave it out"
            )
        tokenizer = Tokenizer(wanted.teacher)
        models = [read_pieces(path, "the teacher's") for path in tokenizer.sentencepiece_models()]
        indices: Sequence[Dict[str, int]] = tokenizer.vocabularies()
    else:
        import_user_code(wanted.user_dir, FLAG)
        overrides = {"data": wanted.dict_dir} if wanted.dict_dir else parse_overrides("{}")
        checkpoint = open_checkpoint(wanted.teacher, overrides, *languages)
        indices = [dictionary.indices for dictionary in checkpoint.dictionaries]
        segmentation = wanted.subwords.open()
        segmentation.check(wanted.teacher, *(list(side) for side in indices))
        paths = [(side.path, side.flag) for side in (segmentation.source, segmentation.target)]
        if None in (path for path, _ in paths):
            raise KDPluginError(f"{JOINT}: a fairseq checkpoint does not contain it. Remedy: name the teacher's")
        models = [read_pieces(Path(str(path)), flag) for path, flag in paths]
    source, target = (Side(*side) for side in zip(languages, models, indices))
    return source, target


def _cut(side: Side, files: Optional[List[Path]], coverage: float) -> Tuple[Row, bytes, bytes]:
    """The table row, the sentencepiece model and the dictionary of one side."""
    known = [symbol for symbol in side.pieces.symbols if symbol in side.indices and symbol not in SPECIALS]
    if files is None:
        return Row(side.language, len(known), len(known)), side.pieces.content, _dictionary(known, side.indices, {})
    lines = functools.partial(_lines, files, side.language)
    whole = side.pieces.count(lines("all pieces"))
    kept = side.pieces.needed(whole, coverage)
    model = side.pieces.without(kept)
    symbols = [symbol for symbol in known if symbol in kept]
    cut = model.count(lines("the pieces kept"), side.pieces)
    row = Row(side.language, len(known), len(symbols), whole, cut)
    return row, model.content, _dictionary(symbols, side.indices, cut.pieces)


def _lines(files: List[Path], language: str, what: str) -> Any:
    texts = (text for path in files for _, text in numbered_lines(path, "--subset"))
    return progress(texts, None, f"{language}: {what}")


def _dictionary(symbols: List[str], indices: Dict[str, int], counts: Dict[str, int]) -> bytes:
    """A dictionary file in the teacher's order; fairseq expects one symbol and its count per line."""
    in_order = sorted(symbols, key=lambda symbol: indices[symbol])
    return "".join(f"{symbol} {counts.get(symbol, 1)}\n" for symbol in in_order).encode()


def _table(rows: List[Row]) -> str:
    head = ["language", "teacher's pieces", "kept"]
    if rows[0].whole is not None:
        head += ["sentences", "tokens", "tokens now", "resegmented", "unknown before", "unknown now"]
    table = [head]
    for row in rows:
        cells = [row.language, f"{row.teacher:,}", f"{row.kept:,}"]
        if row.whole is not None and row.cut is not None:
            share = row.cut.changed / max(1, row.whole.lines)
            cells += [f"{row.whole.lines:,}", f"{row.whole.tokens:,}", f"{row.cut.tokens:,}", f"{share:.2%}"]
            cells += [f"{row.whole.unknown:,}", f"{row.cut.unknown:,}"]
        table.append(cells)
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in table)


def _commands(wanted: Wanted, folder: Path, contents: Dict[str, bytes]) -> str:
    """Commands that prepare data with the new vocabulary."""
    place, lines = shlex.quote(str(folder)), []
    for language in (wanted.source_lang, wanted.target_lang):
        own = f"sentencepiece.{language}.model"
        model = os.path.join(place, own if own in contents else "sentencepiece.model")
        lines.append(f"{ENCODE} {model} < train.{language} > train.spm.{language}")
    dictionaries = [
        os.path.join(place, "dict.txt" if wanted.joined_dictionary else f"dict.{language}.txt")
        for language in (wanted.source_lang, wanted.target_lang)
    ]
    lines.append(
        f"fairseq-preprocess -s {wanted.source_lang} -t {wanted.target_lang} --trainpref train.spm "
        f"--srcdict {dictionaries[0]} --tgtdict {dictionaries[1]} --destdir data-bin"
    )
    return "\nto prepare the student's data (likewise for valid and test):\n" + "\n".join(f"  {line}" for line in lines)
