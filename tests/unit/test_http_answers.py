"""--engine http without a server: what is asked, what counts as a translation, and what a journal remembers."""

import json
import math
import os

import pytest

from kd_plugin.corpus.language_names import english_name
from kd_plugin.decoding.http import answers, journal, replies
from kd_plugin.decoding.http.answers import Choice, Rules, fault_of, translation_in
from kd_plugin.decoding.http.journal import Entry, Journal
from kd_plugin.decoding.http.options import HttpOptions
from kd_plugin.decoding.http.prompt import open_prompt, parse
from kd_plugin.errors import KDPluginError

SOURCE = "Three dogs are running through the deep snow."
GOOD = "Drei Hunde laufen durch den tiefen Schnee."
CHAT = HttpOptions()


def prompt_of(tmp_path, template=None, examples=None, languages=("en", "de"), **options):
    files = {}
    for name, content in (("prompt", template), ("few_shot", examples)):
        if content is not None:
            (tmp_path / name).write_bytes(content.encode())
            files[name] = str(tmp_path / name)
    return open_prompt(HttpOptions(**files, **options), languages)


def test_a_template_is_filled_in_once_and_braces_in_sentences_mean_nothing(tmp_path):
    prompt = prompt_of(tmp_path, "\n{{json}} {source_lang}→{target_lang}\n{source} | {source}\n")
    source = "{source_lang} {{ } {x}"
    assert prompt.fill(source) == f"{{json}} English→German\n{source} | {source}"
    assert prompt.messages(source) == [{"role": "user", "content": prompt.fill(source)}]


def test_examples_come_before_every_sentence_in_their_order(tmp_path):
    template, examples = "{source_lang}: {source}\n{target_lang}:", "One dog.\tEin Hund.\n Two. \tZwei.\r\n"
    prompt = prompt_of(tmp_path, template, examples)
    asked = [f"English: {text}\nGerman:" for text in ("One dog.", "Two.", "Three.")]
    contents = [asked[0], "Ein Hund.", asked[1], "Zwei.", asked[2]]
    assert [turn["content"] for turn in prompt.messages("Three.")] == contents
    assert [turn["role"] for turn in prompt.messages("Three.")] == ["user", "assistant"] * 2 + ["user"]
    assert prompt.completion("Three.") == f"{asked[0]} Ein Hund.\n\n{asked[1]} Zwei.\n\n{asked[2]}"


def test_every_part_of_the_prompt_is_in_its_identity(tmp_path):
    variants = [
        prompt_of(tmp_path),
        prompt_of(tmp_path, api="completions"),
        prompt_of(tmp_path, "{source}"),
        prompt_of(tmp_path, "{source} "),
        prompt_of(tmp_path, examples="a\tb\n"),
        prompt_of(tmp_path, examples="a\tc\n"),
        prompt_of(tmp_path, target_name="Swiss German"),
        prompt_of(tmp_path, languages=("en", "fr")),
    ]
    identities = [json.dumps(prompt.identity(), sort_keys=True) for prompt in variants]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{source} {srouce}", "unknown placeholder {srouce}"),
        ("{source!r}", "unknown placeholder {source!r}"),
        ("{source:>9}", "unknown placeholder {source:>9}"),
        ("{source} {}", "unknown placeholder {}"),
        ("{source} {0}", "unknown placeholder {0}"),
        ("{source.__class__}", "unknown placeholder {source.__class__}"),
        ("{source", "expected '}'"),
        ("} {source}", "Single '}'"),
        ('{"text": "{source}"}', "unknown placeholder"),
        ("Translate to {target_lang}.", "has no {source}"),
        ("", "has no {source}"),
    ],
)
def test_a_template_that_cannot_be_filled_in_is_refused(template, message):
    with pytest.raises(KDPluginError) as error:
        parse(template, "--prompt p.txt")
    assert message in str(error.value) and "--prompt p.txt" in str(error.value) and "Remedy: " in str(error.value)


@pytest.mark.parametrize("examples", ["", "one side\n", "a\tb\tc\n", "a\t\n", "\tb\n", "a\tb\n\na\tb\n"])
def test_examples_without_two_sides_are_refused(examples, tmp_path):
    with pytest.raises(KDPluginError, match="--few-shot .*Remedy: "):
        prompt_of(tmp_path, examples=examples)


def test_a_name_is_needed_only_where_the_template_has_it(tmp_path):
    with pytest.raises(KDPluginError, match="--target-lang xx: .*Remedy: --target-name"):
        prompt_of(tmp_path, languages=("en", "xx"))
    assert "Klingon" in prompt_of(tmp_path, languages=("en", "xx"), target_name="Klingon").fill("a")
    assert prompt_of(tmp_path, "{source}", languages=("en", "xx")).fill("a") == "a"
    with pytest.raises(KDPluginError, match="--target-name: .*has no {target_lang}"):
        prompt_of(tmp_path, "{source}", target_name="German")


