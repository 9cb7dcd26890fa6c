"""Compares models that label text on test sets with labels: scores with significance, speed and size."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch

from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers import metrics
from kd_plugin.evaluation.classifiers.labelled_text import CLASSES, FORMS, NUMBERS, TAGS, LabelledTest, read_test
from kd_plugin.evaluation.classifiers.labellers import Answers, Labeller
from kd_plugin.evaluation.classifiers.opening import Asked, open_labeller
from kd_plugin.evaluation.folder import OutputFolder, named
from kd_plugin.files.protection import Named

PREDICTIONS = "predictions"
OUTSIDE = "O"  # the tag of a word that a model could not read


class ClassifierComparison(NamedTuple):
    """The options of `kd-plugin evaluate-classifier`. job: a hash of all of them except the output folder."""

    model: List[str]
    test: List[str]
    output: str
    task: str
    baseline: Optional[str]
    head: Optional[str]
    dict_dir: Optional[str]
    user_dir: Optional[str]
    sentencepiece_model: Optional[str]
    word_start: str
    batch_size: int
    threads: int
    bootstrap: int
    inputs: List[Named]
    job: str


class _Result(NamedTuple):
    """A model's answers to one test set.

    Args:
        texts: a line per sentence
        scored: its metrics
    """

    answers: Answers
    texts: List[str]
    scored: List[metrics.Metric]


def evaluate_classifiers(args: ClassifierComparison) -> None:
    """Writes evaluation.json, the table and the predictions, and prints the table."""
    kind = args.task
    models = named(args.model, "--model", "PATH")
    given = named(args.test, "--test", FORMS[kind])
    if args.baseline is not None and args.baseline not in models:
        raise KDPluginError(f"--baseline {args.baseline}: is not a --model. Remedy: one of {', '.join(models)}")
    output = OutputFolder(args.output, PREDICTIONS, args.job)
    output.check(models, given, args.inputs)
    _check_libraries(kind)
    import_user_code(args.user_dir, FLAG)
    subwords = Subwords(args.sentencepiece_model)
    tests = [read_test(name, value, kind, args.word_start) for name, value in given.items()]
    torch.set_num_threads(args.threads)
    asked = Asked(kind, args.head, args.dict_dir, subwords, args.threads)
    names: Optional[List[str]] = None
    for path in models.values():  # before any work, since even the last model may not fit
        opened = open_labeller(path, asked)
        names = _check_labels(path, opened, names, tests)
        for test in tests:
            opened.encode(test, kind)
    claim = output.claim()

    rows: List[Dict[str, Any]] = []
    results: Dict[str, Dict[str, _Result]] = {test.name: {} for test in tests}
    for name, path in models.items():
        opened = open_labeller(path, asked)
        for test in tests:
            answers = opened.answers(opened.encode(test, kind), kind, args.batch_size)
            results[test.name][name] = result = _scored(test, answers, opened.facts.labels, names, kind)
            output.write_text(name, test.name, result.texts)
        rows.append(_row(name, path, opened, [results[test.name][name].answers for test in tests], tests))
    for test in tests:
        found = results[test.name]
        for row in rows:
            base = found[args.baseline].scored if args.baseline not in (None, row["name"]) else ()
            for score in metrics.scores(found[row["name"]].scored, len(test), args.bootstrap, base):
                row["scores"].append({"test": test.name, **score._asdict()})
    settings = {
        "task": kind,
        "labels": None if names is None else len(names),
        "threads": args.threads,
        "batch_size": args.batch_size,
        "bootstrap": args.bootstrap,
        "subwords": subwords.identity() if args.sentencepiece_model else None,
    }
    table = output.write(settings, args.baseline, {test.name: len(test) for test in tests}, rows)
    claim.finish()
    print(table)


def _check_libraries(kind: str) -> None:
    """Refuses to begin without the libraries that score."""
    for name in {CLASSES: ["sklearn.metrics"], TAGS: ["sklearn.metrics", "seqeval.metrics"], NUMBERS: ["scipy.stats"]}[
        kind
    ]:
        metrics.imported(name)


def _check_labels(
    path: str, opened: Labeller, names: Optional[List[str]], tests: Sequence[LabelledTest]
) -> Optional[List[str]]:
    """The labels of all models, in the order of the first.

    Raises:
        KDPluginError: another model has others, or a test set has a label that no model knows
    """
    own = opened.facts.labels
    if own is None:
        return None
    if names is not None and sorted(own) != sorted(names):
        raise KDPluginError(
            f"--model {path}: its labels are {_shown(own)}, but the other models' {_shown(names)}; nothing was scored. "
            "Remedy: models for the same labels, or one evaluation for each set of labels"
        )
    for test in tests:
        unknown = sorted({label for labels in test.labels for label in labels} - set(own))
        if unknown:
            raise KDPluginError(
                f"--test {test.name}: has the labels {_shown(unknown)}, but {path} knows only {_shown(own)}; nothing "
                "was scored. Remedy: the same names in the test set and the model"
            )
    return own if names is None else names


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:12]) + (f" and {len(labels) - 12:,} more" if len(labels) > 12 else "")


def _scored(
    test: LabelledTest, answers: Answers, own: Optional[List[str]], names: Optional[List[str]], kind: str
) -> _Result:
    """A model's metrics. own: its labels; names: the same in the order of all models"""
    if own is None or names is None:
        assert test.numbers is not None
        numbers = np.array([row[0, 0] for row in answers.rows])
        texts = [f"{number:.6g}" for number in numbers]
        return _Result(answers, texts, metrics.of_numbers(test.numbers, numbers))
    order = [own.index(name) for name in names]
    probabilities = [_softmax(row[:, order]) for row in answers.rows]
    if kind == TAGS:
        outside = OUTSIDE if OUTSIDE in names else names[0]
        tags = [
            [outside if np.isnan(word).any() else names[int(word.argmax())] for word in rows] for rows in probabilities
        ]
        found = metrics.of_tags(test.labels, tags, names, np.concatenate(probabilities))
        return _Result(answers, [" ".join(line) for line in tags], found)
    table = np.concatenate(probabilities)
    gold = [names.index(labels[0]) for labels in test.labels]
    return _Result(answers, [names[at] for at in table.argmax(axis=1)], metrics.of_classes(gold, table))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _row(
    name: str, path: str, opened: Labeller, answers: Sequence[Answers], tests: Sequence[LabelledTest]
) -> Dict[str, Any]:
    """What evaluation.json says about a model, without its scores."""
    facts = opened.facts
    seconds = max(1e-9, sum(one.seconds for one in answers))
    sentences = sum(map(len, tests))
    words = sum(len(text.split()) for test in tests for text in test.texts)
    cut, lost = (sum(getattr(one, field) for one in answers) for field in ("cut", "lost"))
    notes = [f"of {cut:,} sentences it reads only the beginning"] if cut else []
    notes += [f"{lost:,} words that it does not read count as {OUTSIDE}"] if lost else []
    speed = {
        "tokens_per_second": words / seconds, "sentences_per_second": sentences / seconds, "compute_type": "float32",
        "sentences": sentences, "tokens": words, "seconds": seconds,
    }  # fmt: skip
    return {
        "name": name,
        "path": path,
        "engine": facts.engine,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "sha256": [facts.sha256],
        "speed": {"cpu": speed},
        "note": "; ".join(notes),
        "scores": [],
    }
