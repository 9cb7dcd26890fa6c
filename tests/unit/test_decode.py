"""Decoding a corpus: as fairseq's own search, nothing lost, doubled or reordered, restartable at any moment."""

import errno
import json
import os
import random
import re

import pytest
import torch

from kd_plugin.cli import build_parser, main
from kd_plugin.cli import decode as cli_decode
from kd_plugin.corpus.translations import Translations, TranslationsFolder
from kd_plugin.decoding import decode
from kd_plugin.decoding.base import Settings
from kd_plugin.decoding.fairseq import FairseqDecoder, open_checkpoints
from kd_plugin.files import atomic as files
from kd_plugin.files.sharded_folder import MANIFEST
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.translation_folders import counts_of

LINES = [" ".join(random.Random(i).choices(WORDS, k=1 + i % 9)) for i in range(40)]
LINES[7], LINES[21], LINES[33] = LINES[3], "", LINES[3]
COMMON = ["-s", "en", "-t", "de", "--remove-bpe", "none", "--max-len-b", "12", "--max-tokens", "60"]


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Two untrained teachers beside their dictionaries."""
    folder = tmp_path_factory.mktemp("teachers")
    write_dictionaries(folder, WORDS)
    for seed in (1, 2):
        make_checkpoint(
            folder / f"{seed}.pt", folder, "-s", "en", "-t", "de", *MODEL, "--max-source-positions", 64, seed=seed
        )
    return folder / "1.pt"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "input.en"
    path.write_text("".join(line + "\n" for line in LINES))
    return path


def run(teacher, corpus, output, *flags, status=0):
    arguments = ["decode", "--input", corpus, "--path", teacher, "--output", output, "--shard-sentences", 8]
    assert main(list(map(str, [*arguments, *COMMON, *flags]))) == status


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}


@pytest.fixture(scope="module")
def decoded(teacher, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoded") / "whole"
    run(teacher, corpus, folder, "--nbest", 3)
    return folder


def test_every_line_once_in_order_with_the_search_s_translations(teacher, decoded):
    checkpoints = open_checkpoints(str(teacher), None, "en", "de")
    decoder = FairseqDecoder(checkpoints, Settings(nbest=3, max_len_b=12), torch.device("cpu"))
    lines = list(Translations(decoded).lines())
    assert [line for line, _ in lines] == list(range(len(LINES)))
    for line, record in lines:
        assert record.source == LINES[line] and line in record.ids
        if not LINES[line]:
            assert record.hypotheses == [("", 0.0)]
            continue
        (alone,) = decoder([LINES[line].split()])
        assert [h.text for h in record.hypotheses] == [" ".join(tokens) for tokens, _ in alone]
        assert [h.score for h in record.hypotheses] == pytest.approx([score for _, score in alone], abs=1e-5)
        assert record.hypotheses == sorted(record.hypotheses, key=lambda h: -h.score)


def test_equal_lines_are_decoded_once(decoded):
    ids = {record.ids[0]: record.ids for record in Translations(decoded).records()}
    assert ids[3] == [3, 7, 33] and 7 not in ids and len(ids) == len(LINES) - 2


def test_text_has_a_line_for_each_translation_of_each_line(teacher, corpus, tmp_path, decoded):
    run(teacher, corpus, tmp_path / "out", "--nbest", 3, "--text", tmp_path / "text" / "pseudo")
    source, target, scores = (
        (tmp_path / "text" / f"pseudo.{end}").read_text().split("\n")[:-1] for end in ("en", "de", "scores")
    )
    expected = [(i, r.source, h) for i, r in Translations(decoded).lines() for h in r.hypotheses]
    assert source == [text for _, text, _ in expected] and target == [h.text for _, _, h in expected]
    assert [line.split("\t")[0] for line in scores] == [str(i) for i, _, _ in expected]


def test_killed_at_random_moments_the_output_is_the_same(teacher, tmp_path, monkeypatch):
    corpus = tmp_path / "few.en"
    corpus.write_text("".join(line + "\n" for line in LINES[:12]))
    quick = ["--beam", 1, "--max-len-b", 2, "--shard-sentences", 2]
    calls = {"left": 10**9}
    written = []

    def counted(real):
        def call(*arguments):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Killed
            if real is real_shard:
                written.append(arguments[1])
            return real(*arguments)

        return call

    real_shard = TranslationsFolder.write_records
    monkeypatch.setattr(TranslationsFolder, "write_records", counted(real_shard))
    monkeypatch.setattr(files.os, "fsync", counted(os.fsync))
    monkeypatch.setattr(files.os, "replace", counted(os.replace))
    run(teacher, corpus, tmp_path / "whole", *quick)
    moments = {random.Random(number).randint(1, 24) for number in range(20)}
    assert len(moments) > 10
    for moment in moments:
        folder = tmp_path / f"killed{moment}"
        calls["left"] = moment
        written.clear()
        with pytest.raises(Killed):
            run(teacher, corpus, folder, *quick)
        assert not (folder / MANIFEST).exists()
        finished = {path.stem for path in folder.glob("shard-*.json")}
        calls["left"] = 10**9
        written.clear()
        run(teacher, corpus, folder, *quick)
        assert not finished & set(written), "a finished shard was decoded again"
        assert tree(folder) == tree(tmp_path / "whole") and not list(folder.glob(".*.tmp"))


def test_jobs_share_the_shards(teacher, corpus, tmp_path, decoded, capsys):
    for job in (2, 0, 1):
        run(teacher, corpus, tmp_path, "--nbest", 3, "--num-shards", 3, "--shard-id", job)
        assert (tmp_path / MANIFEST).exists() == (job == 1)
    assert "missing" in capsys.readouterr().out and tree(tmp_path) == tree(decoded)


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_draws_depend_on_the_seed_alone(teacher, corpus, tmp_path, engine):
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    flags = ["--engine", engine, "--sampling", "--beam", 4, "--nbest", 4]
    for name, seed in (("one", 1), ("other", 2)):
        run(teacher, corpus, tmp_path / name, *flags, "--seed", seed)
    for job in (1, 0):
        run(teacher, corpus, tmp_path / "jobs", *flags, "--num-shards", 2, "--shard-id", job)
    assert tree(tmp_path / "one") == tree(tmp_path / "jobs")
    texts = [[r.hypotheses for r in Translations(tmp_path / name).records()] for name in ("one", "other")]
    assert texts[0] != texts[1]
    assert any(len({h.text for h in hypotheses}) > 1 for hypotheses in texts[0])


def test_ensemble_averages_probabilities(teacher, corpus, tmp_path, decoded, capsys):
    run(f"{teacher}:{teacher}", corpus, tmp_path / "same", "--nbest", 3)
    assert re.search(r"decode: 100%\|.* [\d.]+k?sent/s", capsys.readouterr().err)
    same, alone = (list(Translations(folder).records()) for folder in (tmp_path / "same", decoded))
    assert [[h.text for h in r.hypotheses] for r in same] == [[h.text for h in r.hypotheses] for r in alone]
    run(f"{teacher}:{teacher.with_name('2.pt')}", corpus, tmp_path / "two", "--nbest", 3)
    assert [r.hypotheses for r in Translations(tmp_path / "two").records()] != [r.hypotheses for r in alone]


def test_lines_of_1_and_1024_tokens_unknown_words_and_odd_bytes(teacher, tmp_path, capsys):
    corpus = tmp_path / "odd.en"
    long, fits = " ".join(["word1"] * 1024), " ".join(["word2"] * 63)
    corpus.write_bytes("\r\n".join(["word1", long, "", "unheard of \U0001f600", "\t ", fits, "word3 \0"]).encode())
    run(teacher, corpus, tmp_path / "out")
    records = dict(Translations(tmp_path / "out").lines())
    assert sorted(records) == list(range(7)) and records[1].hypotheses == [] and records[1].source == long
    assert records[2].hypotheses == records[4].hypotheses == [("", 0.0)]
    assert all(len(records[line].hypotheses) == 1 for line in (0, 3, 5, 6))
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    expected = {"empty_lines": 2, "too_long_lines": 1, "capped_lines": 4, "lines_with_unknown_symbols": 2}
    assert counts_of(tmp_path / "out") == expected and set(manifest["counts"]) > set(expected)
    assert "empty lines 2, too long lines 1" in capsys.readouterr().out


def test_full_disk_keeps_what_is_finished_and_names_the_file(teacher, corpus, tmp_path, monkeypatch, decoded, capsys):
    run(teacher, corpus, tmp_path, "--nbest", 3, "--num-shards", 2)
    before = tree(tmp_path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        run(teacher, corpus, tmp_path, "--nbest", 3, status=1)
    assert "shard-00001.jsonl" in capsys.readouterr().err and tree(tmp_path) == before
    run(teacher, corpus, tmp_path, "--nbest", 3)
    assert tree(tmp_path) == tree(decoded)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nbest", 6], "--nbest 6, --beam 5"),
        (["--sampling-topk", 3], "of no effect without --sampling"),
        (["--temperature", 0], "--temperature"),
        (["--shard-id", 1], "--shard-id 1"),
        (["--workers", -1], "--workers -1"),
        (["--shard-sentences", 0], "--shard-sentences 0"),
        (["--compute-type", "int8"], "--compute-type int8"),
        (["somewhere"], "either DATA"),
        (["--beam", 4], "other options"),
        (["--nbest", 3, "--model-overrides", '{"dropout": 0.5}'], "other options"),
    ],
)
def test_refusals_name_the_flag_and_leave_the_folder_alone(teacher, corpus, decoded, capsys, flags, message):
    before = tree(decoded)
    run(teacher, corpus, decoded, *flags, status=1)
    error = capsys.readouterr().err
    assert message in error and tree(decoded) == before


def test_checkpoint_that_is_not_there_or_not_for_these_languages(teacher, corpus, tmp_path, capsys):
    run(tmp_path / "none.pt", corpus, tmp_path / "out", status=1)
    assert "none.pt" in capsys.readouterr().err
    run(teacher, corpus, tmp_path / "out", "-t", "fr", status=1)
    assert "dict.fr.txt" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--remove-bpe", "subword_nmt"], ["--remove-bpe"]])  # without a value: fairseq's
def test_segmented_text_is_put_together_on_both_sides(flag, tmp_path):
    words = ["dog@@", "s", "run", "cat"]
    write_dictionaries(tmp_path, words)
    flags = ["-s", "en", "-t", "de", *MODEL]
    make_checkpoint(tmp_path / "t.pt", tmp_path, *flags)
    corpus = tmp_path / "in.en"
    corpus.write_text("dog@@ s run\ncat run\n")
    command = ["decode", "--input", corpus, "--path", tmp_path / "t.pt", "--max-len-b", 5, "--output"]
    assert main(list(map(str, [*command, tmp_path / "out", *flag]))) == 0
    assert [record.source for record in Translations(tmp_path / "out").records()] == ["dogs run", "cat run"]


def test_wrong_segmentation_is_refused(teacher, tmp_path, capsys):
    corpus = tmp_path / "in.en"
    corpus.write_text("of another segmentation altogether\n" * 2 + " ".join(f"x{i}" for i in range(20)) + "\n")
    run(teacher, corpus, tmp_path / "out", status=1)
    assert "not in the model's dictionary" in capsys.readouterr().err
    run(teacher, corpus, tmp_path / "other", "--remove-bpe", "sentencepiece", status=1)
    assert "--remove-bpe subword_nmt" in capsys.readouterr().err


def test_another_dictionary_makes_other_shards(tmp_path, capsys):
    """A shard of the wrong dictionary is not taken over once the right one is there."""
    write_dictionaries(tmp_path, WORDS)
    make_checkpoint(tmp_path / "t.pt", tmp_path, "-s", "en", "-t", "de", *MODEL)
    corpus = tmp_path / "in.en"
    corpus.write_text("word1 word2\nword3\n")
    write_dictionaries(tmp_path, WORDS[::-1])
    flags = ["--shard-sentences", 1, "--num-shards", 2]
    run(tmp_path / "t.pt", corpus, tmp_path / "out", *flags)
    write_dictionaries(tmp_path, WORDS)
    run(tmp_path / "t.pt", corpus, tmp_path / "out", "--shard-sentences", 1, status=1)
    assert "shard-00000" in capsys.readouterr().err


def test_each_worker_has_its_own_gpu(teacher, corpus, tmp_path, monkeypatch):
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    from kd_plugin.checkpoints import ctranslate2_models

    opened = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(ctranslate2_models, "open_translator", lambda *arguments: opened.append(arguments))
    arguments = [
        "decode",
        "--input",
        corpus,
        "--path",
        teacher,
        "--output",
        tmp_path,
        "--engine",
        "ctranslate2",
        *COMMON,
    ]
    args = build_parser("decode").parse_args(list(map(str, arguments)))
    session = decode.Session(cli_decode.corpus(args), 5)
    session.prepare()
    assert session._engine._decoder and opened[0][1] == "cuda" and opened[0][-1] == 5


@pytest.mark.parametrize("content", ["", "\n", "\n \n\t\n\n"])
def test_a_corpus_without_a_sentence_is_an_error(teacher, tmp_path, capsys, content):
    (tmp_path / "blank").write_text(content)
    run(teacher, tmp_path / "blank", tmp_path / "out", status=1)
    assert f"blank: no sentence in its {content.count(chr(10))} lines" in capsys.readouterr().err


def test_lines_that_are_all_too_long_are_an_error(teacher, tmp_path, capsys):
    (tmp_path / "long").write_text(("word1 " * 100 + "\n") * 3)
    run(teacher, tmp_path / "long", tmp_path / "out", status=1)
    assert "no translation for any of 3 lines (too long lines 3)" in capsys.readouterr().err
