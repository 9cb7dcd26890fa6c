"""`kd-plugin evaluate`: the numbers of sacreBLEU's own command, and tables that say what was not measured."""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from sacrebleu.significance import PairedTest

from kd_plugin import cli
from kd_plugin.evaluation import scores as evaluation_scores
from kd_plugin.evaluation.results import evaluation_of, read_evaluation
from kd_plugin.evaluation.scores import Comet, mean_score, sacrebleu_scores
from kd_plugin.evaluation.table import markdown
from kd_plugin.files.atomic import sha256_of
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import LANGS

REFERENCES = [" ".join(WORDS[(7 * i + j) % 28] for j in range(4 + i % 5)) + " ." for i in range(30)]
SYSTEMS = [
    ("base", [line.replace("word1", "Word1").replace("word20", "x") for line in REFERENCES]),
    ("better", [line.replace("word20", "x") for line in REFERENCES]),
    ("worse", [line.replace("word2", "y") for line in REFERENCES]),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Folder with two checkpoints, their dictionaries and a test set."""
    folder = tmp_path_factory.mktemp("setting")
    write_dictionaries(folder, WORDS)
    for seed in (1, 2):
        make_checkpoint(folder / f"{seed}.pt", folder, *LANGS, *MODEL, seed=seed)
    sources = [" ".join(WORDS[i : i + 1 + i % 6]) for i in range(20)]
    sources[3] = ""
    (folder / "test.en").write_text("".join(line + "\n" for line in sources))
    (folder / "test.de").write_text("".join(line + "\n" for line in REFERENCES[:20]))
    return folder


def run(setting, output, *flags, models=("one=1.pt", "two=2.pt")):
    named = []
    for model in models:
        name, _, paths = model.partition("=")
        named += ["--model", f"{name}=" + ":".join(str(setting / path) for path in paths.split(":"))]
    test = ["--test", f"tiny={setting / 'test.en'},{setting / 'test.de'}", "--bootstrap", "50", "--max-len-b", "12"]
    return cli.main(["evaluate", *named, *test, "--output", str(output), "--remove-bpe", "none", *map(str, flags)])


def test_scores_and_significance_are_those_of_sacrebleus_command(tmp_path):
    for name, lines in (("reference", REFERENCES), *SYSTEMS):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    files = [name for name, _ in SYSTEMS]
    result = subprocess.run(
        [sys.executable, "-m", "sacrebleu", "reference", "-i", *files, "-m", "bleu", "chrf", "ter"]
        + ["--paired-bs", "--paired-bs-n", "200", "-f", "text", "-w", "6"],
        cwd=str(tmp_path), capture_output=True, encoding="utf-8", check=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    values = iter(re.findall(r"([\d.]+) \(([\d.]+) ± ([\d.]+)\)", result.stdout))
    p_values = iter(re.findall(r"\(p = ([\d.]+)\)", result.stdout))
    ours = sacrebleu_scores(SYSTEMS, REFERENCES, "base", 200)
    for name in files:
        for score in ours[name]:
            expected = list(map(float, next(values)))
            assert [score.value, score.mean, score.confidence] == pytest.approx(expected, abs=2e-6)
            if name == "base":
                assert score.p_value is None
            else:
                assert score.p_value == pytest.approx(float(next(p_values)), abs=1e-4)
    assert next(values, None) is None and next(p_values, None) is None
    assert "bs:200|seed:12345|case:mixed" in ours["base"][0].signature


def test_without_a_baseline_and_without_a_bootstrap():
    alone, plain = sacrebleu_scores(SYSTEMS, REFERENCES, None, 50), sacrebleu_scores(SYSTEMS, REFERENCES, "base", 0)
    compared = sacrebleu_scores(SYSTEMS, REFERENCES, "worse", 50)
    for name, _ in SYSTEMS:
        values = [[score.value for score in scores[name]] for scores in (alone, plain, compared)]
        assert values[0] == pytest.approx(values[1]) and values[0] == pytest.approx(values[2])
        assert all(s.p_value is None and s.confidence is not None for s in alone[name])
        assert all(s.confidence is None and "bs:" not in s.signature for s in plain[name])


def test_tokenizer_and_case():
    upper = [("upper", [line.upper() for line in REFERENCES])]
    scores = {
        s.metric: s for s in sacrebleu_scores(upper, REFERENCES, None, 0, tokenize="none", lowercase=True)["upper"]
    }
    assert [scores[name].value for name in ("BLEU", "chrF2", "TER")] == pytest.approx([100.0, 100.0, 0.0])
    assert "case:lc|eff:no|tok:none" in scores["BLEU"].signature


def test_a_whole_evaluation(setting, tmp_path, capsys):
    models = ["one=1.pt", "two=2.pt", "both=1.pt:2.pt"]
    assert run(setting, tmp_path / "out", "--baseline", "one", models=models) == 0
    table = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    printed = capsys.readouterr()
    assert table in printed.out and "one, tiny, cpu: 100%|" in printed.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(content) and str(setting) not in json.dumps(content)
    one, two, both = content["models"]
    assert both["parameters"] == one["parameters"] + two["parameters"] and both["bytes"] == one["bytes"] + two["bytes"]
    assert one["bytes"] == 4 * one["parameters"] < (setting / "1.pt").stat().st_size
    assert both["sha256"] == [sha256_of(setting / name) for name in ("1.pt", "2.pt")]
    assert "| one | fairseq (float32) | " in table
    for model in content["models"]:
        lines = (tmp_path / "out" / "translations" / model["name"] / "tiny.txt").read_text().splitlines()
        assert len(lines) == 20 and lines[3] == ""
        assert model["speed"]["cpu"]["sentences"] == 19 and model["speed"]["cpu"]["sentences_per_second"] > 0
        comet = model["scores"][-1]
        assert comet["metric"] == "COMET" and comet["value"] is None and "not measured: " in comet["note"]
    assert re.search(r"^\| one \(baseline\) \| [\d.]+ ± [\d.]+ \|", table, flags=re.MULTILINE)
    assert re.search(r"^\| \**two\** .* \(p = [\d.]+\)", table, flags=re.MULTILINE)
    assert "Search: beam 5, max len a 0.0, max len b 12" in table and "* TER: `nrefs:1|bs:50" in table
    # what kd-plugin report makes of it
    read = read_evaluation(str(tmp_path / "out"))
    assert read.baseline == "one" and read.metrics()["tiny"][:3] == ["BLEU", "chrF2", "TER"]
    assert read.models[0].speed["cpu"].tokens_per_second > 0


def test_a_ctranslate2_folder_beside_its_checkpoint(setting, tmp_path):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    assert cli.main(["export", str(setting / "1.pt"), "--output", str(setting / "ct2"), "--format", "ctranslate2"]) == 0
    assert run(setting, tmp_path / "out", models=["one=1.pt", "small=ct2"]) == 0
    models = read_evaluation(str(tmp_path / "out")).models
    assert [model.engine for model in models] == ["fairseq", "ctranslate2"]
    assert [model.compute for model in models] == ["float32", "int8_float32"]
    assert models[0].parameters == models[1].parameters
    assert run(setting, tmp_path / "other", "--engine", "fairseq", models=["small=ct2"]) == 1


def test_a_sentence_too_long_for_the_model_has_no_translation(setting, tmp_path):
    flags = ["--max-source-positions", 6, "--max-target-positions", 40]
    make_checkpoint(setting / "short.pt", setting, *LANGS, *MODEL, *flags)
    assert run(setting, tmp_path / "out", models=["short=short.pt"]) == 0
    (model,) = read_evaluation(str(tmp_path / "out")).models
    assert model.note.split("; ")[0] == "3 sentences exceed its maximum length and have no translation"
    assert len((tmp_path / "out" / "translations" / "short" / "tiny.txt").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--baseline", "three"], "--baseline three: is not a --model. Remedy: one of one, two"),
        (["--model", "one=x"], "the name one is already taken"),
        (["--model", "x"], "is not NAME=PATH"),
        (["--model", "x=nothing.pt"], "no such checkpoint file or model folder"),
        (["--test", "x=a"], "is not NAME=SRC,REF"),
        (["--test", "x=a,b"], "--test a: cannot be read"),
        (["--comet", "x"], "pip install unbabel-comet"),
        (["--engine", "ctranslate2"], "kd-plugin export --format ctranslate2 first"),
        (["--threads", "0"], "--threads 0: must lie in 1"),
        (["--cpu-sentences", "0"], "must be at least 1"),
        (["--lenpen", "nan"], "--lenpen nan: must lie in"),
        (["--max-len-a", "inf"], "--max-len-a inf: must lie in"),
    ],
)
def test_refusals(flags, message, setting, tmp_path, capsys):
    if "--comet" in flags and importlib.util.find_spec("comet"):
        pytest.skip("COMET is installed")
    assert run(setting, tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["one=1.pt", "small=ct2-of-words"])
def test_text_that_the_model_does_not_know_is_refused(model, setting, tmp_path, capsys):
    folder = setting / "ct2-of-words"
    if "ct2" in model:
        pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
        if not folder.exists():
            assert cli.main(["export", str(setting / "1.pt"), "--output", str(folder), "--format", "ctranslate2"]) == 0
    assert run(setting, tmp_path / "out", "--remove-bpe", "sentencepiece", models=[model]) == 1
    assert "Remedy: --remove-bpe subword_nmt (@@), or none" in capsys.readouterr().err
    for name in ("en", "de"):
        (tmp_path / name).write_text("Never seen before\n" * 20)
    test = ["--test", f"x={tmp_path / 'en'},{tmp_path / 'de'}"]
    assert run(setting, tmp_path / "out", *test, models=[model]) == 1
    assert "are not in the model's dictionary" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_model_is_looked_at_before_the_first_one_translates(setting, tmp_path, capsys):
    (setting / "damaged.pt").write_bytes(b"no checkpoint")
    assert run(setting, tmp_path / "out", models=["one=1.pt", "two=damaged.pt"]) == 1
    assert "damaged.pt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_speed_counts_what_was_translated_alone(setting, tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).write_text("\n" * 3)
    args = ["--model", f"one={setting / '1.pt'}", "--test", f"x={tmp_path / 'en'},{tmp_path / 'de'}"]
    assert (
        cli.main(["evaluate", *args, "--bootstrap", "0", "--remove-bpe", "none", "--output", str(tmp_path / "o")]) == 0
    )
    (model,) = json.loads((tmp_path / "o" / "evaluation.json").read_text())["models"]
    assert model["speed"]["cpu"]["note"] == "not measured: no sentence could be translated"
    assert read_evaluation(str(tmp_path / "o")).devices() == []


def test_a_tokenizer_that_cannot_be_used_is_found_before_decoding(setting, tmp_path, capsys, monkeypatch):
    def no_package(**_):
        raise RuntimeError("Please install the extra dependency")

    monkeypatch.setattr(evaluation_scores, "BLEU", no_package)
    assert run(setting, tmp_path / "out", "--tokenize", "ja-mecab") == 1
    assert "--tokenize ja-mecab: does not work here (Please install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_line_counts_and_earlier_evaluations(setting, tmp_path, capsys):
    (tmp_path / "short").write_text("word1\n")
    test = f"x={setting / 'test.en'},{tmp_path / 'short'}"
    assert run(setting, tmp_path / "out", "--test", test) == 1
    assert "20 lines in" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "evaluation.json").write_text("{}")
    assert run(setting, tmp_path / "out") == 1
    assert "already holds an evaluation" in capsys.readouterr().err


class FakeComet(types.ModuleType):
    """Scores a sentence by its length, "x" not at all."""

    __version__ = "9"

    @staticmethod
    def download_model(name):
        if name == "missing":
            raise KeyError("no such model")
        return f"downloaded/{name}/model.ckpt"

    @staticmethod
    def load_from_checkpoint(path):
        def predict(rows, batch_size, gpus):
            assert all(set(row) == {"src", "mt", "ref"} for row in rows)
            return types.SimpleNamespace(scores=[len(row["mt"]) / 100 * ("x" not in row["mt"]) for row in rows])

        return types.SimpleNamespace(predict=predict)


@pytest.fixture
def fake_comet(monkeypatch):
    fake = FakeComet("comet")
    fake.__spec__ = types.SimpleNamespace(name="comet")
    monkeypatch.setitem(sys.modules, "comet", fake)


def test_comet_in_the_evaluation(fake_comet, setting, tmp_path, capsys):
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    assert run(setting, tmp_path / "out", "--baseline", "one", "--comet", tmp_path / "model.ckpt") == 0
    one, two = (model.scores["tiny", "COMET"] for model in read_evaluation(str(tmp_path / "out")).models)
    name = hashlib.sha256(b"weights").hexdigest()[:7]
    assert one.signature == two.signature == f"model:model.ckpt:{name}|version:9"
    assert one.p_value is None and 0 < two.p_value <= 1
    lines = (tmp_path / "out" / "translations" / "two" / "tiny.txt").read_text().splitlines()
    assert two.value == pytest.approx(sum(len(line) / 100 * ("x" not in line) for line in lines) / 20)
    assert f"{two.value:.4f} ± " in capsys.readouterr().out


def test_comet_models(fake_comet, setting, tmp_path, capsys):
    """A name is downloaded; one that is not there stops the run before anything is translated."""
    found = Comet("some/wmt-da", 0).scores([("a", ["b"])], [""], [""], None, 0)
    assert found["a"].signature == "model:wmt-da|version:9"
    assert run(setting, tmp_path / "out", "--comet", "missing") == 1
    assert "--comet missing: cannot be loaded ('no such model')" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class MeanOfSums:
    """What sacreBLEU's bootstrap asks of a metric."""

    def get_signature(self):
        return types.SimpleNamespace(update=lambda key, value: None)

    def _extract_corpus_statistics(self, hypotheses, references):
        return [[sum(line.encode()) % 7, 1] for line in hypotheses]

    def _compute_score_from_stats(self, stats):
        return types.SimpleNamespace(name="mean", score=stats[0] / stats[1])

    def _aggregate_and_compute(self, stats):
        return self._compute_score_from_stats(np.sum(stats, axis=0))


def test_the_bootstrap_of_a_mean_is_sacrebleus(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    _, results = PairedTest(SYSTEMS, {"mean": MeanOfSums()}, references=None, test_type="bs", n_samples=300)()
    values = [np.array([sum(line.encode()) % 7 for line in lines], dtype=float) for _, lines in SYSTEMS]
    ours = [mean_score("mean", v, "", 300, None if i == 0 else values[0]) for i, v in enumerate(values)]
    assert len({score.value for score in ours}) == 3  # or it would compare nothing
    for score, expected in zip(ours, results["mean"]):
        assert score.value == pytest.approx(expected.score) and score.p_value == expected.p_value
        assert (score.mean, score.confidence) == pytest.approx((expected.mean, expected.ci), rel=1e-5)


def test_markdown_escapes_names():
    evaluation = {
        "date": "today", "machine": {"cpu": "c", "cores": 1, "gpu": None}, "versions": {}, "baseline": None,
        "settings": {"threads": 1}, "tests": [{"name": "t", "lines": 1}],
        "models": [
            {"name": "a|b", "engine": "fairseq", "parameters": None, "bytes": 10, "note": "", "scores": [],
             "speed": {"cpu": {"compute_type": "int8"}, "cuda": {}}},
        ],
    }  # fmt: skip
    assert "| a\\|b | fairseq (int8) | – | 0.00 | not measured |" in markdown(evaluation_of(evaluation))


@pytest.mark.parametrize(
    "metric, value, p_value, sign",
    [
        ("BLEU", 31.0, 0.01, 1),
        ("BLEU", 29.0, 0.01, -1),
        ("TER", 29.0, 0.01, 1),
        ("TER", 31.0, 0.01, -1),
        ("BLEU", 30.0, 0.001, 0),  # equal: sacreBLEU's bootstrap says p = 1 / (resamples + 1)
        ("BLEU", 31.0, 0.05, 0),
        ("BLEU", 31.0, None, 0),
    ],
)
def test_only_what_is_better_is_bold_and_what_is_worse_is_marked_as_such(metric, value, p_value, sign):
    from kd_plugin.evaluation.table import comparison, markdown

    assert comparison(metric, value, 30.0, p_value) == sign and comparison(metric, value, None, p_value) == 0
    common = {"engine": "", "parameters": 1, "bytes": 1, "note": "", "speed": {"cpu": {}, "cuda": {}}}

    def model(name, value, p_value):
        score = {"test": "t", "metric": metric, "value": value, "p_value": p_value}
        return {**common, "name": name, "scores": [{**score, "confidence": None, "signature": "", "note": ""}]}

    evaluation = {
        **{"date": "", "versions": {}, "baseline": "base", "tests": [{"name": "t", "lines": 5}]},
        "machine": {"cpu": "", "cores": 1, "gpu": None},
        "settings": {"threads": 1},
        "models": [model("other", value, p_value), model("base", 30.0, None)],
    }
    (row,) = (
        line
        for line in markdown(evaluation_of(evaluation)).splitlines()
        if line.startswith("| other | ") and "| 1 |" not in line
    )
    assert (row.count("**"), row.count("↓")) == {1: (2, 0), 0: (0, 0), -1: (0, 1)}[sign], row
