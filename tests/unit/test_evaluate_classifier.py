"""`kd-plugin evaluate-classifier`: answers as each library gives them to one sentence at a time, and its refusals."""

import json
import re

import numpy as np
import pytest
import sentencepiece
import torch
from scipy import stats
from sklearn.metrics import accuracy_score

from kd_plugin import cli
from kd_plugin.checkpoints.classifier import TOKEN_HEAD, open_classifier
from kd_plugin.evaluation.classifiers.huggingface import HuggingFaceLabeller
from kd_plugin.evaluation.classifiers.labelled_text import read_test
from kd_plugin.evaluation.results import read_evaluation
from tests.unit.classifier_models import Corpus, hugging_face

seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")

HEAD = "sentence_classification_head"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("classified"))


def evaluate(output, models, tests, *flags):
    named = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    named += [word for name, files in tests.items() for word in ("--test", f"{name}={files}")]
    return cli.main(["evaluate-classifier", *named, "--output", str(output), "--bootstrap", "40", *map(str, flags)])


def scores(output, model, test):
    (found,) = (one for one in json.loads((output / "evaluation.json").read_text())["models"] if one["name"] == model)
    return {score["metric"]: score for score in found["scores"] if score["test"] == test}


def predictions(output, model, test):
    return (output / "predictions" / model / f"{test}.txt").read_text().split("\n")[:-1]


def both_tests(corpus, kind):
    columns = {"classification": ".text,{}/test.label", "tagging": ".conll", "regression": ".text,{}/test.number"}[kind]
    raw = f"{corpus.root}/test{columns.format(corpus.root)}"
    return {"raw": raw, "folder": f"{corpus.root / kind},valid"}


@torch.no_grad()
def alone(corpus, path, kind):
    """A checkpoint's logits for each sentence alone: pieces x outputs, or 1 x outputs; and the places of words."""
    tags = kind == "tagging"
    opened = open_classifier(path, tags, None, None, {"data": str(corpus.root / kind)}, TOKEN_HEAD if tags else HEAD)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.spm))
    found = []
    for words, _ in corpus.rows:
        pieces = processor.encode(" ".join(words), out_type=str)
        ids = [opened.dictionary.index(piece) for piece in [*pieces, "</s>"]]
        before = [] if opened.tokens[0] is None else [opened.tokens[0]]
        limit = opened.model.max_positions() or 1000
        kept = [*before, *ids] if len(before) + len(ids) <= limit else [*before, *ids[: limit - len(before) - 1], 2]
        logits = opened.model(
            src_tokens=torch.tensor([kept]), features_only=True, classification_head_name=opened.head
        )[0]
        starts = [at + len(before) for at, piece in enumerate(pieces) if piece.startswith("\u2581")]
        found.append((logits[0].numpy(), [at if at < len(kept) - 1 else None for at in starts]))
    return opened, found


@pytest.mark.parametrize("arch", ["bilstm", "roberta"])
def test_classes_are_those_of_each_sentence_alone_from_raw_text_and_from_a_folder(corpus, tmp_path, arch):
    path = corpus.checkpoint(arch)
    assert evaluate(
        tmp_path / "out", {"it": path}, both_tests(corpus, "classification"), "--sentencepiece-model", corpus.spm,
        "--batch-size", 7,
    ) == 0  # fmt: skip
    opened, logits = alone(corpus, path, "classification")
    expected = [opened.names[int(row.argmax())] for row, _ in logits]
    assert len(set(expected)) == 2
    for test in ("raw", "folder"):
        assert predictions(tmp_path / "out", "it", test) == expected
        accuracy = scores(tmp_path / "out", "it", test)["accuracy"]["value"]
        assert accuracy == pytest.approx(100 * accuracy_score([label for _, label in corpus.rows], expected))


def test_truncated_sentences_are_counted(corpus, tmp_path):
    assert evaluate(
        tmp_path / "out", {"it": corpus.checkpoint("roberta")}, both_tests(corpus, "classification"),
        "--sentencepiece-model", corpus.spm,
    ) == 0  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(corpus.spm))
    longer = sum(len(processor.encode(" ".join(words))) + 2 > 11 for words, _ in corpus.rows)
    assert longer
    note = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["note"]
    assert note == f"of {2 * longer} sentences it reads only the beginning"


