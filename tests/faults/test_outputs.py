"""No verb writes over an input, another run's output or a file that it did not make, and all says so before work."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd_plugin import cli
from kd_plugin.corpus.parallel_text import check_text
from kd_plugin.corpus.translations import Translations, TranslationsFolder
from kd_plugin.errors import KDPluginError
from kd_plugin.files import locks as claims
from kd_plugin.files import protection as outputs
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.translation_folders import record, write_folder

DECODE = ["decode", "--path", "m/1.pt", "--remove-bpe", "none", "--max-len-b", "6"]
IMPORT = ["import", "g.tsv", "-s", "en", "-t", "de"]
SELECT = ["select", "nbest", "--by", "score"]
NEAREST = ["select", "nbest", "--by", "reference", "--reference", "c.de"]
FILTER = ["filter", "nbest"]
SCORE = ["score", "nbest", "--path", "m/1.pt"]
CACHE = ["cache", "data", "--teacher-path", "m/1.pt", "--subset", "train", "--k", "4"]
EVALUATE = ["evaluate", "--model", "a=m/1.pt", "--test", "t=c.en,c.de", "--remove-bpe", "none", "--max-len-b", "6"]
EVALUATE += ["--bootstrap", "0"]
EXPORT = ["export", "m/1.pt", "--format", "fairseq"]
REPORT = ["report"]
LOG = '{"epoch": 1, "train_loss": "3.0", "train_num_updates": "10"}'
CLASH = "would overwrite"
FOREIGN = "already exists, and this job did not write it"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_dictionaries(folder, WORDS)
    make_checkpoint(folder / "1.pt", folder, "-s", "en", "-t", "de", *MODEL, seed=1)
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A folder to work in, with everything that a user would have there."""
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    for path in models.iterdir():
        (Path("m") / path.name).write_bytes(path.read_bytes())
    lines = {"en": WORDS[:3], "de": WORDS[3:6]}
    for language, words in lines.items():
        text = "".join(word + "\n" for word in words)
        for name in ("c", "j"):
            Path(f"{name}.{language}").write_text(text)
    Path("j.scores").write_text("the user's own\n")
    Path("g.tsv").write_text("a\tb\n")
    Path("h.tsv").write_text("c\td\n")
    Path("g.scores").write_text("0\t1\n1\t1\n2\t1\n")
    Path("plain").write_text("a file\n")
    Path("x").write_text(f"| INFO | train | {LOG}\n")
    Path("e").mkdir()
    evaluation = {"format": "kd_plugin evaluation", "version": 1, "tests": [], "models": []}
    Path("e/evaluation.json").write_text(json.dumps(evaluation))
    write_folder("nbest", [record(i, word, (WORDS[3 + i], -1.0)) for i, word in enumerate(lines["en"])])
    Path("foreign").mkdir()
    Path("foreign/shard-00000.jsonl").write_text("the user's own\n")
    Path("data").mkdir()
    Path("data/notes.txt").write_text("the user's own\n")
    for language in ("en", "de"):
        Path(f"data/dict.{language}.txt").write_bytes(Path(f"m/dict.{language}.txt").read_bytes())
    Path("link.de").symlink_to("c.de")
    os.link("c.de", "hard.de")
    Path("broken.de").symlink_to("nowhere")
    Path("there").symlink_to(".")
    return tmp_path


