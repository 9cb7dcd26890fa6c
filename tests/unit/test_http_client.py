"""--engine http's requests against a server on this machine that misbehaves in every way a server can."""

import asyncio
import email.utils
import json
import re
import subprocess
import sys
import time

import pytest

pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("tenacity", reason="tenacity is not installed")

from kd_plugin.cli import main
from kd_plugin.corpus.translations import Translations
from kd_plugin.decoding.http import client as clients
from kd_plugin.decoding.http.engine import ANSWER_TOKENS, PROMPT_TOKENS, UNSCORED, HttpEngine
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.decoding.http.prompt import parse
from kd_plugin.decoding.http.replies import Reply
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import MANIFEST
from tests.llm_server import KEY, score_of, serving, translation
from tests.support import ROOT, free_port
from tests.unit.translation_folders import counts_of

LINES = [f"line {number} of a dog" for number in range(12)]
OVERLOADED = (503, {}, {"error": {"message": "overloaded"}})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Random waits in milliseconds; what a server asks for is waited for."""
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.002)
    monkeypatch.setattr(clients, "LONGEST_WAIT", 0.02)


def ask(server, sources=("a dog",), **options):
    """What Client gives for each sentence: a Reply or the exception; and the client."""
    options = HttpOptions(url=server.url, model="m", **options)

    async def ask_all():
        async with clients.Client(options) as client:
            bodies = [{"model": "m", "messages": [{"role": "user", "content": source}]} for source in sources]
            return await asyncio.gather(*map(client.ask, bodies), return_exceptions=True), client

    return asyncio.run(ask_all())


FAULTS = {
    "429": (429, {}, {"error": {"message": "slow down"}}),
    "500": (500, {}, b"boom"),
    "502": (502, {}, b"<html>Bad Gateway</html>"),
    "broken": "drop",
    "broken half": "half",
    "timeout": "hang",
    "malformed": (200, {}, b'{"choices": [{"message": {"con'),
    "malformed empty": (200, {}, b""),
    "malformed html": (200, {}, b"<html></html>"),
    "malformed no choices": (200, {}, {"choices": []}),
    "malformed abort": (200, {}, {"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}),
    "broken gzip": (200, {"Content-Encoding": "gzip"}, b"no gzip"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_same_is_asked_again(name):
    def behave(asked):
        return FAULTS[name] if asked.attempt <= 2 else None

    with serving(behave) as server:
        (reply,), client = ask(server, timeout=0.5)
        assert isinstance(reply, Reply) and reply.choices[0].text == translation("a dog")
        assert [asked.body for asked in server.asked] == [server.asked[0].body] * 3
    assert client.requests == 3 and client.faults == {name.split()[0]: 2}


@pytest.mark.parametrize("name", FAULTS)
def test_after_as_many_faults_as_retries_a_sentence_is_given_up_and_others_are_not(name):
    def behave(asked):
        return FAULTS[name] if asked.source == "bad" else None

    with serving(behave) as server:
        (good, bad, also), _ = ask(server, ("good", "bad", "also"), timeout=0.5, retries=2)
        assert good.choices[0].text == "DOOG" and also.choices[0].text == "OSLA"
        assert isinstance(bad, clients.NoAnswer) and bad.name == "failed_lines"
        assert server.counts == {"good": 1, "bad": 3, "also": 1}


@pytest.mark.parametrize(
    "answer, name",
    [
        ((400, {}, {"error": {"code": "context_length_exceeded", "message": "x"}}), "too_long_lines"),
        ((400, {}, {"message": "This model's maximum context length is 2048 tokens."}), "too_long_lines"),
        ((400, {}, {"error": "the request exceeds the available context size"}), "too_long_lines"),
        ((413, {}, b""), "too_long_lines"),
        ((422, {}, {"detail": "n is not supported"}), "rejected_lines"),
        ((400, {}, {"error": {"message": "bad request"}}), "rejected_lines"),
        ((400, {}, {"error": {"code": "content_filter", "message": "x"}}), "refused_answers"),
    ],
)
def test_what_a_server_rejects_is_not_asked_again(answer, name):
    with serving(lambda asked: answer) as server:
        (error,), _ = ask(server)
        assert isinstance(error, clients.NoAnswer) and error.name == name and len(server.asked) == 1


@pytest.mark.parametrize(
    "answer, message",
    [
        ((401, {}, b"who are you"), "401 Unauthorized: who are you. Remedy: use the right key"),
        ((403, {}, b""), "403 Forbidden. Remedy: use the right key"),
        (
            (404, {}, {"error": {"message": "The model `m` does not exist."}}),
            "does not exist.. Remedy: correct --url",
        ),
        ((302, {"Location": "http://elsewhere"}, b""), "302 Found. Remedy: use the address"),
        ((402, {}, {"error": {"message": "pay"}}), "402 Payment Required: pay"),
        ((429, {}, {"error": {"code": "insufficient_quota", "message": "broke"}}), "broke. Remedy: increase the quota"),
        ((429, {"Retry-After": "86400"}, b""), "asks to wait 86400 s. Remedy: run the same command again after that"),
    ],
)
def test_what_no_sentence_can_pass_is_an_error_at_once(answer, message):
    with serving(lambda asked: answer) as server:
        (error,), _ = ask(server)
        assert isinstance(error, KDPluginError) and message in str(error) and len(server.asked) == 1


def test_a_server_that_is_not_there_is_an_error_soon():
    class Nobody:
        url = f"http://127.0.0.1:{free_port()}/v1"

    (error,), client = ask(Nobody, retries=100)
    assert isinstance(error, KDPluginError) and "cannot be reached" in str(error) and Nobody.url in str(error)
    assert client.requests == 1 + clients.RETRIES_AT_FIRST


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form):
    def behave(asked):
        if asked.attempt == 1:
            # a date has whole seconds
            value = "1" if form == "seconds" else email.utils.formatdate(int(time.time()) + 2, usegmt=True)
            return 429, {"Retry-After": value}, b""

    with serving(behave) as server:
        (reply,), _ = ask(server)
        assert reply.choices and 0.95 <= server.asked[1].time - server.asked[0].time < 3.5


def test_waits_are_random_and_double(monkeypatch):
    waits, real = [], clients._wait

    def told(state):
        waits.append(real(state))
        return 0

    monkeypatch.setattr(clients, "FIRST_WAIT", 0.5)
    monkeypatch.setattr(clients, "LONGEST_WAIT", 60.0)
    monkeypatch.setattr(clients, "_wait", told)
    with serving(lambda asked: OVERLOADED) as server:
        for _ in range(20):
            ask(server, retries=9)
    for number in range(9):
        some = waits[number :: len(waits) // 20]  # tenacity may ask for one more, which nobody waits for
        assert len(some) == len(set(some)) == 20 and max(some) <= min(60, 0.5 * 2**number)
        assert number < 2 or max(some) > 0.5 * min(60, 0.5 * 2**number)


def test_a_reply_that_never_ends_is_given_up_in_time_and_size(monkeypatch):
    def trickle(asked):
        return 200, {"Content-Length": "1000000"}, b'{"choices":'

    begin = time.monotonic()
    with serving(trickle) as server:
        (error,), _ = ask(server, timeout=0.3, retries=1)
        assert isinstance(error, clients.NoAnswer) and "0.3 s (--timeout)" in str(error)
        assert time.monotonic() - begin < 3
    monkeypatch.setattr(clients, "LARGEST", 1000)
    with serving(lambda asked: (200, {}, b" " * 2000)) as server:
        (error,), _ = ask(server, retries=0)
        assert isinstance(error, clients.NoAnswer) and "longer than 1,000 bytes" in str(error)


def test_the_key_is_sent_and_a_server_that_repeats_it_cannot_have_it_printed(monkeypatch):
    monkeypatch.setenv("KD_KEY", KEY)
    with serving(key=KEY) as server:
        assert ask(server, api_key_env="KD_KEY")[0][0].choices
        assert "401" in str(ask(server)[0][0])
    with serving(key="another") as server:
        (error,), _ = ask(server, api_key_env="KD_KEY")
        assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        assert "Incorrect API key provided: …" in str(error) and KEY not in str(error)


# from here on the whole verb, in this process


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "in.en"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def decode(server, corpus, output, *flags, status=0):
    common = ["--engine", "http", "--model", "m", "-s", "en", "-t", "de", "--retries", 2]
    arguments = ["decode", "--url", server.url, "--input", corpus, "--output", output, *common, *flags]
    assert main(list(map(str, arguments))) == status


def test_scores_are_mean_log_probabilities_where_the_server_has_them(corpus, tmp_path):
    for api in ("chat", "completions"):
        with serving() as server:
            decode(server, corpus, tmp_path / api, "--logprobs", "--api", api)
            assert {asked.path for asked in server.asked} == {
                "/v1/chat/completions" if api == "chat" else "/v1/completions"
            }
        for _, record in Translations(tmp_path / api).lines():
            ((text, score),) = record.hypotheses
            assert text == translation(record.source) and score == pytest.approx(score_of(text), abs=1e-12)
    with serving(logprobs=False) as server:
        decode(server, corpus, tmp_path / "none", "--logprobs")
    assert [h.score for _, record in Translations(tmp_path / "none").lines() for h in record.hypotheses] == [None] * 12
    assert counts_of(tmp_path / "none")["translations_without_score"] == 12


def test_n_samples_differ_by_their_seeds_and_servers_that_give_one_are_asked_again(corpus, tmp_path):
    flags = ["--sampling", "--nbest", 3, "--temperature", 0.7, "--sampling-topp", 0.9]

    def one_at_a_time(asked):
        return 200, {}, server.reply({**asked._asdict()} and asked._replace(body={**asked.body, "n": 1}))

    folders = []
    for behaviour in (lambda asked: None, one_at_a_time):
        for seed in (1, 1, 2):
            with serving(behaviour) as server:
                folder = tmp_path / f"out{len(folders)}"
                decode(server, corpus, folder, *flags, "--seed", seed)
                folders.append({record.source: record.hypotheses for record in Translations(folder).records()})
                seeds = [asked.body["seed"] for asked in server.asked]
                assert len(set(seeds)) == len(seeds) == (12 if behaviour is not one_at_a_time else 36)
                assert all(asked.body["temperature"] == 0.7 and asked.body["top_p"] == 0.9 for asked in server.asked)
        assert folders[-3] == folders[-2] != folders[-1]
    assert all(len(set(hypotheses)) == 3 for folder in folders for hypotheses in folder.values())


def test_samples_with_scores_come_best_first(corpus, tmp_path):
    with serving() as server:
        decode(server, corpus, tmp_path / "out", "--sampling", "--nbest", 4, "--logprobs")
    for record in Translations(tmp_path / "out").records():
        scores = [hypothesis.score for hypothesis in record.hypotheses]
        assert (
            len(set(scores)) > 1
            and scores == sorted(scores, reverse=True)
            and scores == [score_of(h.text) for h in record.hypotheses]
        )


BAD = {
    "empty_answers": ("",),
    "refused_answers": ("I'm sorry, but I can't assist with that.",),
    "answers_of_several_lines": ("one\ntwo",),
    "overlong_answers": ("und so weiter " * 40,),
    "answers_in_another_script": ("три собаки бегут",),
    "broken_answers": ("a\x00b",),
}


def test_bad_answers_are_counted_by_their_reason_and_leave_the_others_alone(corpus, tmp_path):
    """Two of the equal lines among them: lines and answers are counted apart."""
    corpus.write_text(corpus.read_text() + LINES[0] + "\n")
    reasons = dict(zip(LINES, BAD))

    def behave(asked):
        if asked.source in reasons:
            return 200, {}, server.reply(asked, *BAD[reasons[asked.source]])
        if asked.source == LINES[6]:
            return 200, {}, server.reply(asked, "cut off in the", finish="length")
        if asked.source == LINES[7]:
            return 400, {}, {"error": {"code": "context_length_exceeded", "message": "x"}}
        if asked.source == LINES[8]:
            return 422, {}, {"error": {"message": "x"}}
        if asked.source == LINES[9]:
            return OVERLOADED

    with serving(behave) as server:
        decode(server, corpus, tmp_path / "out", "--expect-script", "latin", "--text", tmp_path / "text")
        tokens = sum(len(line) for line in LINES[:7] + LINES[10:])
    counts = counts_of(tmp_path / "out")
    for name in (*BAD, "cut_off_answers", "rejected_lines", "failed_lines", "too_long_lines"):
        assert counts[name] == 1, name
    assert counts["lines_without_good_answer"] == 8 and counts["prompt_tokens"] == tokens
    lines = dict(Translations(tmp_path / "out").lines())
    assert sorted(lines) == list(range(13))
    assert [line for line in lines if lines[line].hypotheses] == [10, 11]
    assert (tmp_path / "text.de").read_text() == "".join(f"{translation(line)}\n" for line in LINES[10:])


def test_a_server_that_rejects_everything_is_told_from_sentences_that_it_rejects(tmp_path, capsys):
    """The sentences are not noted as rejected: the next run asks them again, and goes on with the others."""
    corpus = tmp_path / "in.en"
    many = [f"number {number}" for number in range(60)]
    corpus.write_text("".join(f"{line}\n" for line in many))

    def behave(asked):
        return None if int(asked.source.split()[1]) < 5 else (400, {}, {"error": {"message": "unknown field"}})

    with serving(behave) as server:
        decode(server, corpus, tmp_path / "out", "--concurrency", 1, status=1)
        assert len(server.asked) == 25
        error = capsys.readouterr().err
        assert "no answer to 20 sentences in a row" in error and "unknown field" in error and "Remedy: " in error
        server.behaviour = lambda asked: None
        decode(server, corpus, tmp_path / "out", "--concurrency", 1)
        assert all(server.counts[line] == (2 if 5 <= number < 25 else 1) for number, line in enumerate(many))
    assert (
        "rejected_lines" not in counts_of(tmp_path / "out") and len(list(Translations(tmp_path / "out").lines())) == 60
    )


def test_shards_smaller_than_the_patience_are_no_way_around_it(tmp_path, capsys):
    corpus = tmp_path / "in.en"
    many = [f"number {number}" for number in range(60)]
    corpus.write_text("".join(f"{line}\n" for line in many))

    def behave(asked):
        return None if int(asked.source.split()[1]) < 5 else (400, {}, {"error": {"message": "unknown field"}})

    with serving(behave) as server:
        flags = ["--concurrency", 1, "--shard-sentences", 8]
        decode(server, corpus, tmp_path / "out", *flags, status=1)
        assert len(server.asked) == 25 and "no answer to 20 sentences in a row" in capsys.readouterr().err
        server.behaviour = lambda asked: None
        decode(server, corpus, tmp_path / "out", *flags)
        again = {number for number, line in enumerate(many) if server.counts[line] > 1}
        # the first three shards were written before the server was given up
        assert again == {24}
    assert counts_of(tmp_path / "out")["rejected_lines"] == 19


def test_a_first_try_on_a_few_lines_can_be_tried_again(corpus, tmp_path, capsys):
    with serving(lambda asked: (400, {}, {"error": {"message": "unknown field"}})) as server:
        decode(server, corpus, tmp_path / "out", status=1)
        assert "no answer to 12 sentences in a row; the last time: 400 Bad Request: unknown" in capsys.readouterr().err
        assert not list((tmp_path / "out").glob("shard-*"))
        server.behaviour = lambda asked: None
        decode(server, corpus, tmp_path / "out")
    assert len(list(Translations(tmp_path / "out").lines())) == 12


def test_a_wrong_key_ends_it_at_once_and_the_right_one_goes_on(corpus, tmp_path, monkeypatch, capsys):
    with serving(key=KEY) as server:
        monkeypatch.setenv("KD_KEY", "wrong")
        decode(server, corpus, tmp_path / "out", "--api-key-env", "KD_KEY", status=1)
        assert "Remedy: use the right key in --api-key-env" in capsys.readouterr().err
        monkeypatch.setenv("KD_KEY", KEY)
        decode(server, corpus, tmp_path / "out", "--api-key-env", "KD_KEY")
        for path in (tmp_path / "out").rglob("*"):
            assert KEY.encode() not in path.read_bytes()
    said = capsys.readouterr()
    assert KEY not in said.out + said.err


def test_no_more_requests_at_a_time_than_asked_for(corpus, tmp_path):
    def slowly(asked):
        time.sleep(0.05)

    for number in (1, 4):
        with serving(slowly) as server:
            decode(server, corpus, tmp_path / f"out{number}", "--concurrency", number)
            assert server.most_at_once == number == len(server.connections), "connections stay open"


def test_a_server_that_refuses_n_is_told_one(corpus, tmp_path):
    with serving(lambda asked: (400, {}, {"error": "n"}) if asked.body.get("n", 1) > 1 else None) as server:
        flags = ["--sampling", "--nbest", 2]
        decode(server, corpus, tmp_path / "out", *flags, status=1)
        decode(server, corpus, tmp_path / "one", *flags, "--extra-body", '{"n": 1}')
    assert all(len(set(record.hypotheses)) == 2 for record in Translations(tmp_path / "one").records())


def test_the_order_of_answers_does_not_matter(corpus, tmp_path):
    def at_random(asked):
        time.sleep(hash(asked.source) % 7 / 100)

    for name, behaviour, concurrency in (("a", lambda asked: None, 1), ("b", at_random, 12)):
        with serving(behaviour) as server:
            decode(server, corpus, tmp_path / name, "--concurrency", concurrency, "--shard-sentences", 5)
    for path in (tmp_path / "a").glob("*.json*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_server_may_move_but_not_change_its_model_or_prompt(corpus, tmp_path, capsys):
    with serving(lambda asked: (401, {}, b"") if asked.source == LINES[11] else None) as server:
        decode(server, corpus, tmp_path / "out", "--concurrency", 1, status=1)
        for other in (["--model", "other"], ["--max-len-b", 90], ["--extra-body", '{"top_k": 2}'], ["--logprobs"]):
            before = len(server.asked)
            decode(server, corpus, tmp_path / "out", *other, status=1)
            assert "--output" in capsys.readouterr().err and len(server.asked) == before
    with serving() as server:
        decode(server, corpus, tmp_path / "out")
        assert list(server.counts) == [LINES[11]]
    assert (tmp_path / "out" / MANIFEST).is_file() and not list((tmp_path / "out").glob(".shard*"))


def test_extra_fields_are_sent_and_null_takes_one_out(corpus, tmp_path):
    with serving() as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 300}
        decode(server, corpus, tmp_path / "out", "--extra-body", json.dumps(extra))
        body = server.asked[0].body
    assert body == {
        "model": "m", "temperature": 0, "messages": body["messages"], "max_completion_tokens": 300,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


@pytest.mark.parametrize(
    "flags",
    [
        ["--path", "a.pt"], ["--beam", 5], ["--lenpen", 1.0], ["--unkpen", 0.0], ["--max-len-a", 0.0],
        ["--sampling-topk", 5, "--sampling"], ["--compute-type", "auto"], ["--max-tokens", 4000],
        ["--gen-subset", "train"], ["--model-overrides", "{}"], ["--dict-dir", "a"], ["--remove-bpe", "sentencepiece"],
        ["--sentencepiece-model", "a"], ["--source-sentencepiece-model", "a"], ["--model-source-lang", "en"],
        ["--user-dir", "a"], ["--source-prefix", "a"],
    ],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_flags_that_a_server_has_no_word_for_are_refused_even_at_their_defaults(flags, corpus, tmp_path, capsys):
    with serving() as server:
        decode(server, corpus, tmp_path / "out", *flags, status=1)
        assert not server.asked
    assert f"{flags[0]}: is not for --engine http. Remedy: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [["--url", "http://a/v1"], ["--model", "m"], ["--concurrency", "16"], ["--logprobs"], ["--api", "chat"]],
    ids=lambda flags: flags[0],
)
def test_flags_of_servers_are_refused_without_one(flags, corpus, tmp_path, capsys):
    arguments = ["decode", "--input", str(corpus), "--path", "a.pt", "--output", str(tmp_path / "out"), *flags]
    assert main(arguments) == 1
    assert f"{flags[0]}: only for --engine http. Remedy: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--nbest", 2], "--nbest 2: without draws, all would be equal. Remedy: add --sampling"),
        (["--temperature", 0.5], "--temperature: of no effect without --sampling"),
        (["--sampling-topp", 0.5], "--sampling-topp: of no effect without --sampling"),
        (["--prompt", "nowhere.txt"], "--prompt nowhere.txt"),
        (["--few-shot", "nowhere.tsv"], "--few-shot nowhere.tsv"),
        (["--target-lang", "xx"], "--target-lang xx: no language with this code"),
        (["--target-lang", "en"], "--target-lang en is also the source language"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_request(flags, message, corpus, tmp_path, capsys):
    with serving() as server:
        decode(server, corpus, tmp_path / "out", *flags, status=1)
        assert not server.asked and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_languages_and_raw_text_are_needed(corpus, tmp_path, capsys):
    common = ["--engine", "http", "--url", "http://a/v1", "--model", "m", "--output", str(tmp_path / "out")]
    assert main(["decode", "--input", str(corpus), "-s", "en", *common]) == 1
    assert "Remedy: -s LANG -t LANG" in capsys.readouterr().err
    assert main(["decode", str(tmp_path), "-s", "en", "-t", "de", *common]) == 1
    assert "DATA: is not for --engine http" in capsys.readouterr().err


def test_the_prompt_may_not_be_written_over(corpus, tmp_path, capsys):
    prompt = tmp_path / "pseudo.de"
    prompt.write_text("{source}")
    with serving() as server:
        decode(server, corpus, tmp_path / "out", "--prompt", prompt, "--text", tmp_path / "pseudo", status=1)
        assert "would overwrite --prompt" in capsys.readouterr().err and not server.asked
    assert prompt.read_text() == "{source}"


def test_a_journal_of_another_job_is_nobody_s_to_write_over(corpus, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".shard-00000.answers").write_text("mine\n")
    with serving() as server:
        decode(server, corpus, tmp_path / "out", status=1)
        assert ".shard-00000.answers already exists" in capsys.readouterr().err and not server.asked
    assert (tmp_path / "out" / ".shard-00000.answers").read_text() == "mine\n"


def test_the_page_has_a_template_that_can_be_filled_in_and_every_count():
    page = (ROOT / "docs" / "how-to" / "llm-server.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert {name for _, name in parse(template, "the page")} == {"source", "source_lang", "target_lang", None}
    rows, others = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE), (UNSCORED, PROMPT_TOKENS, ANSWER_TOKENS)
    assert sorted([*rows, *others]) == sorted(HttpEngine.counted) and all(f"`{name}`" in page for name in others)


def test_no_other_engine_and_no_help_text_imports_what_requests_need():
    code = "import sys; from kd_plugin.cli import build_parser; build_parser('decode').format_help()\n"
    code += "import kd_plugin.decoding.decode, kd_plugin.decoding.symbol_engines, kd_plugin.cli.score\n"
    code += "assert not {'httpx', 'tenacity', 'babel'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_without_the_extra_it_is_named(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with serving() as server:
        decode(server, corpus, tmp_path / "out", status=1)
    assert "Remedy: pip install 'kd-plugin[http]'" in capsys.readouterr().err