@pytest.mark.parametrize("arch", ["text_cnn", "roberta"])
def test_tags_are_those_of_first_pieces_and_words_beyond_the_limit_are_outside(corpus, tmp_path, arch):
    path = corpus.checkpoint(arch, "tagging")
    flags = ["--task", "tagging", "--sentencepiece-model", corpus.spm]
    assert evaluate(tmp_path / "out", {"it": path}, both_tests(corpus, "tagging"), *flags) == 0
    opened, logits = alone(corpus, path, "tagging")
    expected = [["O" if at is None else opened.names[int(row[at].argmax())] for at in places] for row, places in logits]
    lost = sum(places.count(None) for _, places in logits)
    assert bool(lost) == (arch == "roberta") and len({tag for tags in expected for tag in tags}) > 1
    for test in ("raw", "folder"):
        assert [line.split() for line in predictions(tmp_path / "out", "it", test)] == expected
        found = scores(tmp_path / "out", "it", test)
        assert list(found) == ["entity F1", "entity precision", "entity recall", "accuracy", "ECE"]
        assert found["entity F1"]["value"] == pytest.approx(100 * seqeval.f1_score(corpus.tags, expected))


def test_numbers_are_compared_by_their_correlations(corpus, tmp_path):
    path = corpus.checkpoint("bag_of_embeddings", "regression")
    flags = ["--task", "regression", "--sentencepiece-model", corpus.spm]
    assert evaluate(tmp_path / "out", {"it": path}, both_tests(corpus, "regression"), *flags) == 0
    _, logits = alone(corpus, path, "regression")
    found = [float(row[0]) for row, _ in logits]
    for test in ("raw", "folder"):
        values = scores(tmp_path / "out", "it", test)
        assert values["Pearson"]["value"] == pytest.approx(100 * stats.pearsonr(corpus.numbers, found)[0], abs=1e-3)
        assert values["Spearman"]["value"] == pytest.approx(100 * stats.spearmanr(corpus.numbers, found)[0], abs=1e-3)


@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_a_hugging_face_model_reads_words_with_its_own_tokenizer(corpus, tmp_path, kind):
    import transformers

    labels = {"classification": ["pos", "neg"], "tagging": ["B-bad", "O", "B-good"]}[kind]
    vocabulary = sorted({word for words, _ in corpus.rows for word in words})
    folder = hugging_face(tmp_path / "bert", vocabulary, kind, labels)
    models = {"bert": folder, "cnn": corpus.checkpoint("text_cnn", kind)}
    flags = ["--task", kind, "--sentencepiece-model", corpus.spm, "--baseline", "cnn"]
    assert evaluate(tmp_path / "out", models, both_tests(corpus, kind), *flags) == 0
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    made = transformers.BertForTokenClassification if kind == "tagging" else transformers.BertForSequenceClassification
    model = made.from_pretrained(folder).eval()
    expected = []
    for words, _ in corpus.rows:
        text = words if kind == "tagging" else " ".join(words)
        batch = tokenizer(text, is_split_into_words=kind == "tagging", return_tensors="pt")
        with torch.no_grad():
            best = model(**batch).logits[0].argmax(dim=-1)
        where = [batch.word_ids().index(at) for at in range(len(words))] if kind == "tagging" else [...]
        expected.append(" ".join(labels[int(best[at])] for at in where))
    assert len(set(expected)) > 1
    for test in ("raw", "folder"):
        assert predictions(tmp_path / "out", "bert", test) == expected
    found = read_evaluation(str(tmp_path / "out"))
    assert [model.engine for model in found.models] == ["transformers", "fairseq"]
    first = list(found.models[0].scores.values())[0]
    assert first.p_value is not None and found.models[1].scores["raw", first.metric].p_value is None