def tree(folder):
    """All names, and what the files hold."""
    paths = sorted(Path(folder).rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def refused(capsys, place, command, *said):
    before = tree(place)
    assert cli.main([str(word) for word in command]) == 1
    error = capsys.readouterr().err
    assert error.count("kd-plugin: error: ") == 1 and "Remedy: " in error and "Traceback" not in error
    for words in said:
        assert words in error
    assert tree(place) == before


LONG = "n" * 252  # with .scores it is longer than a name may be, with .de it just fits
COLLISIONS = [
    # an input, by whatever name
    ([*DECODE, "--input", "j.en", "--output", "out", "--text", "j"], "--text j.en", f"{CLASH} --input j.en"),
    ([*DECODE, "--input", "j.en", "--output", "out", "--text", "./there/j"], "--text there/j.en", CLASH),
    ([*DECODE, "--input", "j.en", "--output", "j.en"], "--output j.en", "is a file"),
    ([*DECODE, "data", "--output", "data"], "--output data", f"{CLASH} DATA data"),
    ([*DECODE, "--input", "c.en", "--dict-dir", "m", "--output", "m"], "--output m", CLASH),
    ([*NEAREST, "--output", "out", "--text", "c"], "--text c.en", FOREIGN),
    ([*NEAREST, "--output", "out", "--text", "link"], "--text link.de", f"{CLASH} --reference c.de"),
    ([*NEAREST, "--output", "out", "--text", "hard"], "--text hard.de", f"{CLASH} --reference c.de"),
    ([*SELECT, "--output", "nbest"], "--output nbest", f"{CLASH} INPUT_DIR nbest"),
    ([*SELECT, "--output", "there/./nbest"], "--output there/./nbest", CLASH),
    ([*FILTER, "--output", "nbest"], "--output nbest", CLASH),
    ([*FILTER, "--scores", "g.scores", "--best-scores-share", "1", "--output", "o", "--text", "g"], "g.scores", CLASH),
    ([*SCORE, "--output", "nbest"], "--output nbest", CLASH),
    ([*SCORE, "--output", "out", "--text", "j"], "--text j.en", FOREIGN),
    ([*IMPORT, "--output", "g.tsv"], "--output g.tsv", "is a file"),
    ([*IMPORT, "--output", "out", "--text", "c"], "--text c.en", FOREIGN),
    ([*CACHE, "--cache-dir", "data"], "--cache-dir data", f"{CLASH} DATA data"),
    ([*CACHE, "--cache-dir", "m/1.pt"], "--cache-dir m/1.pt", "is a file"),
    ([*EVALUATE, "--output", "c.de"], "--output c.de", "is a file"),
    ([*EVALUATE, "--dict-dir", "m", "--output", "m"], "--output m", CLASH),
    ([*EVALUATE, "--output", "e"], "--output e", "already holds an evaluation"),
    ([*EXPORT, "--output", "m/1.pt"], "--output m/1.pt", "is a file"),
    ([*EXPORT, "--output", "m"], "--output m", "already exists"),
    ([*EXPORT, "--output", "broken.de"], "--output broken.de", "is a broken link"),
    ([*REPORT, "--evaluation", "e", "--output", "e/evaluation.json"], "--output e/evaluation.json", CLASH),
    ([*REPORT, "--evaluation", "e/evaluation.json", "--output", "there/e/evaluation.json"], "--output", CLASH),
    ([*REPORT, "--log", "r=x", "--output", "x"], "--output x", f"{CLASH} --log x"),
    ([*REPORT, "--log", "r=x", "--output", "c.de"], "--output c.de", FOREIGN),
    ([*REPORT, "--log", "r=x", "--output", "e"], "--output e", "is a folder"),
    # the files of --output, and of --text among themselves
    ([*IMPORT[:5], "jsonl", "--output", "out", "--text", "out/shard-00000"], "--target-lang 'jsonl'"),
    ([*IMPORT[:5], "bin", "--output", "out", "--text", "out/shard-00000"], "shard-00000.bin", "--output's own"),
    ([*IMPORT[:5], "lock", "--output", "out", "--text", "out/"], "--text 'out/'", "is not a file prefix"),
    ([*IMPORT, "--output", "out.en", "--text", "out"], "--text out.en", "conflicts with --output out.en"),
    ([*IMPORT, "--output", "out.en/deep", "--text", "out"], "--text out.en", "conflicts with --output"),
    # what no run has made
    ([*IMPORT, "--output", "foreign"], "--output foreign", "shard-00000.jsonl already exists"),
    ([*SELECT, "--output", "foreign"], "--output foreign", "shard-00000.jsonl already exists"),
    ([*DECODE, "--input", "c.en", "--output", "foreign"], "--output foreign", "shard-00000.jsonl already exists"),
    ([*IMPORT, "--output", "out", "--text", "broken"], "--text broken.de", "is a broken link"),
    # what cannot be made
    ([*IMPORT, "--output", "out", "--text", "plain/t"], "--text plain/t", "Not a directory"),
    ([*DECODE, "--input", "c.en", "--output", "out", "--text", "plain/t"], "--text plain/t", "Not a directory"),
    ([*IMPORT, "--output", "plain/out"], "--output plain/out", "Not a directory"),
    ([*CACHE, "--cache-dir", "plain/out"], "--cache-dir plain/out", "Not a directory"),
    ([*EVALUATE, "--output", "plain/out"], "--output plain/out", "Not a directory"),
    ([*EXPORT, "--output", "plain/out"], "--output plain/out", "Not a directory"),
    ([*REPORT, "--log", "r=x", "--output", "plain/out"], "--output plain/out", "Not a directory"),
    ([*IMPORT, "--output", "out", "--text", LONG], f"--text {LONG}", "has 259 bytes"),
    ([*DECODE, "--input", "c.en", "--output", "out", "--text", "deep/" + LONG], "--text", "has 259 bytes"),
    ([*EXPORT, "--output", "n" * 256], "--output", "has 256 bytes"),
    ([*EVALUATE[:2], "n" * 256 + "=m/1.pt", *EVALUATE[3:], "--output", "out"], "--output", "has 256 bytes"),
    ([*IMPORT, "--output", "out", "--text", "out/"], "--text 'out/'", "is not a file prefix"),
    # no path at all
    *(
        ([*command, flag, word], flag, what)
        for command, flag in (
            ([*DECODE, "--input", "c.en"], "--output"),
            ([*DECODE, "--output", "out"], "--input"),
            (IMPORT, "--output"),
            ([*IMPORT, "--output", "out"], "--text"),
            (CACHE, "--cache-dir"),
            (EVALUATE, "--output"),
            (EXPORT, "--output"),
            ([*EXPORT, "--output", "out"], "--check"),
            ([*REPORT, "--log", "r=x"], "--output"),
        )
        for word, what in (("", "is empty"), ("a\0b", "NUL"))
    ),
    ([*IMPORT, "--output="], "--output", "is empty"),
]  # fmt: skip


@pytest.mark.parametrize(
    "command, said", [(command, said) for command, *said in COLLISIONS], ids=lambda value: " ".join(value)[:70]
)
def test_what_would_harm_something_or_cannot_be_written_is_refused(command, said, place, capsys):
    refused(capsys, place, command, *said)


def test_the_same_command_writes_its_text_again_and_another_one_does_not(place, capsys):
    def texts():
        return {path.name: path.read_bytes() for path in place.glob("t/p.*")}

    command = [*SELECT, "--output", "one", "--text", "t/p"]
    assert cli.main(command) == 0
    first = texts()
    assert sorted(first) == ["p.de", "p.en", "p.scores"] and cli.main(command) == 0 and texts() == first
    Path("t/p.scores").unlink()
    assert cli.main(command) == 0 and texts() == first
    capsys.readouterr()
    refused(capsys, place, [*SELECT, "--top", "2", "--output", "two", "--text", "t/p"], "--text t/p.en", FOREIGN)
    with open("t/p.de", "a") as file:
        file.write("the user has gone on with it\n")
    refused(capsys, place, command, "--text t/p.de", FOREIGN)


def test_names_that_just_fit_are_written(place):
    prefix = "n" * (255 - len(".scores"))
    assert cli.main([*IMPORT, "--output", "o" * 255, "--text", prefix]) == 0
    assert Path(prefix + ".scores").read_text() == "0\t\n"
    assert cli.main([*REPORT, "--log", "r=x", "--output", "r" * 255]) == 0
    assert cli.main([*EXPORT, "--output", "e" * 255]) == 0
    assert Path("e" * 255, "model.pt").is_file()
    assert not list(place.glob(".*"))


@pytest.mark.parametrize(
    "prefix, language", [("shard-00000", "jsonl"), ("manifest", "json"), (".text", "json"), ("Manifest", "JSON")]
)
def test_text_never_takes_a_name_of_the_folder_s_own(prefix, language, tmp_path):
    with pytest.raises(KDPluginError, match=f"--text .*{prefix}.{language} is one of --output's own files"):
        check_text(str(tmp_path), str(tmp_path / "." / prefix), [], ["en", language], "identity")


def test_a_page_is_written_again_by_the_same_command_alone(place, capsys):
    command = [*REPORT, "--log", "r=x", "--output", "page.html"]
    assert cli.main(command) == 0
    with open("x", "a") as file:
        file.write("| INFO | train | " + LOG.replace("10", "20") + "\n")
    before = Path("page.html").read_bytes()
    assert cli.main(command) == 0 and Path("page.html").read_bytes() != before
    capsys.readouterr()
    refused(capsys, place, [*command, "--title", "Another"], "--output page.html", FOREIGN)


def test_an_evaluation_writes_over_nothing_but_what_it_had_begun_itself(place, capsys):
    def interrupted(*arguments):
        raise KDPluginError("interrupted. Remedy: again")

    command = [*EVALUATE, "--output", "mine"]
    for name in ("evaluation.md", "translations"):
        Path("mine").mkdir()
        Path("mine", name).write_text("the user's own\n")
        refused(capsys, place, command, f"--output mine/{name}", FOREIGN)
        Path("mine", name).unlink()
        Path("mine").rmdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_plugin.evaluation.evaluate._score", interrupted)
        assert cli.main(command) == 1
    assert Path("mine/translations/a/t.txt").is_file()
    capsys.readouterr()
    refused(capsys, place, [*command, "--lowercase"], "--output mine/translations", FOREIGN)
    assert cli.main(command) == 0 and Path("mine/evaluation.json").is_file() and not list(Path("mine").glob(".*"))


def test_a_shard_of_a_killed_run_is_its_own_and_nobody_else_s(place, capsys):
    """Killed between a shard's records and the part that says that they are whole."""
    with TranslationsFolder(Path("out"), "this job").claim("--output"):
        Path("out/shard-00000.jsonl").write_text("half\n")
    refused(capsys, place, [*SELECT, "--output", "out"], "--output out", "shard-00000.jsonl already exists")
    with TranslationsFolder(Path("out"), "this job").claim("--output") as claim:
        claim.finish()


def test_a_file_that_is_no_lock_is_not_written_over(place, capsys):
    Path("out").mkdir()
    Path("out/.lock").write_text("the user's own\n")
    refused(capsys, place, [*SELECT, "--output", "out"], "--output out", ".lock is not a lock")


FORK = multiprocessing.get_context("fork")  # locks are a process' own, and the imports are there already


def begin(job, shards, connection):
    try:
        with TranslationsFolder(Path("shared"), job).claim("--output", shards):
            connection.send("begun")
            connection.recv()
    except KDPluginError as error:
        connection.send(str(error))


class Beginner:
    """A process that begins a job in a folder, says how that went, and stays until it is killed."""

    def __init__(self, job, shards):
        connection, its_own = FORK.Pipe()
        self.process = FORK.Process(target=begin, args=(job, shards, its_own), daemon=True)
        self.process.start()
        self.said = connection.recv()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.join()


def test_who_is_at_work_in_a_folder_is_told_until_he_is_gone_or_killed(place):
    with Beginner("a", [0, 2]) as first, Beginner("a", [1, 3]) as second:
        assert first.said == second.said == "begun"
        with Beginner("a", [3, 4]) as third:
            assert f"--output shared: another run is working on the same shards: process {second.process.pid}" in (
                third.said
            )
        with pytest.raises(KDPluginError, match=r"working there, on other data.*process \d+ on .* since .*, `"):
            TranslationsFolder(Path("shared"), "b").claim("--output", [7])
        with pytest.raises(KDPluginError, match="--output shared: another run is working there: process"):
            TranslationsFolder(Path("shared"), "a").claim("--output")
    with Beginner("b", None) as alone, Beginner("b", None) as late:
        assert alone.said == "begun"
        assert f"another run is working there: process {alone.process.pid} on " in late.said


def test_of_two_imports_into_one_folder_exactly_one_wins(place):
    """At the same time, several times: two processes that wait for the same moment, and import different files."""
    program = (
        "import sys, time; sys.argv = ['kd-plugin', 'import']\n"  # as the command, which leaves fairseq alone
        "from kd_plugin.cli import main; import kd_plugin.corpus.importing; print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    moment, *command = line.split(); time.sleep(max(0, float(moment) - time.time()))\n"
        "    print('status', main(command), flush=True)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        import time

        assert all(racer.stdout.readline() == "ready\n" for racer in racers)
        winners = []
        for turn in range(10):
            moment = time.time() + 0.1
            for racer, file in zip(racers, ("g.tsv", "h.tsv")):
                racer.stdin.write(f"{moment} import {file} -s en -t de --output race{turn}\n")
                racer.stdin.flush()
            statuses = []
            for racer in racers:
                line = racer.stdout.readline()
                while not line.startswith("status"):
                    line = racer.stdout.readline()
                statuses.append(int(line.split()[1]))
            assert sorted(statuses) == [0, 1]
            winners.append(statuses.index(0))
            (found,) = Translations(Path(f"race{turn}")).records()
            assert found.source == ("a", "c")[winners[-1]] and not list(Path(f"race{turn}").glob(".*"))
    finally:
        errors = "".join(racer.communicate()[1] for racer in racers)
    refusals = [line for line in errors.splitlines() if line.startswith("kd-plugin: error: ")]
    assert len(refusals) == 10 and "free some space" not in errors and "Traceback" not in errors
    assert all("another run is working there" in line or "holds other translations" in line for line in refusals)


def test_a_file_that_appears_meanwhile_is_not_written_over(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("ours")
    theirs.write_text("theirs")
    with pytest.raises(KDPluginError, match="--text .*theirs: already exists"):
        outputs.place(ours, theirs, "--text", lambda path: False)
    assert theirs.read_text() == "theirs"
    outputs.place(ours, theirs, "--text", lambda path: True)
    assert theirs.read_text() == "ours" and not ours.exists()


def test_a_file_system_without_links_and_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(outputs.os, "link", unsupported)
    monkeypatch.setattr(claims.fcntl, "lockf", unsupported)
    monkeypatch.chdir(tmp_path)
    Path("g.tsv").write_text("a\tb\n")
    assert cli.main([*IMPORT, "--output", "out", "--text", "t"]) == 0
    assert Path("t.de").read_text() == "b\n"


def test_names_are_one_where_case_makes_no_difference(tmp_path, monkeypatch):
    """As on the usual file systems of macOS and Windows."""
    assert not outputs.same_place(tmp_path / "new.DE", tmp_path / "new.de")
    monkeypatch.setattr(outputs, "_folds_case", lambda path: True)
    assert outputs.same_place(tmp_path / "new.DE", tmp_path / "new.de")
    assert outputs.same_place(tmp_path / "u\u0308", tmp_path / "\u00fc") and not outputs.same_place("a", "b")
