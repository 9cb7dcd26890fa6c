"""Compares models on raw test sets: scores with significance, speed and size."""

import functools
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch

from kd_plugin.checkpoints.formats import holds_ctranslate2
from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.corpus.languages import Tokenizer, bleu_tokenizer, check_languages, family, may_be_the_same
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import Segmentation, SubwordOptions, Subwords
from kd_plugin.decoding.base import UNKNOWN, FolderOptions, Settings, Tokens
from kd_plugin.decoding.folders.base import Asked
from kd_plugin.decoding.folders.opening import TextFolder
from kd_plugin.decoding.models import (
    OpenedModel,
    Translated,
    capped_note,
    engine_of,
    open_model,
    translate,
)
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.folder import OutputFolder, named
from kd_plugin.evaluation.scores import Comet, check_tokenizer, no_comet, sacrebleu_scores
from kd_plugin.files.protection import Named

TRANSLATIONS = "translations"
WARM_UP = {"cpu": 4, "cuda": 200}  # sentences; a GPU is slow until it has processed a full batch


class RawTest(NamedTuple):
    name: str
    sources: List[str]
    references: List[str]


class Comparison(NamedTuple):
    """The options of `kd-plugin evaluate`. job: a hash of all of them except the output folder."""

    model: List[str]
    test: List[str]
    output: str
    baseline: Optional[str]
    engine: str
    folder: FolderOptions
    subwords: SubwordOptions
    source_lang: Optional[str]
    target_lang: Optional[str]
    dict_dir: Optional[str]
    user_dir: Optional[str]
    search: Settings
    max_tokens: int
    threads: int
    cpu_sentences: int
    tokenize: Optional[str]
    lowercase: bool
    bootstrap: int
    comet: Optional[str]
    inputs: List[Named]
    job: str


def evaluate(args: Comparison) -> None:
    """Writes evaluation.json, the table and the translations, and prints the table."""
    check_languages(args.source_lang, args.target_lang)
    models = named(args.model, "--model", "PATH")
    tests = [_read_test(name, value) for name, value in named(args.test, "--test", "SRC,REF").items()]
    if args.baseline is not None and args.baseline not in models:
        raise KDPluginError(f"--baseline {args.baseline}: is not a --model. Remedy: one of {', '.join(models)}")
    settings = args.search
    settings.check()
    for path in models.values():
        engine_of(path, args.engine)
    check_tokenizer(args.tokenize)
    output = OutputFolder(args.output, TRANSLATIONS, args.job)
    output.check(models, [test.name for test in tests], args.inputs)
    if args.user_dir and all(Path(path).is_dir() for path in models.values()):
        raise KDPluginError(f"{FLAG}: is for fairseq checkpoints, but no --model is one. Remedy: leave it out")
    import_user_code(args.user_dir, FLAG)
    comet = Comet(args.comet, int(torch.cuda.is_available())) if args.comet else None
    subwords = args.subwords.open()
    torch.set_num_threads(args.threads)
    segmented = functools.lru_cache(maxsize=None)(functools.partial(_segmented, tests))
    opened: Dict[str, OpenedModel] = {}
    for name, path in models.items():  # before any translation, since even the last model may not fit this text
        opened[name] = _open(path, "cpu", settings, args)
        if opened[name].subwords is None:
            _check_subwords(path, opened[name].decoder, subwords, tests, segmented(subwords))
    language = _tokenizer({name: model.languages for name, model in opened.items()}, tests, args)
    claim = output.claim()

    rows = []
    texts: Dict[str, Dict[str, List[str]]] = {test.name: {} for test in tests}  # test -> model -> lines
    for name, path in models.items():
        model = opened.pop(name)  # free each model once it has translated
        own = model.subwords or subwords
        row, hypotheses = _translate_all(name, path, model, segmented(own), own.target, settings, args)
        rows.append(row)
        for test in tests:
            texts[test.name][name] = hypotheses[test.name]
            output.write_text(name, test.name, hypotheses[test.name])
    _score(rows, tests, texts, comet, args, language)

    said = {
        **{name: getattr(settings, name) for name in ("beam", "max_len_a", "max_len_b", "lenpen")},
        "threads": args.threads,
        "max_tokens": args.max_tokens,
        "bootstrap": args.bootstrap,
        "tokenize": args.tokenize or language.name,
        "subwords": subwords.identity(),
    }
    table = output.write(said, args.baseline, {test.name: len(test.references) for test in tests}, rows)
    claim.finish()
    print(table)


def _read_test(name: str, value: str) -> RawTest:
    paths = value.split(",")
    if len(paths) != 2:
        raise KDPluginError(f"--test {name}={value}: is not NAME=SRC,REF. Remedy: two files with a comma between them")
    sources, references = ([line for _, line in numbered_lines(Path(path), "--test")] for path in paths)
    if len(sources) != len(references) or not sources:
        raise KDPluginError(
            f"--test {name}: {len(sources)} lines in {paths[0]}, but {len(references)} in {paths[1]}; nothing was "
            "scored. Remedy: one reference per sentence"
        )
    return RawTest(name, sources, references)


def _tokenizer(languages: Dict[str, Optional[List[str]]], tests: List[RawTest], args: Comparison) -> Tokenizer:
    """The tokenizer for BLEU in the target language; prints a note if it is not sacreBLEU's default.

    Raises:
        KDPluginError: the models translate into different languages
    """
    targets = {name: args.target_lang or (pair and pair[1]) for name, pair in languages.items()}
    said = {name: target for name, target in targets.items() if target}
    for name, target in said.items():
        first = next(iter(said))
        if not may_be_the_same(said[first], target):
            raise KDPluginError(
                f"--model {name}: translates into {target}, but {first} into {said[first]}; nothing was translated. "
                "Remedy: models with the same target language, or --target-lang if the codes are wrong"
            )
    language = next(iter(said.values()), None)
    if args.tokenize is not None:
        return Tokenizer(args.tokenize, family(language))
    tokenizer = bleu_tokenizer(language, (line for test in tests for line in test.references))
    if tokenizer.note:
        print(f"kd-plugin evaluate: {'warning: ' * tokenizer.doubtful}{tokenizer.note}", file=sys.stderr)
    return tokenizer