@pytest.mark.parametrize(
    "code, name",
    [
        ("de", "German"), ("deu_Latn", "German"), ("de_DE", "German"), ("eng_Latn", "English"), ("en_XX", "English"),
        ("zh", "Chinese"), ("zho_Hans", "Simplified Chinese"), ("zho_Hant", "Traditional Chinese"),
        ("zh_TW", "Traditional Chinese"), ("pt-BR", "Brazilian Portuguese"), ("cmn", "Chinese"),
        ("srp_Cyrl", "Serbian"), ("srp_Latn", "Serbian in Latin script"), ("swh_Latn", "Swahili"),
        ("xx", None), ("und", None), ("foo_Latn", None),
    ],
)  # fmt: skip
def test_languages_have_their_english_names(code, name):
    assert english_name(code) == name


@pytest.mark.parametrize(
    "text, fault",
    [
        (GOOD, None),
        (f"  {GOOD}\n\n", None),
        ("", answers.EMPTY),
        (" \n\t ", answers.EMPTY),
        ("<think>Hm.\nA hard one.</think>\n\n" + GOOD, None),
        ("<think>Hm.</think>\n", answers.EMPTY),
        ("<think>Hm, " + GOOD, answers.EMPTY),
        (GOOD + "\n" + GOOD, answers.SEVERAL_LINES),
        ("Here is the translation:\n\n" + GOOD, answers.SEVERAL_LINES),
        (GOOD[:9] + "\r" + GOOD[9:], answers.SEVERAL_LINES),
        (GOOD + " " + "Das heißt, genauer gesagt, folgendes: " * 6, answers.OVERLONG),
        (GOOD.replace("H", "\x00"), answers.BROKEN),
        (GOOD.replace("u", "\ufffd"), answers.BROKEN),
        (GOOD + "\ud83d", answers.BROKEN),
        ("I'm sorry, but I can't assist with that.", answers.REFUSED),
        ("I’m sorry, but I cannot translate this sentence.", answers.REFUSED),
        ("As an AI language model, I do not run through snow.", answers.REFUSED),
        ("Unfortunately, I am unable to help with this request.", answers.REFUSED),
        ("I cannot translate", answers.REFUSED),
        ("Три собаки бегут по глубокому снегу.", None),
        ("三只狗在厚厚的雪地里奔跑。", None),
    ],
)
def test_answers_are_kept_or_left_out_by_what_they_are(text, fault):
    assert fault_of(Choice(text, "stop"), SOURCE, Rules(4.0)) == fault


@pytest.mark.parametrize(
    "text, source",
    [
        ("I cannot help you.", "Ich kann dir nicht helfen."),
        ("I'm sorry, but I can't help you today.", "Es tut mir leid, aber ich kann dir heute nicht helfen."),
        ("I'm sorry, I am not able to come.", "Es tut mir leid, ich kann nicht kommen."),
        ("Sorry!", "Entschuldigung!"),
        ("I'm sorry, but I can't assist with that.", "I'm sorry, but I can't assist with that."),
        ("I could not do that before.", "Das konnte ich früher nicht."),
        ("Unfortunately, the bus did not come.", "Leider kam der Bus nicht."),
    ],
)
def test_a_translation_that_sounds_like_a_refusal_is_kept(text, source):
    assert fault_of(Choice(text, "stop"), source, Rules(4.0, target_lang="en")) is None


@pytest.mark.parametrize("target", ["en", "eng_Latn", "EN-gb"])
def test_a_refusal_is_one_in_english_too(target):
    for text in (
        "I'm sorry, but I can't translate that for you.",
        "As an AI, I cannot do this.",
        "I cannot help with that. Please ask me something else, I am happy to assist with other sentences at any time.",
    ):
        source = "Drei Hunde laufen durch den tiefen Schnee."
        assert fault_of(Choice(text, "stop"), source, Rules(40.0, target_lang=target)) == answers.REFUSED


def test_an_answer_that_was_cut_off_or_refused_by_the_server_is_left_out_whatever_it_says():
    assert fault_of(Choice(GOOD, "length"), SOURCE, Rules(4.0)) == answers.CUT_OFF
    assert fault_of(Choice(GOOD, "refusal"), SOURCE, Rules(4.0)) == answers.REFUSED


