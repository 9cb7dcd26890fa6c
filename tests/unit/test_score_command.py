"""Scores by a command of the user's: each translation gets its own, and a command that fails scores nothing."""

import os
import signal
import time

import pytest

from kd_plugin.corpus.translations import Translations, TranslationsFolder
from kd_plugin.files.sharded_folder import MANIFEST
from tests.support import start
from tests.unit.test_score import LOOSE, RECORDS, Killed
from tests.unit.translation_folders import record, records_of, refusal, run_verb, write_folder

# longer is better; what is given is given back, so that the test sees it
LENGTH = "awk -F'\\t' '{ print length($2) - length($1) / 100 }'"


def length(source, text):
    return len(text) - len(source) / 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translations") / "in"
    write_folder(folder, RECORDS, input_lines=40)
    return folder


def tree(where):
    return {path.name: path.read_bytes() for path in where.iterdir()}


def test_each_translation_has_its_own_score(folder, tmp_path):
    run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "out")
    scored = records_of(tmp_path / "out")
    assert [(r.ids, r.source, [h.text for h in r.hypotheses]) for r in scored] == [
        (r.ids, r.source, [h.text for h in r.hypotheses]) for r in RECORDS
    ]
    for each in scored:
        for hypothesis in each.hypotheses:
            assert hypothesis.score == pytest.approx(length(each.source, hypothesis.text))
    identity = Translations(tmp_path / "out").manifest.identity
    assert identity == {"verb": "score", "command": LENGTH, "input": Translations(folder).manifest.digest()}


def test_they_choose_and_filter(folder, tmp_path):
    run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "out", "--text", tmp_path / "text")
    run_verb("select", tmp_path / "out", "--by", "score", "--output", tmp_path / "best")
    for before, chosen in zip(RECORDS, records_of(tmp_path / "best")):
        assert len(chosen.hypotheses[0].text) == max(len(h.text) for h in before.hypotheses)
    scores = sorted(length(r.source, h.text) for r in RECORDS for h in r.hypotheses)
    flags = ["--scores", f"{tmp_path / 'text'}.scores", "--best-scores-share", 0.5]
    run_verb("filter", folder, *flags, "--output", tmp_path / "left", *LOOSE)
    left = sorted(length(r.source, h.text) for r in records_of(tmp_path / "left") for h in r.hypotheses)
    assert left == pytest.approx(scores[-len(left) :]) and 0 < len(left) < len(scores)


def test_what_the_command_reads(tmp_path):
    """UTF-8, one line for each translation, also of nothing; tabs part the two texts and nothing else."""
    odd = [record(0, "", ("", 0.0)), record(1, "a\tb", "ü\t\u2028x", "  y "), record(2, "none"), record(3, "“", "")]
    write_folder(tmp_path / "in", odd, shard_records=10)
    run_verb(
        "score", tmp_path / "in", "--command", f"tee {tmp_path / 'read'} | sed s/.*/1/", "--output", tmp_path / "o"
    )
    assert (tmp_path / "read").read_bytes().decode() == "\t\na b\tü \u2028x\na b\t  y \n“\t\n"
    assert [[h.score for h in r.hypotheses] for r in records_of(tmp_path / "o")] == [[1], [1, 1], [], [1]]


