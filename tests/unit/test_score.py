"""Scores of translations by another model: right in both directions, for ensembles, and for odd sentences."""

import random

import pytest
import torch

from kd_plugin.corpus.translations import Translations, TranslationsFolder
from kd_plugin.files.sharded_folder import MANIFEST
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, texts_by_line, write_folder


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def sentence(seed):
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))


RECORDS = [
    record(3 * i, sentence(i), *((sentence(100 + 2 * i + n), -float(n)) for n in range(1 + i % 2))) for i in range(11)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By name: (path, model) of two that translate en-de and one de-en, untrained."""
    folder = tmp_path_factory.mktemp("models")
    write_dictionaries(folder, WORDS)
    made = {}
    for seed, (name, source, target) in enumerate([("a", "en", "de"), ("b", "en", "de"), ("back", "de", "en")]):
        path = folder / f"{name}.pt"
        flags = ["-s", source, "-t", target, *MODEL, "--max-source-positions", 64, "--max-target-positions", 32]
        made[name] = path, make_checkpoint(path, folder, *flags, seed=seed).double()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translations") / "in"
    write_folder(folder, RECORDS, input_lines=40)
    return folder


def run_score(folder, path, output, *flags):
    run_verb("score", folder, "--path", path, "--output", output, "--max-tokens", 50, *flags)


def reference(models, read, asked):
    """In float64, a pair at a time: log of the mean probability of each token, their mean."""
    source, target = ([WORDS.index(word) + 4 for word in text.split()] + [2] for text in (read, asked))
    probabilities = []
    for model in models:
        logits = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[2, *target[:-1]]]))[0][0]
        probabilities.append(torch.softmax(logits, -1)[torch.arange(len(target)), target])
    return float(torch.stack(probabilities).mean(0).log().mean())


@pytest.mark.parametrize("names", [["a"], ["back"], ["a", "b"]])
def test_log_probability_of_a_token(models, folder, tmp_path, names):
    run_score(folder, ":".join(str(models[name][0]) for name in names), tmp_path / "out")
    scored = records_of(tmp_path / "out")
    assert [r._replace(hypotheses=[h.text for h in r.hypotheses]) for r in scored] == [
        r._replace(hypotheses=[h.text for h in r.hypotheses]) for r in RECORDS
    ]
    chosen = [models[name][1] for name in names]
    for each in scored:
        for hypothesis in each.hypotheses:
            pair = (hypothesis.text, each.source) if names == ["back"] else (each.source, hypothesis.text)
            assert hypothesis.score == pytest.approx(reference(chosen, *pair), abs=1e-5)


def test_too_long_and_empty_sentences(models, tmp_path):
    long, fits = " ".join(["word1"] * 32), " ".join(["word2"] * 31)
    odd = [record(0, "", ("", 0.0)), record(1, "word1"), record(2, "word1", long, fits), record(3, "", "word3")]
    write_folder(tmp_path / "in", odd)
    run_score(tmp_path / "in", models["a"][0], tmp_path / "out")
    assert texts_by_line(tmp_path / "out") == {0: [""], 1: [], 2: [fits], 3: ["word3"]}
    assert counts_of(tmp_path / "out") == {"dropped_too_long": 1}
    scores = [h.score for r in records_of(tmp_path / "out") for h in r.hypotheses]
    model = models["a"][1]
    assert scores == pytest.approx([0, reference([model], "word1", fits), reference([model], "", "word3")], abs=1e-5)


def test_nothing_to_score_is_an_error(models, tmp_path, capsys):
    write_folder(tmp_path / "in", [record(0, "word1")])
    command = ["score", tmp_path / "in", "--path", models["a"][0], "--output", tmp_path / "out"]
    assert "contains no translation" in refusal(capsys, *command) and not (tmp_path / "out").exists()


def test_jobs_and_a_restart_write_the_same(models, folder, tmp_path, monkeypatch):
    path = models["a"][0]
    run_score(folder, path, tmp_path / "whole")
    for job in (1, 0):
        run_score(folder, path, tmp_path / "jobs", "--num-shards", 2, "--shard-id", job)
        assert (tmp_path / "jobs" / MANIFEST).exists() == (job == 0)
    written = []
    real = TranslationsFolder.write_records

    def dies(target, name, *rest):
        if len(written) == 2:
            raise Killed
        written.append(name)
        return real(target, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TranslationsFolder, "write_records", dies)
        with pytest.raises(Killed):
            run_score(folder, path, tmp_path / "killed")
        written[:] = []
        patch.setattr(TranslationsFolder, "write_records", lambda *all: written.append(all[1]) or real(*all))
        run_score(folder, path, tmp_path / "killed")
    assert written == ["shard-00002", "shard-00003"]

    def tree(where):
        return {p.name: p.read_bytes() for p in where.iterdir()}

    assert tree(tmp_path / "whole") == tree(tmp_path / "jobs") == tree(tmp_path / "killed")


def test_backward_scores_choose_and_filter(models, folder, tmp_path):
    """What it is for: the best by the backward model, and the worst share by it dropped."""
    run_score(folder, models["back"][0], tmp_path / "back", "--text", tmp_path / "back" / "text")
    of = {(r.source, h.text): h.score for r in records_of(tmp_path / "back") for h in r.hypotheses}
    run_verb("select", tmp_path / "back", "--by", "score", "--output", tmp_path / "best")
    for each in records_of(tmp_path / "best"):
        assert of[each.source, each.hypotheses[0].text] == max(s for (src, _), s in of.items() if src == each.source)
    kept = sorted(of.values())[-len(of) // 2 :]
    run_verb("filter", tmp_path / "back", "--keep-best", 0.5, "--output", tmp_path / "own", *LOOSE)
    flags = ["--scores", tmp_path / "back" / "text.scores", "--keep-best-by-scores", 0.5]
    run_verb("filter", folder, *flags, "--output", tmp_path / "other", *LOOSE)
    for name in ("own", "other"):
        pairs = [(r.source, h.text) for r in records_of(tmp_path / name) for h in r.hypotheses]
        assert sorted(of[pair] for pair in pairs) == kept


LOOSE = ["--max-length-ratio", 100, "--copy-overlap", 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-s", "de", "-t", "de"], "de is also the source language"),
        (["-s", "de", "-t", "fr"], "no dict.fr.txt"),
        (["--max-tokens", 0], "--max-tokens 0"),
        (["--sentencepiece-model", "nowhere.model"], "nowhere.model"),
        (["--output", "{folder}"], "overwrite INPUT_DIR"),
    ],
)
def test_refusals(models, folder, tmp_path, capsys, flags, message):
    flags = [flag.replace("{folder}", str(folder)) if isinstance(flag, str) else flag for flag in flags]
    before = Translations(folder).manifest
    arguments = ["score", folder, "--path", models["a"][0], "--output", tmp_path / "out", *flags]
    assert message in refusal(capsys, *arguments)
    assert Translations(folder).manifest == before and not (tmp_path / "out" / MANIFEST).exists()
