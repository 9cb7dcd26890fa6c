"""`kd-plugin decode --engine http` as a user runs it, and a server that misbehaves: no line lost or wrong."""

import hashlib
import json
import random
import signal
import time

import pytest

pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("tenacity", reason="tenacity is not installed")

from kd_plugin.corpus.translations import Manifest, Translations
from tests.llm_server import KEY, serving, translation
from tests.support import run, start

WORDS = "a the dog cat house runs sleeps under over green tired seven people snow".split()


def write_corpus(path, size, seed=3):
    """Sentences of 4 to 12 words, all different but for some that come again, and some blank lines."""
    draw = random.Random(seed)
    lines = [f"{number} {' '.join(draw.choices(WORDS, k=draw.randint(3, 11)))}" for number in range(size)]
    for _ in range(size // 50):
        lines[draw.randrange(size // 2, size)] = draw.choice(["", lines[draw.randrange(size // 2)]])
    path.write_text("".join(f"{line}\n" for line in lines))
    return lines


def command(server, corpus, folder, *flags):
    common = ["--model", "m", "-s", "en", "-t", "de", "--input", corpus, "--output", folder]
    return ["kd-plugin", "decode", "--engine", "http", "--url", server.url, *common, *flags]


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments_nothing_is_asked_twice_but_what_was_in_flight(tmp_path):
    lines = write_corpus(tmp_path / "in.en", 240)
    different, concurrency, flags = set(filter(None, lines)), 4, ["--shard-sentences", 70, "--concurrency", 4]

    def slowly(asked):
        time.sleep(0.008)

    with serving(slowly) as server:
        run(*command(server, tmp_path / "in.en", tmp_path / "whole", *flags))
        assert dict(server.counts) == dict.fromkeys(different, 1)
    draw, kills = random.Random(5), 0
    with serving(slowly) as server:
        for _ in range(6):
            process, before = start(*command(server, tmp_path / "in.en", tmp_path / "out", *flags)), len(server.asked)
            moment, deadline = before + draw.randint(1, 36), time.monotonic() + 120
            while process.poll() is None and len(server.asked) < moment and time.monotonic() < deadline:
                time.sleep(0.001)
            if process.poll() is None:
                time.sleep(draw.random() * 0.01)
                process.kill()
                kills += 1
            process.communicate(timeout=60)
        run(*command(server, tmp_path / "in.en", tmp_path / "out", *flags))
        assert set(server.counts) == different and kills == 6
        again = {source: count - 1 for source, count in server.counts.items() if count > 1}
        assert sum(again.values()) <= kills * concurrency and max(again.values(), default=0) <= kills
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


def share(text, what):
    """A number in [0, 1) that depends on the text and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{what} {text}".encode()).digest()[:4], "big") / 2**32


STATUSES = {
    "500": (500, {}, b"boom"), "429": (429, {"Retry-After": "0.05"}, b""),
    "503": (503, {"Retry-After": "0"}, {"error": "later"}), "json": (200, {}, b'{"choices": [{"index": 0, "mess'),
    "html": (200, {}, b"<html></html>"), "nothing": (200, {}, b""), "rejected": (422, {}, {"detail": "no"}),
    "context": (413, {}, b""),
}  # fmt: skip
TEXTS = {
    "empty": " \n", "refusal": "I'm sorry, but I can't assist with that.", "lines": "one\ntwo", "long": "so " * 400,
    "cut": "one", "cyrillic": "три собаки бегут",
}  # fmt: skip
PASSING = ("429", "500", "503", "drop", "half", "json", "html", "nothing", "hang")
LASTING = {
    "429": "failed_lines", "500": "failed_lines", "drop": "failed_lines", "half": "failed_lines",
    "json": "failed_lines", "rejected": "rejected_lines", "context": "too_long_lines", "empty": "empty_answers",
    "refusal": "refused_answers", "lines": "answers_of_several_lines", "long": "overlong_answers",
    "cut": "cut_off_answers", "cyrillic": "answers_in_another_script",
}  # fmt: skip
LOST = ("failed_lines", "rejected_lines", "too_long_lines")


def lasting_fault(source):
    """What no retry mends, of 6 % of the sentences."""
    names = list(LASTING)
    return names[int(share(source, "which") * len(names))] if share(source, "lasting") < 0.06 else None


def test_1000_sentences_against_a_server_with_faults_lose_nothing_silently(tmp_path):
    """5 % of the answers fail in ways that pass, 6 % of the sentences in ways that last; each line is accounted for."""
    lines = write_corpus(tmp_path / "in.en", 1000)

    def behave(asked):
        fault = lasting_fault(asked.source)
        if fault is None and asked.attempt < 3 and share(asked.source, asked.attempt) < 0.05:
            fault = PASSING[int(share(asked.source, f"kind {asked.attempt}") * len(PASSING))]
            if fault == "hang" and share(asked.source, "patience") > 0.3:
                fault = "500"
        if fault in TEXTS:
            return 200, {}, server.reply(asked, TEXTS[fault], finish="length" if fault == "cut" else "stop")
        return STATUSES.get(fault, fault)

    with serving(behave) as server:
        flags = ["--concurrency", 32, "--timeout", 3, "--retries", 3, "--expect-script", "LATIN"]
        output = run(*command(server, tmp_path / "in.en", tmp_path / "out", "--shard-sentences", 300, *flags)).stdout
        asked = len(server.asked)
    expected = {}
    for number, line in enumerate(lines):
        expected[number] = [] if line and lasting_fault(line) else [translation(line)]
    found = {line: record for line, record in Translations(tmp_path / "out").lines()}
    assert {line: [h.text for h in record.hypotheses] for line, record in found.items()} == expected
    assert [found[number].source for number in range(1000)] == lines
    different = set(filter(None, lines))
    assert asked > 1.04 * len(different), "there were faults"
    counts = Manifest.read(tmp_path / "out").counts
    named = [LASTING.get(lasting_fault(line)) for line in lines if line]
    # lines without an answer are counted as lines, answers that are no translations as answers
    once = [LASTING.get(lasting_fault(line)) for line in different]
    wanted = {name: (named if name in LOST else once).count(name) for name in LASTING.values()}
    assert {name: counts[name] for name in wanted} == wanted and all(wanted.values())
    assert counts["lines_without_good_answer"] == sum(name is not None and name not in LOST for name in named)
    assert counts["empty_lines"] == lines.count("")
    lost = sum(counts[name] for name in (*LOST, "lines_without_good_answer"))
    assert sum(map(bool, expected.values())) + lost == 1000
    assert f"{len(different):,} sentences in {asked:,} requests" in output


def test_the_key_is_in_no_file_log_or_manifest(tmp_path):
    write_corpus(tmp_path / "in.en", 60)
    with serving(
        lambda asked: (500, {}, {"error": asked.headers["Authorization"]}) if asked.attempt == 1 else None
    ) as s:
        s.key = KEY
        flags = ["--api-key-env", "KD_KEY", "--text", tmp_path / "out" / "pseudo"]
        output = run(*command(s, tmp_path / "in.en", tmp_path / "out", *flags), env={"KD_KEY": KEY}).stdout
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 6 and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in output and "sentences/s" in output and "faults: 500 " in output


def test_jobs_of_an_array_and_processes_make_the_same(tmp_path):
    write_corpus(tmp_path / "in.en", 120)
    with serving() as server:
        one = command(server, tmp_path / "in.en", tmp_path / "one", "--shard-sentences", 20)
        run(*one)
        for number in (1, 0):
            array = command(server, tmp_path / "in.en", tmp_path / "array", "--shard-sentences", 20)
            run(*array, "--num-shards", 2, "--shard-id", number)
        run(*command(server, tmp_path / "in.en", tmp_path / "two", "--shard-sentences", 20, "--workers", 2))
    assert tree(tmp_path / "one") == tree(tmp_path / "array") == tree(tmp_path / "two")


@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_stop_ends_it_at_once_and_the_same_command_goes_on(tmp_path, number, word):
    write_corpus(tmp_path / "in.en", 40)
    with serving(lambda asked: "hang" if len(server.asked) > 20 else None) as server:
        process = start(*command(server, tmp_path / "in.en", tmp_path / "out", "--concurrency", 4))
        while len(server.asked) < 24 and process.poll() is None:
            time.sleep(0.01)
        begin = time.monotonic()
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
        assert time.monotonic() - begin < 5 and process.returncode == 128 + number
        assert f"{word}: finished shards are kept" in output and "Traceback" not in output
        answered = {source for source, count in server.answered.items() if count}
        server.behaviour, server.asked[:] = lambda asked: None, []
        run(*command(server, tmp_path / "in.en", tmp_path / "out"))
        assert not answered & {asked.source for asked in server.asked} and answered


def test_what_it_makes_goes_through_select_and_filter(tmp_path):
    lines = [line for line in write_corpus(tmp_path / "in.en", 80) if line]
    (tmp_path / "in.en").write_text("".join(f"{line}\n" for line in lines))
    with serving() as server:
        flags = ["--sampling", "--nbest", 3, "--logprobs"]
        run(*command(server, tmp_path / "in.en", tmp_path / "out", *flags))
    run("kd-plugin", "select", tmp_path / "out", "--by", "score", "--output", tmp_path / "best")
    run("kd-plugin", "filter", tmp_path / "best", "--output", tmp_path / "clean", "--text", tmp_path / "text")
    best = {record.source: record.hypotheses[0] for record in Translations(tmp_path / "out").records()}
    assert {r.source: r.hypotheses[0] for r in Translations(tmp_path / "best").records()} == best
    assert json.loads((tmp_path / "clean" / "manifest.json").read_text())["lines"] > 0
