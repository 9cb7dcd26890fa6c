"""`kd-plugin distill` through the command line, on a tiny corpus: the whole way, kills, and what a change repeats."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from kd_plugin.checkpoints.read import read_checkpoint
from tests import warm_start
from tests.integration.test_examples import multi30k, prepared, run  # noqa: F401

psutil = pytest.importorskip("psutil", reason="psutil is not installed")
pytest.importorskip("snakemake", reason="snakemake is not installed")
pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")

TINY = (
    "--arch transformer --share-all-embeddings --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2 --encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-ffn-embed-dim 16 "
    "--decoder-ffn-embed-dim 16 --optimizer adam --lr 0.01 --max-tokens 1000 --num-workers 0 --cpu"
)
# a teacher of few updates writes nothing but loops
FILE = f"""\
output: OUT
corpus: PREPARED
teacher: {{train: "{TINY} --max-update 40", average: 1}}
decode: {{beam: 2, nbest: 2, engine: ctranslate2}}
filter: {{max-repeats: 1000, max-length-ratio: 1000, min-letters: 0, copied-source: keep}}
cache: {{k: 4}}
students:
  student: {{train: "{TINY} --kd-alpha 0.5 --max-update 12", average: 2, every: 2}}
export: {{int8: {{format: ctranslate2, check-threshold: 0}}}}
evaluate: {{bootstrap: 0}}
gap: {{bootstrap: 0}}
threads: 1
"""
STEPS = "teacher decoded selected filtered mixed cache student student-int8 evaluation gap-student report".split()


def begun(text):
    """What a run says that it has begun, in order."""
    return re.findall(r"^(.*) \(log: ", text, re.MULTILINE)


def weights(path):
    model = read_checkpoint(str(path))["model"]
    return hashlib.sha256(b"".join(model[name].numpy().tobytes() for name in sorted(model))).hexdigest()


def kill(process, folder):
    """The command and all that works in its folder, at once."""
    process.kill()
    process.wait()
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(each.cwd()) == folder:
                each.kill()


def test_killed_anywhere_it_goes_on_to_the_same_end_and_repeats_what_a_change_touches(prepared, tmp_path):  # noqa: F811
    config = {}
    for name in ("whole", "killed"):
        config[name] = tmp_path / f"{name}.yaml"
        text = FILE.replace("OUT", str(tmp_path / name)).replace("PREPARED", str(prepared))
        config[name].write_text(text, encoding="utf-8")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = run("kd-plugin", "distill", config["whole"], "--cores", "1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert len(begun(first.stdout)) == len(STEPS)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "kd_loss" in page and "What it took" in page and all(f"<bdi>{step}</bdi>" in page for step in STEPS[:-1])

    # killed when some steps are done and the next one has begun, and then again
    said = ""
    for step in ("decoded", "cache"):
        with open(tmp_path / "said", "w+", encoding="utf-8") as log:
            env = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PATH": f"{warm_start.path_of_commands()}:{os.environ['PATH']}",
            }
            command = ["kd-plugin", "distill", str(config["killed"]), "--cores", "1"]
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            while not (killed / "done" / step).exists():
                assert process.poll() is None, Path(log.name).read_text(encoding="utf-8")
                time.sleep(0.1)
            time.sleep(1)
            kill(process, killed)
        said += Path(log.name).read_text(encoding="utf-8")
    finished = {path.stem for path in (killed / "done").glob("*.json") if json.loads(path.read_bytes())["finished"]}
    last = run("kd-plugin", "distill", config["killed"], "--cores", "1")
    assert last.returncode == 0, last.stdout + last.stderr
    counts = {what: begun(said + last.stdout).count(what) for what in begun(first.stdout)}
    assert {"teacher", "decoded", "cache"} <= finished and max(counts.values()) <= 2
    assert counts[begun(first.stdout)[0]] == 1  # the teacher was finished before any kill
    # the same end
    for file in ("teacher/averaged.pt", "student/averaged.pt"):
        assert weights(killed / file) == weights(whole / file)
    for file in ("filtered/pseudo.de", "evaluation/translations/student/test_2016_flickr.txt"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()

    again = run("kd-plugin", "distill", config["killed"], "--cores", "1")
    assert again.returncode == 0 and begun(again.stdout) == []

    # another alpha: the student and what follows it, and nothing before
    config["killed"].write_text(config["killed"].read_text(encoding="utf-8").replace("alpha 0.5", "alpha 0.3"))
    planned = run("kd-plugin", "distill", config["killed"], "--cores", "1", "--dry-run")
    reasons = dict(re.findall(r"^\| (\S+) \| (.*?) \|", planned.stdout, re.MULTILINE))
    assert [step for step in STEPS if reasons[step] == "no: done before"] == STEPS[: STEPS.index("student")]
    assert "Params have changed" in reasons["student"] or "Code" in reasons["student"]