def _translate_all(
    name: str,
    path: str,
    opened: OpenedModel,
    sentences: Dict[str, List[Tokens]],
    subwords: Subwords,
    settings: Settings,
    args: Comparison,
) -> Tuple[Dict[str, Any], Dict[str, List[str]]]:
    """A model's row without scores, and its translations of each test set."""
    first = next(iter(sentences))
    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    speed: Dict[str, Dict[str, Any]] = {}
    done: Dict[str, Translated] = {}
    for device in devices:
        if torch.cuda.is_available():
            opened = _open(path, device, settings, args, opened)
        work = sentences if not done else {first: sentences[first][: args.cpu_sentences]}
        translate(opened.decoder, sentences[first][: WARM_UP[device]], args.max_tokens)
        answers = {
            test: translate(opened.decoder, tokens, args.max_tokens, f"{name}, {test}, {device}")
            for test, tokens in work.items()
        }
        speed[device] = {**_speed(list(answers.values())), "compute_type": opened.compute_type}
        done = done or answers
    speed.setdefault("cuda", {"note": "not measured: no GPU"})
    row: Dict[str, Any] = {
        "name": name,
        "engine": opened.engine,
        "parameters": opened.parameters,
        "bytes": opened.bytes,
        "sha256": opened.sha256,
        "speed": speed,
        "note": _note(list(done.values())),
        "scores": [],
    }
    decoded = {test: [subwords.decode(tokens) for tokens in answer.hypotheses] for test, answer in done.items()}
    return row, decoded


def _note(answers: List[Translated]) -> str:
    """Remarks that a reader of a model's scores needs; empty: none."""
    too_long = sum(answer.too_long for answer in answers)
    unknown = sum(UNKNOWN in tokens for answer in answers for tokens in answer.hypotheses)
    notes = [f"{too_long} sentences exceed its maximum length and have no translation"] if too_long else []
    if unknown:
        notes.append(f"{unknown} translations have unknown symbols ({UNKNOWN})")
    capped = capped_note(answers)
    if capped:
        notes.append(capped)
    approximate = sum(answer.approximate for answer in answers)
    if approximate:
        notes.append(f"{approximate} translations are from CTranslate2's own search, which fairseq's may differ from")
    return "; ".join(notes)


def _segmented(tests: List[RawTest], subwords: Segmentation) -> Dict[str, List[Tokens]]:
    return {test.name: [subwords.source.encode(line) for line in test.sources] for test in tests}


def _open(
    path: str, device: str, settings: Settings, args: Comparison, opened: Optional[OpenedModel] = None
) -> OpenedModel:
    """opened: the same on another device"""
    overrides = {} if args.dict_dir is None else {"data": args.dict_dir}
    languages = args.source_lang, args.target_lang
    engine, threads = args.engine, args.threads
    checkpoints, folder = (None, None) if opened is None else (opened.checkpoints, opened.folder)
    if opened is None and Path(path).is_dir() and not holds_ctranslate2(path):
        # of the flags for subwords it needs none: they are for the other models
        folder = TextFolder(Asked(path, args.folder, SubwordOptions(), languages, alone=False))
    return open_model(
        path, settings, engine, device, threads, overrides, *languages, checkpoints=checkpoints, folder=folder
    )


def _check_subwords(
    path: str, decoder: Any, subwords: Segmentation, tests: List[RawTest], sentences: Dict[str, List[Tokens]]
) -> None:
    """Refuses models whose symbols do not match the segmentation of the test sets."""
    subwords.check(path, decoder.source_symbols, decoder.target_symbols)
    subwords.target.check_joining(decoder.target_symbols)
    has_model = subwords.source.path is not None
    for test in tests:
        check_text(Marks(test.sources), has_model, decoder.source_symbols, f"--test {test.name}")
        subwords.check_sides(test.sources, f"--test {test.name}", decoder.source_symbols == decoder.target_symbols)
        check_known(sentences[test.name], decoder.source_symbols, has_model)


def _speed(answers: List[Translated]) -> Dict[str, Any]:
    """The speed on the sentences that were translated, i.e. without empty and too long ones."""
    seconds = max(1e-9, sum(answer.seconds for answer in answers))
    sentences = sum(answer.sentences for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    if not sentences:
        return {"note": "not measured: no sentence could be translated"}
    per_second = {"tokens_per_second": tokens / seconds, "sentences_per_second": sentences / seconds}
    return {**per_second, "sentences": sentences, "tokens": tokens, "seconds": seconds}


def _score(
    rows: List[Dict[str, Any]],
    tests: List[RawTest],
    texts: Dict[str, Dict[str, List[str]]],
    comet: Optional[Comet],
    args: Comparison,
    language: Tokenizer,
) -> None:
    for test in tests:
        systems = list(texts[test.name].items())
        scores = sacrebleu_scores(
            systems, test.references, args.baseline, args.bootstrap, args.tokenize, args.lowercase, language
        )
        of_comet = {name: no_comet() for name, _ in systems}
        if comet is not None:
            of_comet = comet.scores(systems, test.sources, test.references, args.baseline, args.bootstrap)
        for row in rows:
            for score in (*scores[row["name"]], of_comet[row["name"]]):
                row["scores"].append({"test": test.name, **score._asdict()})
