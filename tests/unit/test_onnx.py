"""`kd-plugin export --format onnx`: ONNX Runtime's logits are fairseq's, and the folder needs no other library."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from kd_plugin import cli
from kd_plugin.checkpoints.classifier import TOKEN_HEAD, open_classifier
from kd_plugin.checkpoints.onnx_folder import OnnxSession
from kd_plugin.errors import KDPluginError
from kd_plugin.export.onnx_model import Logits, compare
from tests.support import ROOT
from tests.unit.classifier_models import ARCHITECTURES, TAGGERS, Corpus

HEAD = "sentence_classification_head"
EVERY = [(arch, "classification") for arch in ARCHITECTURES] + [(arch, "tagging") for arch in TAGGERS]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    return Corpus(tmp_path_factory.mktemp("exported"))


def export(path, output, *flags):
    return cli.main(["export", str(path), "--format", "onnx", "--output", str(output), *map(str, flags)])


def opened(corpus, path, kind):
    tags = kind == "tagging"
    return open_classifier(path, tags, None, None, {"data": str(corpus.root / kind)}, TOKEN_HEAD if tags else HEAD)


@pytest.mark.parametrize("arch, kind", EVERY)
def test_logits_of_batches_of_any_size_are_fairseqs(corpus, tmp_path, arch, kind):
    path = corpus.checkpoint(arch, kind)
    flags = ["--task", kind, "--sentencepiece-model", corpus.spm]
    assert export(path, tmp_path / "out", *flags) == 0
    model = opened(corpus, path, kind)
    session = OnnxSession(tmp_path / "out" / "model.onnx")
    torch.manual_seed(3)
    symbols = len(model.dictionary)
    for lengths in ([1], [9], [7, 2, 9, 1], [3, 3], [1, 8, 8]):
        tokens = torch.full((len(lengths), max(lengths)), model.dictionary.pad())
        for row, length in zip(tokens, lengths):
            row[:length] = torch.randint(4, symbols, (length,))
        with torch.no_grad():
            expected = model.model(src_tokens=tokens, features_only=True, classification_head_name=model.head)[0]
        found = session(tokens.numpy())
        real = tokens.ne(model.dictionary.pad()).numpy() if kind == "tagging" else slice(None)
        np.testing.assert_allclose(found[real], expected.numpy()[real], rtol=1e-4, atol=1e-4)


def test_the_folder_evaluates_like_its_checkpoint(corpus, tmp_path):
    for kind in ("classification", "tagging"):
        path = corpus.checkpoint("bilstm", kind)
        flags = ["--task", kind, "--sentencepiece-model", str(corpus.spm)]
        assert export(path, tmp_path / kind, *flags, "--check", corpus.root / "test.text") == 0
        test = f"{corpus.root}/test.conll" if kind == "tagging" else f"{corpus.root}/test.text,{corpus.root}/test.label"
        models = ["--model", f"torch={path}", "--model", f"onnx={tmp_path / kind}", "--baseline", "torch"]
        output = tmp_path / f"{kind}-scores"
        command = ["evaluate-classifier", *models, "--test", f"t={test}", "--output", str(output), "--bootstrap", "40"]
        assert cli.main([*command, *flags]) == 0
        one, other = ((output / "predictions" / name / "t.txt").read_text() for name in ("torch", "onnx"))
        assert one == other and len(set(one.split())) > 1


WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('torch', 'fairseq', 'kd_plugin', 'transformers')))\n"


def test_the_example_of_the_page_runs_without_torch_and_fairseq_and_labels_as_the_checkpoint(corpus, tmp_path):
    page = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    path = corpus.checkpoint("text_cnn")
    assert export(path, tmp_path / "student-onnx", "--sentencepiece-model", corpus.spm) == 0
    assert "a lovely film" in example
    answers = []
    for text in ("a lovely film", "the plot was awful"):
        code = WITHOUT + example.replace("a lovely film", text)
        run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
        answers.append(run.stdout.decode().strip())
    model = opened(corpus, path, "classification")
    from tests.unit.sentencepiece_models import encoded

    for text, answer in zip(("a lovely film", "the plot was awful"), answers):
        ids = [model.dictionary.index(piece) for piece in encoded(corpus.spm, [text])[0]] + [2]
        with torch.no_grad():
            logits = model.model(torch.tensor([ids]), features_only=True, classification_head_name=HEAD)[0]
        assert answer == model.names[int(logits.argmax())]


def test_the_folder_says_what_its_model_reads(corpus, tmp_path, capsys):
    path = corpus.checkpoint("roberta")
    assert export(path, tmp_path / "out", "--sentencepiece-model", corpus.spm) == 0
    assert "largest difference of two logits" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "classifier.json").read_text())
    model = opened(corpus, path, "classification")
    assert about["labels"] == model.names and about["task"] == "classification"
    assert about["vocabulary"] == model.dictionary.indices
    assert (about["prefix"], about["suffix"], about["padding"], about["max_length"]) == ([0], [2], 1, 11)
    assert (tmp_path / "out" / "spm.model").read_bytes() == corpus.spm.read_bytes()
    assert str(corpus.root) not in json.dumps(about)
    assert about["check"]["largest_difference"] < 1e-4 < about["check"]["sentences"]


def test_another_model_is_noticed_and_named(corpus, tmp_path):
    one, other = (opened(corpus, corpus.checkpoint("text_cnn", seed=seed), "classification") for seed in (0, 1))
    assert export(one.path, tmp_path / "out", "--sentencepiece-model", corpus.spm) == 0
    session = OnnxSession(tmp_path / "out" / "model.onnx")
    sentences = [[4, 5, 6, 2], [7, 2]]
    assert compare(Logits(one.model, HEAD).eval(), session, sentences, 1, one.path).largest_difference < 1e-5
    with pytest.raises(KDPluginError, match="logits differ by.*nothing was written"):
        compare(Logits(other.model, HEAD).eval(), session, sentences, 1, other.path)


def test_nothing_is_left_if_the_check_fails(corpus, tmp_path, monkeypatch, capsys):
    from kd_plugin.export import onnx_model

    monkeypatch.setattr(onnx_model, "TOLERANCE", -1.0)
    assert export(corpus.checkpoint("text_cnn"), tmp_path / "out", "--sentencepiece-model", corpus.spm) == 1
    assert "logits differ" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--fp16"], "--fp16: not with --format onnx"),
        (["--quantization", "int8"], "--quantization: only with --format ctranslate2"),
        (["--head", "other"], "none named other"),
        (["--check", "missing.text"], "--check missing.text: no such file"),
        (["--task", "tagging"], "its head sentence_classification_head is for sentences"),
        (["-s", "en"], "--source-lang: not with --format onnx"),
    ],
)
def test_flags_that_do_not_fit_are_refused(corpus, tmp_path, capsys, flags, message):
    given = [] if "tagging" in flags else ["--sentencepiece-model", corpus.spm]
    status = export(corpus.checkpoint("text_cnn"), tmp_path / "out", *given, *flags)
    error = capsys.readouterr().err
    assert (status, message in error, "Remedy: " in error) == (1, True, True), error
    assert not (tmp_path / "out").exists()


def test_onnx_s_flags_are_for_onnx(corpus, tmp_path, capsys):
    command = ["export", corpus.checkpoint("text_cnn"), "--format", "fairseq", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--task", "tagging"]) == 1
    assert "--task: only with --format onnx" in capsys.readouterr().err


def test_a_missing_library_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(tmp_path / "no.pt", tmp_path / "out") == 1
    assert "--format onnx: " in (error := capsys.readouterr().err) and "pip install 'kd-plugin[onnx]'" in error


@pytest.mark.parametrize(
    "content", ["{}", '{"format": "kd_plugin onnx classifier", "version": 1, "vocabulary": {"a": 3}}']
)
def test_a_damaged_folder_is_refused(corpus, tmp_path, capsys, content):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "classifier.json").write_text(content)
    command = ["evaluate-classifier", "--model", f"bad={tmp_path / 'bad'}", "--output", str(tmp_path / "out")]
    assert cli.main([*command, "--test", f"t={corpus.root / 'classification'},valid"]) == 1
    assert "classifier.json: is" in (error := capsys.readouterr().err) and "Remedy: " in error


@pytest.fixture(scope="module")
def exported(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited") / "out"
    path = corpus.checkpoint("text_cnn", "tagging")
    assert export(path, folder, "--task", "tagging", "--sentencepiece-model", corpus.spm) == 0
    return folder


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"labels": ["O", "B-good"]}, "numbers where classifier.json has the task tagging and 2 labels"),
        ({"labels": ["O", "O", "B-good"]}, "a name twice"),
        ({"labels": "OBI"}, "labels are not a list of names"),
        ({"labels": None}, "labels are None for the task tagging"),
        ({"prefix": 0}, "prefix is 0, not indices"),
        ({"prefix": [99999]}, "prefix is .99999., not indices"),
        ({"suffix": ["2"]}, "suffix is .'2'., not indices"),
        ({"padding": -1}, "padding is .-1., not indices"),
        ({"max_length": "9"}, "max_length is '9'"),
        ({"unknown": "nothing"}, "unknown 'nothing' is not in the vocabulary"),
    ],
)
def test_an_edited_folder_is_refused_and_named(corpus, exported, tmp_path, capsys, edit, message):
    shutil.copytree(exported, tmp_path / "folder")
    file = tmp_path / "folder" / "classifier.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **edit}), encoding="utf-8")
    test = f"t={corpus.root}/test.conll"
    command = ["evaluate-classifier", "--task", "tagging", "--model", f"it={file.parent}", "--test", test]
    assert cli.main([*command, "--output", str(tmp_path / "scores")]) == 1
    error = capsys.readouterr().err
    assert str(file) in error and re.search(message, error) and "Remedy: " in error, error
    assert not (tmp_path / "scores").exists()
