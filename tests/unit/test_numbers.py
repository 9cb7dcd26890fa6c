"""Numbers on the command line: each flag of each verb has its limits, and both engines work at their ends."""

import argparse
import importlib
import math
from pathlib import Path

import pytest
import torch

from kd_plugin import cli
from kd_plugin.cli.numbers import LIMITS, MANY, check_numbers
from kd_plugin.curate.filter import SCORE_FLAGS, rule_flags
from kd_plugin.decoding.base import Settings
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.fairseq import FairseqDecoder, open_checkpoints
from kd_plugin.errors import KDPluginError
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries

FILTERS = {flag.dest for flag in (*rule_flags(), *SCORE_FLAGS)}
VOCABULARY = 4 + len(WORDS)
REQUIRED = {
    "cache": ["DATA", "--teacher-path", "A", "--cache-dir", "DIR"],
    "prepare-tagging": ["--output", "DIR"],
    "init": ["A", "--output", "FILE"],
    "vocabulary": ["A", "--output", "DIR", "-s", "en", "-t", "de"],
    "decode": ["--input", "FILE", "--path", "A", "--output", "DIR"],
    "score": ["DIR", "--path", "A", "--output", "DIR"],
    "select": ["DIR", "--by", "score", "--output", "DIR"],
    "filter": ["DIR", "--output", "DIR"],
    "evaluate": ["--model", "a=A", "--test", "t=a,b", "--output", "DIR"],
    "evaluate-classifier": ["--model", "a=A", "--test", "t=a,b", "--output", "DIR"],
    "distill": ["A"],
    "sweep": ["A", "--output", "DIR"],
    "gap": ["--test", "a,b", "--teacher", "A", "--student", "B", "--output", "DIR"],
    "export": ["A", "--format", "ctranslate2", "--check", __file__, "--output", "DIR"],
}
NEVER = ["nan", "-inf", "1e400", "-1" + "0" * 400, "1" + "0" * 400, "9" * 5000, "one", ""]


def numeric_flags(verb):
    (subparsers,) = (a for a in cli.build_parser(verb)._actions if isinstance(a, argparse._SubParsersAction))
    actions = subparsers.choices[verb]._actions
    return [action for action in actions if action.type in (int, float) and action.help != argparse.SUPPRESS]


def test_every_flag_that_takes_a_number_has_limits():
    for verb in cli.VERBS:
        flags = {action.dest for action in numeric_flags(verb)}
        assert flags <= LIMITS.keys() | FILTERS, verb
        assert verb in REQUIRED or not flags, verb


@pytest.mark.parametrize("verb", REQUIRED)
def test_no_number_ends_in_a_traceback(verb, monkeypatch, tmp_path, capsys):
    """It is usage (2) or a refusal that names the flag (1)."""
    monkeypatch.chdir(tmp_path)
    for action in numeric_flags(verb):
        (flag,) = action.option_strings[-1:]
        for value in NEVER:
            capsys.readouterr()
            if flag == "--unkpen" and value.startswith(("1", "9")):  # infinite: never an unknown symbol
                continue
            try:
                status = cli.main([verb, *REQUIRED[verb], f"{flag}={value}"])
            except SystemExit as usage:
                status = usage.code
            error = capsys.readouterr().err
            begins = action.dest in FILTERS and "no manifest.json there" in error  # some of them are unlimited
            assert status in (1, 2) and (begins or flag in error), (flag, value, error)
            assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb, flag, message",
    [
        ("decode", "--num-shards=0", "--num-shards 0: must be at least 1"),
        ("decode", "--num-shards=-3", "--num-shards -3: must be at least 1"),
        ("decode", "--shard-id=-1", "--shard-id -1: must be at least 0"),
        ("decode", "--shard-id=1", "with --num-shards 1, the shards are 0 … 0"),
        ("decode", "--sampling-topp=1.5", "--sampling-topp 1.5: must lie in 1e-06 … 1, or -1"),
        ("decode", "--sampling-topp=0", "--sampling-topp 0: must lie in"),
        ("decode", "--sampling-topk=0", "--sampling-topk 0: must be at least 1, or -1"),
        ("decode", "--unkpen=-inf", "--unkpen -inf: must lie in -50 … 10000, or inf"),
        ("decode", "--unkpen=nan", "--unkpen nan"),
        ("decode", "--lenpen=1000", "--lenpen 1000: must lie in -10 … 10"),
        ("decode", "--temperature=1e-300", "--temperature 1e-300: must lie in 0.01 … 1000"),
        ("decode", "--max-len-b=0", "--max-len-a 0, --max-len-b 0"),
        ("decode", "--workers=1000000000", "--workers 1000000000: must lie in 1 … 1024, or 0"),
        ("cache", "--temperature=0", "--temperature 0: must lie in"),
        ("cache", f"--shard-tokens={10**30}", f"--shard-tokens {10**30}: must lie in 1 … {MANY}"),
        ("cache", "--max-source-positions=1", "--max-source-positions 1: must be at least 2"),
        ("evaluate", "--threads=1000000000", "--threads 1000000000: must lie in 1 … 1024"),
        ("evaluate", "--bootstrap=1", "--bootstrap 1: must lie in 40 … 100000, or 0"),
        ("export", "--check-threshold=nan", "--check-threshold nan: must lie in 0 … 100"),
        ("select", "--top=0", "--top 0: must be at least 1"),
        ("filter", f"--min-length=-{10**30}", "--min-length -1000000000000000000000000000000: out of range"),
    ],
)
def test_a_number_that_cannot_be_is_refused_with_what_can(verb, flag, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.import_module(cli.VERBS[verb].module), "Translations", None, raising=False)
    if verb == "evaluate":
        Path("a").write_text("a\n"), Path("b").write_text("b\n"), Path("A").write_text("")
    assert cli.main([verb, *REQUIRED[verb], flag]) == 1
    error = capsys.readouterr().err
    assert message in error and "Remedy: " in error and not Path("DIR").exists()