def test_a_command_may_leave_its_input_unread_and_a_program_in_the_background(tmp_path):
    write_folder(tmp_path / "in", [record(0, "a" * 300_000, *("b" * 1000 for _ in range(500)))])
    started = time.monotonic()
    run_verb("score", tmp_path / "in", "--command", "sleep 30 & yes -- -2e-1 | head -n 500", "--output", tmp_path / "o")
    assert time.monotonic() - started < 20
    (scored,) = records_of(tmp_path / "o")
    assert [h.score for h in scored.hypotheses] == [-0.2] * 500


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo 'no model here' >&2; cat > /dev/null; exit 3", "exit status 3 (no model here)"),
        ("kill -9 $$", "signal 9"),
        ("nowhere-to-be-found", "exit status 127"),
        ("sed 's/.*/1/' | head -n 1", "wrote 1 scores for 4 translations"),
        ("sed 's/.*/1/'; echo 1", "wrote 5 scores for 4 translations"),
        ("true", "wrote 0 scores for 4 translations"),
        ("sed '2 s/.*/nan/; 2 ! s/.*/1/'", "line 2 of its output is 'nan'"),
        ("sed '3 s/.*/-inf/; 3 ! s/.*/1/'", "line 3 of its output is '-inf'"),
        ("sed 's/.*/1e999/'", "line 1 of its output is '1e999'"),
        ("echo loading; sed 's/.*/1/'", "line 1 of its output is 'loading'"),
        ("sed 's/.*/1_0/'", "line 1 of its output is '1_0'"),
        ("sed 's/.*/1 2/'", "line 1 of its output is '1 2'"),
        ("sed '4 s/.*//; 4 ! s/.*/1/'", "line 4 of its output is ''"),
        ("printf '\\377\\n'", "invalid UTF-8"),
    ],
)
def test_a_command_that_fails_scores_nothing(folder, tmp_path, capfd, command, message):
    assert message in refusal(capfd, "score", folder, "--command", command, "--output", tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock" and "shard" in path.name]
    assert not (tmp_path / "out" / MANIFEST).exists()
    run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "out")  # the folder is as free as before
    assert (tmp_path / "out" / MANIFEST).exists()


def test_jobs_processes_and_a_restart_write_the_same(folder, tmp_path, monkeypatch, capsys):
    run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "whole")
    run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "processes", "--workers", 2)
    for job in (1, 0):
        split = ["--num-shards", 2, "--shard-id", job]
        run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "jobs", *split)
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
            run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "killed")
    refused = refusal(capsys, "score", folder, "--command", LENGTH + " ", "--output", tmp_path / "killed")
    assert "with other options" in refused
    written[:] = []
    with monkeypatch.context() as patch:
        patch.setattr(TranslationsFolder, "write_records", lambda *all: written.append(all[1]) or real(*all))
        run_verb("score", folder, "--command", LENGTH, "--output", tmp_path / "killed")
    assert written == ["shard-00002", "shard-00003"]
    assert (
        tree(tmp_path / "whole") == tree(tmp_path / "jobs") == tree(tmp_path / "killed") == tree(tmp_path / "processes")
    )


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_ends_the_command_too(folder, tmp_path, workers):
    command = f"sleep 300 & echo $! > {tmp_path}/$$.tmp; mv {tmp_path}/$$.tmp {tmp_path}/$$.pid; wait"
    arguments = ["score", folder, "--command", command, "--output", tmp_path / "out", "--workers", workers]
    process = start("kd-plugin", *arguments)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.pid"))) < workers:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=10)
        time.sleep(0.1)
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert len(pids) == workers and all(map(is_alive, pids))
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "kd-plugin score: terminated" in said and "Traceback" not in said
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "neither --path nor --metric nor --command: exactly one of the three"),
        (["--path", "a.pt", "--command", "cat"], "--path and --command: exactly one of the three"),
        (["--metric", "comet-kiwi", "--command", "cat"], "--metric and --command: exactly one of the three"),
        (["--path", "a.pt", "--metric", "metricx", "--command", "cat"], "--path and --metric and --command"),
        (["--command", "cat", "--max-tokens", 3], "--max-tokens: of no effect with --command"),
        (["--command", "cat", "-s", "en"], "--source-lang: of no effect with --command"),
        (["--command", "cat", "--dict-dir", "d"], "--dict-dir: of no effect with --command"),
        (["--command", "cat", "--model-overrides", '{"a": 1}'], "--model-overrides: of no effect with --command"),
        (["--command", "cat", "--compute-type", "float16"], "--compute-type: of no effect with --command"),
        (["--command", "cat", "--target-sentencepiece-model", "m"], "--target-sentencepiece-model: of no effect"),
        (["--command", "cat", "--batch-size", 3], "--batch-size: of no effect with --command"),
        (["--path", "a.pt", "--batch-size", 3], "--batch-size: of no effect with --path"),
        (["--metric", "comet-kiwi", "--max-tokens", 3], "--max-tokens: of no effect with --metric"),
        (["--command", ""], "--command is empty"),
    ],
)
def test_exactly_one_scores_and_reads_its_own_flags_alone(folder, tmp_path, capsys, flags, message):
    assert message in refusal(capsys, "score", folder, "--output", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