def test_scripts_are_asked_for_by_name():
    for text, scripts, fault in (
        (GOOD, ["LATIN"], None),
        (GOOD, ["CYRILLIC"], answers.OTHER_SCRIPT),
        ("Три собаки", ["CYRILLIC", "LATIN"], None),
        ("犬が三匹います", ["HIRAGANA", "KATAKANA", "CJK"], None),
        ("12:30", ["CYRILLIC"], None),
    ):
        assert fault_of(Choice(text, "stop"), SOURCE, Rules(40.0, scripts)) == fault


def test_thoughts_take_the_score_away():
    assert translation_in(Choice(f" {GOOD} ", "stop", -0.5)) == (GOOD, -0.5)
    assert translation_in(Choice(f"<think>a</think> {GOOD}", "stop", -0.5)) == (GOOD, None)


def chat(text=GOOD, finish="stop", **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}).encode()


def test_replies_of_both_endpoints_are_read():
    logprobs = [-0.1, -0.5, -0.3]
    content = [{"token": "a", "logprob": value} for value in logprobs]
    (choice,), *tokens = replies.read_reply(chat(logprobs={"content": content}))
    assert choice.text == GOOD and choice.finish == "stop" and tokens == [7, 5]
    assert math.isclose(choice.logprob, -0.3)
    body = {"choices": [{"text": f" {GOOD}", "finish_reason": "length", "logprobs": {"token_logprobs": logprobs}}]}
    (choice,), *tokens = replies.read_reply(json.dumps(body).encode())
    assert choice == (f" {GOOD}", "length", choice.logprob) and tokens == [0, 0]
    assert math.isclose(choice.logprob, -0.3)
    message = {"role": "assistant", "content": None, "refusal": "No."}
    assert replies.read_reply(chat(message=message)).choices[0].finish == "refusal"
    assert replies.read_reply(chat("", "content_filter")).choices[0].finish == "refusal"
    assert replies.read_reply(chat(None)).choices[0] == ("", "stop", None)


@pytest.mark.parametrize(
    "logprobs",
    [
        None, {}, [], {"content": None}, {"content": []}, {"content": [{}]}, {"content": [None]}, {"content": "abc"},
        {"content": [{"logprob": "x"}]}, {"content": [{"logprob": True}]}, {"content": [{"logprob": -math.inf}]},
        {"content": [{"logprob": math.nan}]}, {"token_logprobs": [None, -0.1]}, {"token_logprobs": 3},
    ],
)  # fmt: skip
def test_log_probabilities_that_are_none_give_no_score(logprobs):
    assert replies.read_reply(chat(logprobs=logprobs)).choices[0].logprob is None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"choices": []}', b'{"choices": {}}',
        b'{"choices": ["a"]}', b'{"choices": [{}]}', b'{"error": {"message": "overloaded"}}', chat(finish=None),
        chat(finish="abort"), chat(["a"]), chat(message="a"), chat()[:-20], b"<html>502</html>",
    ],
)  # fmt: skip
def test_a_reply_that_is_none_is_malformed(body):
    with pytest.raises(replies.Malformed):
        replies.read_reply(body)