def test_defaults_are_within_their_limits():
    for verb in REQUIRED:
        check_numbers(cli.build_parser(verb).parse_args([verb, *REQUIRED[verb]]))


@pytest.fixture(scope="module", params=["fairseq", "ctranslate2"])
def decoder_with(request, tmp_path_factory):
    """Makes a decoder of an untrained model with the given search."""
    folder = tmp_path_factory.mktemp("model")
    write_dictionaries(folder, WORDS)
    make_checkpoint(folder / "1.pt", folder, "-s", "en", "-t", "de", *MODEL, "--max-target-positions", 40)
    if request.param == "fairseq":
        checkpoints = open_checkpoints(str(folder / "1.pt"), None, "en", "de")
        return lambda settings: FairseqDecoder(checkpoints, settings, torch.device("cpu"))
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    from kd_plugin.checkpoints.ctranslate2_models import convert
    from kd_plugin.checkpoints.open import open_checkpoint

    convert(open_checkpoint(str(folder / "1.pt"), None, "en", "de"), folder / "ct2")
    return lambda settings: CTranslate2Decoder(folder / "ct2", settings)


@pytest.mark.parametrize(
    "search",
    [
        {"beam": VOCABULARY - 1, "nbest": VOCABULARY - 1},
        {"lenpen": LIMITS["lenpen"].low},
        {"lenpen": LIMITS["lenpen"].high},
        {"max_len_a": LIMITS["max_len_a"].high, "max_len_b": MANY},
        {"unkpen": LIMITS["unkpen"].low},
        {"unkpen": LIMITS["unkpen"].high},
        {"unkpen": math.inf},
        {"unkpen": LIMITS["unkpen"].low, "sampling": True},
        {"temperature": LIMITS["temperature"].low, "sampling": True},
        {"temperature": LIMITS["temperature"].high, "sampling": True},
        {"temperature": LIMITS["temperature"].low},
        {"sampling": True, "sampling_topk": VOCABULARY},
        {"sampling": True, "sampling_topp": LIMITS["sampling_topp"].low},
        {"sampling": True, "sampling_topp": LIMITS["sampling_topp"].high},
    ],
    ids=str,
)
def test_both_engines_work_at_the_limits(decoder_with, search):
    settings = Settings(**{"max_len_b": 5, **search})
    settings.check()
    try:
        batch = decoder_with(settings)([WORDS[:3], WORDS[5:6]])
    except KDPluginError as error:  # what CTranslate2 has not at all; a mass of 0 that fairseq cannot draw from
        assert "--engine fairseq" in str(error) or "a higher --temperature" in str(error)
        return
    for answers in batch:
        assert len(answers) == settings.nbest and all(math.isfinite(score) for _, score in answers)


@pytest.mark.parametrize(
    "search, message",
    [
        ({"beam": VOCABULARY}, f"--beam {VOCABULARY}: the model's target dictionary has {VOCABULARY} symbols"),
        ({"sampling": True, "sampling_topk": VOCABULARY + 1}, f"--sampling-topk {VOCABULARY + 1}: the model's target"),
    ],
)
def test_more_than_the_vocabulary_is_refused_by_both_engines(decoder_with, search, message):
    with pytest.raises(KDPluginError, match=message):
        decoder_with(Settings(**search))
