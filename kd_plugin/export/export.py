"""A trained model in a form to use or to give away: CTranslate2, stock fairseq or safetensors."""

import itertools
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from sacrebleu.metrics import BLEU

from kd_plugin.checkpoints.ctranslate2_models import convert
from kd_plugin.checkpoints.exported import DESCRIPTION, description_of, read_description
from kd_plugin.checkpoints.finite import check_range
from kd_plugin.checkpoints.open import Checkpoint, open_checkpoint
from kd_plugin.checkpoints.stock import write_stock_checkpoint
from kd_plugin.corpus.languages import bleu_tokenizer, check_languages, family
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import Segmentation, Subwords
from kd_plugin.corpus.translations import Translations
from kd_plugin.decoding.base import Settings, Tokens
from kd_plugin.decoding.fairseq import Checkpoints
from kd_plugin.decoding.models import Translated, open_model, share_identical, translate
from kd_plugin.errors import KDPluginError
from kd_plugin.export.forms import QUANTIZED_THRESHOLD, SUBWORDS, THRESHOLD, Export
from kd_plugin.export.safetensors_model import write_safetensors
from kd_plugin.export.vocabulary_map import write_vocabulary_map
from kd_plugin.files.atomic import digest_of, make_folder, temporary_beside, write_json
from kd_plugin.files.locks import Claim, lock_beside
from kd_plugin.files.protection import check_outputs
from kd_plugin.runners.progress import progress

CHECKPOINT, VOCABULARY_MAP = "model.pt", "vmap.txt"
SEARCH = Settings()


class Check(NamedTuple):
    """identical: share of the sentences, 0 to 1. bleu: of the exported model's translations against the original's.
    signature: sacreBLEU's. capped: sentences that one of the two models does not end within the length limit.
    """

    sentences: int
    identical: float
    bleu: float
    signature: str = ""
    capped: int = 0

    def __str__(self) -> str:
        identical = f"{self.identical:.1%} of {self.sentences:,} translations identical"
        capped = f"; {self.capped:,} cut off at the length limit" if self.capped else ""
        return f"{identical}, BLEU {self.bleu:.1f} ({self.signature}){capped}"


def export(args: Export) -> None:
    """Write the folder, whole.

    Raises:
        KDPluginError: names the flag or the file; there is no folder
    """
    _check_flags(args)
    overrides = {} if args.dict_dir is None else {"data": args.dict_dir}
    output = Path(args.output)
    check_outputs(args.inputs, [("--output", args.output)])
    _refuse_existing(output)
    subwords = args.subwords.open()
    opened = open_checkpoint(args.checkpoint, overrides, args.source_lang, args.target_lang)
    subwords.check(args.checkpoint, *(dictionary.symbols for dictionary in opened.dictionaries))
    sentences = _check_sentences(opened, args.check, subwords) if args.check else []
    if args.fp16 or "float16" in (args.quantization or "").split("_"):
        remedy = "without --fp16" if args.fp16 else "--quantization float32 or int8"
        check_range(opened.model, torch.float16, opened.path, remedy)
    temporary = temporary_beside(Path(os.path.abspath(output)))
    make_folder(temporary.parent, "--output")
    claim = _claim(Path(os.path.abspath(output)))
    try:
        temporary.mkdir()
        folder = temporary / "export"
        write = _to_ctranslate2 if args.format == "ctranslate2" else _with_dictionaries
        write(opened, folder, args)
        digests: Dict[str, Any] = {}
        for side, one in subwords.models().items():
            shutil.copyfile(str(one.path), folder / SUBWORDS[side])
            digests[f"{side}_sentencepiece_sha256".lstrip("_")] = one.sha256
        # how the plugin's own numbers were measured
        search = {name: getattr(SEARCH, name) for name in ("beam", "max_len_a", "max_len_b", "lenpen")}
        description = {**read_description(folder), **digests, "search": search}
        if args.check:
            checks = _check(opened, folder, args, overrides, sentences, subwords.target)
            description.update({name: check._asdict() for name, check in checks.items()})
        write_json(folder / DESCRIPTION, description)
        for path in folder.iterdir():
            path.chmod(0o666 & ~_umask())  # safetensors writes files for their owner alone
        _refuse_existing(output)
        os.rename(folder, output)
    except OSError as error:
        raise KDPluginError(f"--output {output}: {error.strerror or error}. Remedy: make room, or elsewhere") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        claim.finish()
    sizes = [path.stat().st_size for path in output.iterdir()]
    print(f"{output}: {args.format}, {opened.parameters:,} parameters, {sum(sizes):,} bytes in {len(sizes)} files")