def test_the_page_shows_classifiers(corpus, tmp_path):
    models = {"one": corpus.checkpoint("text_cnn"), "two": corpus.checkpoint("text_cnn", seed=1)}
    tests = {"dev": f"{corpus.root / 'classification'},valid"}
    assert evaluate(tmp_path / "out", models, tests, "--baseline", "one") == 0
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| model | accuracy | macro F1 | MCC | ECE |" in table and "Settings: task classification" in table
    assert "GPU |" not in table and "tokens are words of the text" in table
    page = tmp_path / "page.html"
    assert cli.main(["report", "--evaluation", str(tmp_path / "out"), "--output", str(page)]) == 0
    text = page.read_text()
    assert "ECE (lower is better)" in text and "macro F1" in text and "accuracy against speed" in text


def test_what_the_same_command_has_begun_it_may_finish_and_nothing_else_is_overwritten(corpus, tmp_path, capsys):
    models, tests = {"one": corpus.checkpoint("text_cnn")}, {"dev": f"{corpus.root / 'classification'},valid"}
    (tmp_path / "out" / "predictions").mkdir(parents=True)
    (tmp_path / "out" / "predictions" / "mine").write_text("mine")
    assert evaluate(tmp_path / "out", models, tests) == 1
    assert "already exists" in capsys.readouterr().err
    assert evaluate(tmp_path / "fresh", models, tests) == 0
    assert evaluate(tmp_path / "fresh", models, tests) == 1
    assert "already holds an evaluation" in capsys.readouterr().err


def lines(path, *rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "kind, files, message",
    [
        ("classification", "{text},{short}", "40 lines in .*, but 1 in"),
        ("classification", "{text},{other}", "has the labels else, but .* knows only .*neg.*pos"),
        ("classification", "{text},{blank}", "line 2: has no label"),
        ("classification", "{text}", "is not NAME=TEXT,LABELS or FOLDER,SPLIT, as --task classification needs it"),
        ("classification", "{folder},other", "other.bin does not exist"),
        ("classification", "{tags},valid", "labels, 1 expected .--task classification"),
        ("tagging", "{odd}", "line 2: 'plot' has no label in column -1 of 1"),
        ("tagging", "{empty}", "has no sentence"),
        ("tagging", "{text},{text}", "as --task tagging needs it"),
        ("regression", "{text},{other}", "line 40: 'else' is not a number"),
    ],
)
def test_test_sets_that_cannot_be_scored_are_refused_before_any_work(corpus, tmp_path, capsys, kind, files, message):
    labels = [label for _, label in corpus.rows]
    paths = {
        "text": corpus.root / "test.text", "short": lines(tmp_path / "short", "pos"),
        "other": lines(tmp_path / "other", *(labels[:-1] if kind == "classification" else ["1"] * 39), "else"),
        "blank": lines(tmp_path / "blank", "pos", "", *labels[2:]), "odd": lines(tmp_path / "odd", "film\tO", "plot"),
        "empty": lines(tmp_path / "empty", "", " "), "folder": corpus.root / "classification",
        "tags": corpus.root / "tagging",
    }  # fmt: skip
    arch = "bag_of_embeddings" if kind == "regression" else "text_cnn"
    models, tests = {"it": corpus.checkpoint(arch, kind)}, {"dev": files.format(**paths)}
    flags = ["--task", kind, "--sentencepiece-model", corpus.spm]
    assert evaluate(tmp_path / "out", models, tests, *flags) == 1
    error = capsys.readouterr().err

    assert re.search(message, error) and "Remedy: " in error, error
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused_before_any_work(corpus, tmp_path, capsys):
    tests = both_tests(corpus, "classification")
    other = hugging_face(tmp_path / "other", ["film"], "classification", ["good", "bad"])
    bare = tmp_path / "bare"
    bare.mkdir()
    good = corpus.checkpoint("text_cnn")
    for models, flags, message in (
        ({"a": good, "b": other}, [], "its labels are good, bad, but the other models. neg, pos"),
        ({"a": bare}, [], "without classifier.json or a Hugging Face config.json"),
        ({"a": tmp_path / "no.pt"}, [], "no such checkpoint file or model folder"),
        ({"a": good}, ["--baseline", "b"], "--baseline b: is not a --model"),
        ({"a": good}, ["--head", "nothing"], "none named nothing"),
        ({"a": good}, ["--dict-dir", corpus.root], "no dictionary of this model was found|is unclear"),
    ):
        arguments = ["--sentencepiece-model", corpus.spm, *flags]
        assert evaluate(tmp_path / "out", models, tests, *arguments) == 1
        error = capsys.readouterr().err

        assert re.search(message, error) and "Remedy: " in error, error
        assert not (tmp_path / "out").exists()