@pytest.mark.parametrize(
    "header, seconds",
    [
        (None, None), ("0", 0), ("7", 7), ("1.5", 1.5), ("-3", 0), ("soon", None), ("nan", None), ("inf", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert replies.seconds_to_wait(header, now=100.0) == seconds


def entry(place, text="a", score=-0.5):
    return Entry(place, [text], [score], [answers.EMPTY], None, [3, 4])


def test_a_journal_gives_back_what_it_was_told(tmp_path):
    told = [entry(0), entry(5, "ä\u2028 \"'", None), Entry(2, [], [], [], answers.FAILED, [0, 0])]
    for number in range(3):
        with Journal(tmp_path, 4, "job", 6) as opened:
            assert opened.entries == {one.place: one for one in told[:number]}
            opened.add(told[number])
    with Journal(tmp_path, 4, "job", 6) as opened:
        assert opened.entries == {one.place: one for one in told}
    assert os.listdir(tmp_path) == [".shard-00004.answers"]


def test_wherever_a_kill_tears_the_journal_whole_lines_are_kept_and_it_goes_on(tmp_path):
    with Journal(tmp_path, 0, "job", 9) as opened:
        for place in range(4):
            opened.add(entry(place, f"text {place}"))
    whole = opened.path.read_bytes()
    ends = [at for at, byte in enumerate(whole, 1) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        opened.path.write_bytes(whole[:length])
        with Journal(tmp_path, 0, "job", 9) as again:
            assert len(again.entries) == max(0, sum(end <= length for end in ends) - 1)
            again.add(entry(8, "later"))
        with Journal(tmp_path, 0, "job", 9) as again:
            assert again.entries[8].texts == ["later"]


def test_lines_of_a_journal_that_are_damaged_are_asked_again(tmp_path):
    with Journal(tmp_path, 0, "job", 3) as opened:
        for place in range(3):
            opened.add(entry(place))
    head, *lines = opened.path.read_bytes().splitlines(keepends=True)
    for bad in (
        b"\0" * 40, b"{}", b"[]", b'{"place": 1}', lines[1].replace(b'"a"', b"7"), lines[1].replace(b": 1,", b": 3,"),
        lines[1].replace(b'["a"]', b"[]"), lines[1].replace(b": 1,", b": -1,"), lines[1].replace(b"3, 4", b"3"),
    ):  # fmt: skip
        opened.path.write_bytes(head + lines[0] + bad.rstrip(b"\n") + b"\n" + lines[2])
        with Journal(tmp_path, 0, "job", 3) as again:
            assert set(again.entries) == {0, 2}, bad


def test_another_job_s_journal_is_refused_and_stays(tmp_path):
    with Journal(tmp_path, 0, "job", 3) as opened:
        opened.add(entry(1))
    before = opened.path.read_bytes()
    with pytest.raises(KDPluginError, match="another job's answers. Remedy: "):
        Journal(tmp_path, 0, "other", 3)
    assert opened.path.read_bytes() == before


def test_sentences_that_are_forgotten_are_asked_again(tmp_path):
    with Journal(tmp_path, 0, "job", 9) as opened:
        for place in range(4):
            opened.add(entry(place))
        opened.forget([1, 3, 7])
    with Journal(tmp_path, 0, "job", 9) as again:
        assert set(again.entries) == {0, 2}


def test_journals_of_finished_shards_are_removed_and_no_others(tmp_path):
    for name in (".shard-00000.answers", ".shard-00001.answers", "shard-00000.json", ".shard-00000.answers.mine"):
        (tmp_path / name).write_text("")
    journal.remove_finished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".shard-00000.answers.mine", ".shard-00001.answers", "shard-00000.json"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "no server"),
        ({"url": "localhost:8000"}, "--url localhost:8000: is not the address"),
        ({"url": "ftp://a/v1"}, "is not the address"),
        ({"url": "http://"}, "is not the address"),
        ({"url": "http://a b/v1"}, "is not the address"),
        ({"url": "http://a:99999/v1"}, "is not the address"),
        ({"url": "http://[::1/v1"}, "is not the address"),
        ({"url": "http://a/v1/chat/completions"}, "names an endpoint"),
        ({"model": None}, "--model"),
        ({"api_key_env": "KD_NOT_SET"}, "--api-key-env KD_NOT_SET: that environment variable is not set"),
        ({"extra_body": "{"}, "--extra-body: not JSON"),
        ({"extra_body": "[]"}, "--extra-body: not a JSON object"),
        ({"extra_body": '{"x": NaN}'}, "--extra-body: not JSON"),
        ({"extra_body": '{"seed": 1}'}, "--extra-body: seed is set by kd-plugin itself"),
        ({"expect_script": "LATTIN"}, "--expect-script LATTIN: no letters"),
    ],
)
def test_flags_of_which_no_request_can_be_made_are_refused(options, message):
    sound = {"url": "http://localhost:8000/v1", "model": "m"}
    HttpOptions(**sound).check()
    with pytest.raises(KDPluginError) as error:
        HttpOptions(**({**sound, **options} if options else {"model": "m"})).check()
    assert message in str(error.value) and "Remedy: " in str(error.value)


def test_no_secret_is_in_an_error(monkeypatch):
    """Neither a password in the address nor a key that somebody gives instead of its variable's name."""
    for options in ({"url": "http://me:hunter2@a/v1"}, {"api_key_env": "sk-hunter2"}):
        with pytest.raises(KDPluginError) as error:
            HttpOptions(**{"url": "http://a/v1", "model": "m", **options}).check()
        assert "hunter2" not in str(error.value)
    for value in ("hunter2 x", "hunter2\x07", "hunter2ä"):
        monkeypatch.setenv("KD_KEY", value)
        with pytest.raises(KDPluginError) as error:
            HttpOptions(url="http://a/v1", model="m", api_key_env="KD_KEY").check()
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url, endpoint",
    [
        ("http://a:8000/v1", "http://a:8000/v1/chat/completions"),
        ("http://a:8000/v1/", "http://a:8000/v1/chat/completions"),
        ("http://a:8000", "http://a:8000/v1/chat/completions"),
        ("https://a/openai?api-version=2", "https://a/openai/chat/completions?api-version=2"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/chat/completions"),
    ],
)
def test_the_endpoint_is_below_the_address(url, endpoint):
    assert HttpOptions(url=url).endpoint() == endpoint