def _check_flags(args: Export) -> None:
    check_languages(args.source_lang, args.target_lang)
    if args.format != "ctranslate2":
        for flag in ("quantization", "max_positions", "vocabulary_map_from"):
            if getattr(args, flag) is not None:
                raise KDPluginError(f"--{flag.replace('_', '-')}: only with --format ctranslate2. Remedy: leave it out")
    elif args.fp16:
        raise KDPluginError("--fp16: not with --format ctranslate2. Remedy: --quantization float16")
    if args.check and args.format == "safetensors":
        raise KDPluginError("--check: nothing here translates with safetensors. Remedy: check --format fairseq")
    if args.check and not Path(args.check).is_file():
        raise KDPluginError(f"--check {args.check}: no such file. Remedy: raw text, a sentence a line")
    if args.check_threshold is not None and not args.check:
        raise KDPluginError("--check-threshold: only with --check FILE. Remedy: both, or neither")
    if args.vocabulary_map_from and len(args.vocabulary_map_from) > 2:
        raise KDPluginError("--vocabulary-map-from: more than two files. Remedy: CORPUS.src CORPUS.tgt, or one folder")


def _refuse_existing(output: Path) -> None:
    if os.path.lexists(output) and not (output.is_dir() and not output.is_symlink() and not any(output.iterdir())):
        raise KDPluginError(f"--output {output}: is there already. Remedy: remove it, or name another folder")


def _claim(output: Path) -> Claim:
    """Beside the folder, which comes into being whole."""
    job = digest_of(str(output))  # any: a run that was killed leaves nothing half-finished there
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
    """The formats that keep fairseq's dictionaries: fairseq, safetensors."""
    folder.mkdir()
    if args.format == "fairseq":
        write_stock_checkpoint(opened, folder / CHECKPOINT, args.fp16)
    else:
        write_safetensors(opened, folder, args.fp16)
    _copy_dictionaries(opened, folder)
    write_json(folder / DESCRIPTION, description_of(opened, args.format, dtype="float16" if args.fp16 else "float32"))


def _copy_dictionaries(opened: Checkpoint, folder: Path) -> None:
    if opened.languages is None:  # found as a joined one
        shutil.copyfile(opened.dictionary_paths[0], folder / "dict.txt")
        return
    for language, path in zip(opened.languages, opened.dictionary_paths):
        shutil.copyfile(path, folder / f"dict.{language}.txt")


def _segmented(opened: Checkpoint, args: Export) -> Iterator[Tuple[Tokens, Tokens]]:
    """Symbols of the pairs of --vocabulary-map-from.

    Raises:
        KDPluginError: at their end: most lines are segmented otherwise
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
    """Raw pairs of --vocabulary-map-from."""
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


def _check_sentences(opened: Checkpoint, file: str, subwords: Segmentation) -> List[Tokens]:
    """Symbols of --check, after a look whether they are the checkpoint's."""
    lines = [line for _, line in numbered_lines(Path(file), "--check")]
    if not any(map(str.strip, lines)):
        raise KDPluginError(f"--check {file}: there is no sentence in it. Remedy: raw text, a sentence a line")
    (symbols, others), has_model = (one.symbols for one in opened.dictionaries), subwords.source.path is not None
    check_text(Marks(lines), has_model, symbols, f"--check {file}")
    subwords.check_sides(lines, f"--check {file}", symbols == others)
    sentences = [subwords.source.encode(line) for line in lines]
    check_known(sentences, opened.dictionaries[0].indices, has_model)
    return sentences