def test_columns_are_read_as_prepare_tagging_reads_them(tmp_path):
    """-DOCSTART-, comments, several spaces between columns, # as a word."""
    file = lines(
        tmp_path / "a", "-DOCSTART- -X- O", "", "# the first", "Ada  NNP   B-per ", "came VBD O", "-DOCSTART- -X- O",
        "# SYM O", "1 CD O",
    )  # fmt: skip
    test = read_test("t", str(file), "tagging", "auto")
    assert test.words == [["Ada", "came"], ["#", "1"]] and test.labels == [["B-per", "O"], ["O", "O"]]


def test_every_token_of_a_sentence_is_read_even_one_with_the_index_of_padding(tmp_path):
    """The answers of a batch are those of each sentence alone, whatever index its tokens have."""
    folder = hugging_face(tmp_path / "bert", ["film", "plot"], "classification", ["good", "bad"])
    labeller = HuggingFaceLabeller(folder, "classification")
    rows = [[2, 0, 5, 0, 3], [2, 6, 3]]
    together = labeller.logits(labeller._padded(rows))
    for row, found in zip(rows, together):
        with torch.no_grad():
            expected = labeller._model(input_ids=torch.tensor([row])).logits[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_are_not_scored_as_numbers_nor_a_number_as_labels(corpus, tmp_path, capsys):
    """Checkpoints and Hugging Face folders; the export too."""
    two = hugging_face(tmp_path / "two", ["film"], "classification", ["good", "bad"])
    numbers, classes = both_tests(corpus, "regression"), both_tests(corpus, "classification")
    labelled, number = corpus.checkpoint("text_cnn"), corpus.checkpoint("bag_of_embeddings", "regression")
    for path, task, tests, message in (
        (labelled, "regression", numbers, "has 2 outputs, but --task regression"),
        (two, "regression", numbers, "has 2 outputs, but --task regression"),
        (number, "classification", classes, "has only one output, a number, but --task classification"),
    ):
        flags = ["--task", task, "--sentencepiece-model", corpus.spm]
        assert evaluate(tmp_path / "out", {"it": path}, tests, *flags) == 1
        error = capsys.readouterr().err
        assert f"{path}: {message}" in error and "Remedy: " in error
        if path != two:
            command = ["export", path, "--format", "onnx", "--task", task, "--output", str(tmp_path / "out")]
            assert cli.main(command) == 1
            assert f"{path}: {message}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_unsegmented_text_without_its_sentencepiece_model_is_refused(corpus, tmp_path, capsys):
    tests = {"raw": both_tests(corpus, "classification")["raw"]}
    assert evaluate(tmp_path / "out", {"it": corpus.checkpoint("text_cnn")}, tests) == 1
    assert "--sentencepiece-model" in capsys.readouterr().err


def test_speed_counts_every_sentence_and_word(corpus, tmp_path):
    assert evaluate(
        tmp_path / "out", {"it": corpus.checkpoint("text_cnn")}, both_tests(corpus, "classification"),
        "--sentencepiece-model", corpus.spm,
    ) == 0  # fmt: skip
    speed = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["speed"]["cpu"]
    assert (speed["sentences"], speed["tokens"]) == (80, 2 * sum(len(words) for words, _ in corpus.rows))
    assert np.isclose(speed["sentences_per_second"], 80 / speed["seconds"]) and speed["seconds"] > 0
