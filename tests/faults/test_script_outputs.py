"""The scripts and recipes, too, write over nothing that they did not make."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kd_plugin.files.locks import LOCK
from tests import warm_start
from tests.support import ROOT

EXAMPLES, SCRIPTS = ROOT / "examples" / "translation", ROOT / "scripts"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.de"):
        Path(name).write_text("one\ntwo\n")
    return tmp_path


def tree(folder):
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def refused(place, *command, **variables):
    """What a command says that must be refused and leave everything as it is."""
    before = tree(place)
    environment = {**os.environ, **variables}
    line = [str(word) for word in command]
    result = subprocess.run(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    assert {path: content for path, content in tree(place).items() if path in before} == before
    return result.stdout


def corpus(*arguments):
    return [sys.executable, EXAMPLES / "corpus.py", *arguments]


@pytest.mark.parametrize(
    "arguments",
    [
        ("pairs", "a.en", "a.de", "a.en", "out.de"),
        ("pairs", "a.en", "a.de", "out.en", "./a.de"),
        ("train-spm", "own.model", "20", "a.en"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_text_is_not_written_over(arguments, place):
    Path("own.model").write_text("the user's own\n")
    assert "remove it, or give another name" in refused(place, *corpus(*arguments))


def test_an_encoded_text_does_not_replace_the_text(place):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    sys.path.insert(0, str(EXAMPLES))
    try:
        from corpus import create
    finally:
        sys.path.remove(str(EXAMPLES))
    with pytest.raises(SystemExit, match="a.de cannot be created"):
        create("a.de")
    assert Path("a.de").read_text() == "one\ntwo\n"


def test_scores_go_into_their_own_table_and_translations_into_their_own_file(place):
    Path("generated").write_text("D-0\t0\teins\nD-1\t0\tzwei\n")
    Path("notes.md").write_text("my notes\n")
    common = [
        sys.executable,
        EXAMPLES / "score.py",
        "generated",
        "--reference",
        "a.de",
        "--name",
        "n",
        "--test-set",
        "t",
    ]
    for hypotheses, results, said in (
        ("a.de", "r.md", "--hypotheses a.de is also the file of reference"),
        ("a.en", "r.md", "--hypotheses a.en already contains other text"),
        ("h.de", "./a.de", "--results ./a.de is also the file of reference"),
        ("h.de", "notes.md", "--results notes.md is not a table of this script"),
    ):
        assert said in refused(place, *common, "--hypotheses", hypotheses, "--results", results)
    assert not Path("r.md").exists() and not Path("h.de").exists()


def average(monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import average_checkpoints

    monkeypatch.setattr(sys, "argv", ["average_checkpoints.py", *map(str, arguments)])
    average_checkpoints.main()


def test_an_average_replaces_the_average_of_the_same_run_alone(place, monkeypatch):
    for run in ("run", "other"):
        Path(run).mkdir()
        for epoch in (1, 2):
            state = {"model": {"weight": torch.full((2,), float(epoch))}, "cfg": {"model": {"_name": "transformer"}}}
            torch.save(state, f"{run}/checkpoint{epoch}.pt")
    average(monkeypatch, "run", "--last", 2, "--output", "run/averaged.pt")
    first = Path("run/averaged.pt").read_bytes()
    average(monkeypatch, "run", "--last", 1, "--output", "run/averaged.pt")
    assert Path("run/averaged.pt").read_bytes() != first
    before = tree(place)
    for run, output in (
        ("run", "run/checkpoint2.pt"), ("run", "./run/../run/checkpoint1.pt"), ("other", "run/averaged.pt"),
        ("run", "a.en"), ("run", "a.en/averaged.pt"), ("run", "run"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="--output .*Remedy"):
            average(monkeypatch, run, "--last", 2, "--output", output)
        assert tree(place) == before


def test_a_students_folder_is_not_its_teachers(place):
    Path("teacher").mkdir()
    Path("teacher/checkpoint_best.pt").write_text("a teacher\n")
    said = refused(place, "bash", EXAMPLES / "distill.sh", "data", "x.pt:teacher/checkpoint_best.pt", "./teacher/")
    assert "SAVE_DIR ./teacher/ contains the teacher teacher/checkpoint_best.pt" in said


@pytest.fixture
def pipeline(place):
    pytest.importorskip("snakemake", reason="snakemake is not installed")
    for folder in ("prepared/raw", "prepared/data-bin"):
        Path(folder).mkdir(parents=True)
    Path("prepared/prepared.txt").write_text("pair en-de\n")
    Path("prepared/testsets.txt").write_text("test t\n")
    for name in ("prepared/spm.model", "prepared/dict.txt", "teacher.pt"):
        Path(name).write_text("one\n")
    for name in ("train", "valid", "test"):
        for language in ("en", "de"):
            Path(f"prepared/raw/{name}.{language}").write_text("one\n")
    command = ["bash", str(SCRIPTS / "distill_pipeline.sh"), "prepared", "out", "teacher.pt"]
    path = warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]
    return lambda: refused(place, *command, PATH=path)


def test_steps_of_the_pipeline_do_not_remove_what_is_the_users(pipeline):
    Path("out/decoded").mkdir(parents=True)
    Path("out/decoded/precious").write_text("the user's own\n")
    assert "out has a decoded" in pipeline()


def test_two_pipelines_do_not_work_in_one_folder(pipeline):
    Path("out").mkdir()
    # another process, because `tree` reads the lock, and closing a file gives up a process's locks on it
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0); print(); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-u", "-c", hold, str(Path("out", LOCK))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        said = pipeline()
        holder.stdin.close()
    assert "output out: another run is working there" in said


def test_the_quickstart_takes_no_folder_with_files_of_others(place):
    Path("mine/data").mkdir(parents=True)
    Path("mine/data/precious").write_text("the user's own\n")
    said = refused(place, "bash", SCRIPTS / "quickstart.sh", KD_QUICKSTART_DIR=str(place / "mine"))
    assert "has files that this script did not make" in said


def test_a_benchmark_writes_over_its_own_report_alone(place, monkeypatch):
    import argparse

    monkeypatch.syspath_prepend(str(SCRIPTS))
    import benchmarking

    arguments = argparse.Namespace(out=Path("reports"), device=torch.device("cpu"), quick=True)
    for _ in range(2):
        benchmarking.Report("bench_x", arguments, "nothing.").finish()
    Path("reports/bench_y.md").write_text("the user's own\n")
    Path("reports/bench_z.json").write_text(json.dumps({"benchmark": "another"}))
    for name in ("bench_y", "bench_z"):
        with pytest.raises(SystemExit, match=f"--out reports/{name}.* already exists"):
            benchmarking.Report(name, arguments, "nothing.")
    with pytest.raises(SystemExit, match="--out a.en: is a file"):
        benchmarking.Report("bench_x", argparse.Namespace(**{**vars(arguments), "out": Path("a.en")}), "nothing.")