def _check(
    opened: Checkpoint,
    folder: Path,
    args: Export,
    overrides: Dict[str, Any],
    sentences: List[Tokens],
    subwords: Subwords,
) -> Dict[str, Check]:
    """Translate --check with both models, and with the vocabulary map too where there is one.

    Args:
        sentences: symbols of --check
        subwords: of the target language

    Raises:
        KDPluginError: the translations are further apart than --check-threshold
    """
    exported = folder if args.format == "ctranslate2" else folder / CHECKPOINT
    languages: Dict[str, Any] = {"source_lang": args.source_lang, "target_lang": args.target_lang}
    target = None if opened.languages is None else opened.languages[1]
    original = open_model(opened.path, SEARCH, checkpoints=Checkpoints(opened, [opened.path], overrides))
    decoder = open_model(str(exported), SEARCH, **languages).decoder
    theirs = translate(original.decoder, sentences, name="checkpoint")
    ours = translate(decoder, sentences, name="exported")
    check = _compare(ours, theirs, subwords, target)
    checks = {"check": check}
    print(f"check: {check} against fairseq's")
    quantized = (args.quantization or "int8").startswith("int") and args.format == "ctranslate2"
    threshold = args.check_threshold
    if threshold is None:
        threshold = QUANTIZED_THRESHOLD if quantized else THRESHOLD
    judged = _compare(ours, theirs, subwords, target, [at for at in range(len(sentences)) if at not in theirs.capped])
    if check.bleu < threshold and judged.bleu < threshold:
        raise KDPluginError(
            f"--check {args.check}: the exported model's translations have BLEU {check.bleu:.1f} against the "
            f"checkpoint's, below --check-threshold {threshold:g}; nothing was written. "
            f"{_cause(ours, theirs, len(sentences), quantized)} Or a lower threshold after a look at kd-plugin "
            "evaluate of both"
        )
    if check.bleu < threshold:
        print(f"below {threshold:g} because of what the checkpoint does not end itself: without that {judged}")
    if args.vocabulary_map_from:
        # reported, not refused: how much a map may change is for the user of use_vmap to say
        decoder.use_vocabulary_map = True
        checks["check_with_vocabulary_map"] = mapped = _compare(
            translate(decoder, sentences, name="with the map"), theirs, subwords, target
        )
        print(f"with the vocabulary map: {mapped}")
    return checks


def _cause(ours: Translated, theirs: Translated, sentences: int, quantized: bool) -> str:
    """What has most likely parted the two models, and the remedy."""
    if 2 * len(theirs.capped) >= sentences:
        return (
            f"The checkpoint does not end {len(theirs.capped):,} of {sentences:,} translations itself, and repeats "
            "itself up to the length limit, where rounding decides. Remedy: a checkpoint that was trained for longer."
        )
    lost = len(set(ours.capped) - set(theirs.capped))
    if quantized:
        more = f" ({lost:,} translations no longer end)" if lost else ""
        return f"The weights' coarser numbers have done it{more}. Remedy: a finer --quantization."
    return (
        "Its numbers are not coarse, so no finer --quantization will help. Remedy: --format fairseq, and please report "
        "the architecture."
    )


def _compare(
    ours: Translated,
    theirs: Translated,
    subwords: Subwords,
    target: Optional[str],
    places: Optional[Sequence[int]] = None,
) -> Check:
    """places: of the sentences that count; none or None: all."""
    chosen = places or range(len(ours.hypotheses))
    tokens = [[answer.hypotheses[at] for at in chosen] for answer in (ours, theirs)]
    texts = [[subwords.decode(symbols) for symbols in hypotheses] for hypotheses in tokens]
    capped = len({*ours.capped, *theirs.capped} & set(chosen))
    # sentences of three words have no 4-grams, and are equal all the same
    known = target if family(target) else None  # else the letters decide: what is compared is of one language anyway
    metric = BLEU(tokenize=bleu_tokenizer(known, texts[1]).name, effective_order=True)
    score = metric.corpus_score(texts[0], [texts[1]]).score
    return Check(len(chosen), share_identical(*tokens), score, str(metric.get_signature()), capped)
