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
decode: {{beam: 1, nbest: 1, engine: ctranslate2}}
select: {{by: score}}
filter: {{max-repeats: 1000, max-length-ratio: 1000, min-letters: 0, copied-source: keep}}
cache: {{k: 4}}
students:
  student: {{train: "{TINY} --kd-alpha 0.5 --max-update 6", average: 2, every: 2}}
export: {{int8: {{format: ctranslate2, check-threshold: 0}}}}
evaluate: {{bootstrap: 0}}
gap: {{bootstrap: 0}}
threads: 1
"""
STEPS = "teacher decoded selected filtered mixed cache student student-int8 evaluation gap-student report".split()
COMMAND = ["kd-plugin", "distill", "--cores", "1"]


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


def finished(folder):
    states = {path.stem: json.loads(path.read_bytes()) for path in (folder / "done").glob("*.json")}
    return {name for name, state in states.items() if state["finished"]}


def killed_within(step, config, folder, said):
    """Starts the command, kills it as soon as that step has begun; the steps that it has finished."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{warm_start.path_of_commands()}:{os.environ['PATH']}"
    env["PYTHONPATH"] = f"{warm_start.path_of_modules()}:{os.environ.get('PYTHONPATH', '')}".strip(":")
    with open(said, "w", encoding="utf-8") as log:
        process = subprocess.Popen([*COMMAND, str(config)], env=env, stdout=log, stderr=log)
        while not (folder / "logs" / f"{step}.log").exists():
            assert process.poll() is None, Path(said).read_text(encoding="utf-8")
            time.sleep(0.05)
        kill(process, folder)
    return finished(folder)


def test_killed_anywhere_it_goes_on_to_the_same_end_and_repeats_what_a_change_touches(prepared, tmp_path):  # noqa: F811
    text = FILE.replace("PREPARED", str(prepared))
    config, killed, whole = tmp_path / "c.yaml", tmp_path / "killed", tmp_path / "whole"
    config.write_text(text.replace("OUT", str(killed)), encoding="utf-8")
    before = set()
    for step in ("teacher", "student"):
        done = killed_within(step, config, killed, tmp_path / "said")
        again = begun((tmp_path / "said").read_text(encoding="utf-8"))
        assert done == set(STEPS[: STEPS.index(step)]) and len(again) == len(done - before) + 1
        before = done
    last = run(*COMMAND, config)
    assert last.returncode == 0, last.stdout + last.stderr
    assert len(begun(last.stdout)) == len(STEPS) - len(before) and finished(killed) == set(STEPS)
    page = (killed / "report.html").read_text(encoding="utf-8")
    assert "kd_loss" in page and "What it took" in page and all(f"<bdi>{step}</bdi>" in page for step in STEPS[:-1])

    # the same as without a kill; what follows the student needs no second run
    other = tmp_path / "whole.yaml"
    short = re.sub("^(export|evaluate): .*", r"\1: false", text.replace("OUT", str(whole)), flags=re.MULTILINE)
    other.write_text(short, encoding="utf-8")
    first = run(*COMMAND, other)
    assert first.returncode == 0 and finished(whole) == set(STEPS[: STEPS.index("student") + 1])
    for file in ("teacher/averaged.pt", "student/averaged.pt"):
        assert weights(killed / file) == weights(whole / file)
    assert (killed / "filtered/pseudo.de").read_bytes() == (whole / "filtered/pseudo.de").read_bytes()

    # another alpha: the student and what follows it, and nothing before
    config.write_text(config.read_text(encoding="utf-8").replace("alpha 0.5", "alpha 0.3"))
    planned = run(*COMMAND, config, "--dry-run")
    reasons = dict(re.findall(r"^\| (\S+) \| (.*?) \|", planned.stdout, re.MULTILINE))
    assert [step for step in STEPS if reasons[step] == "no: done before"] == STEPS[: STEPS.index("student")]
    assert "Params have changed" in reasons["student"]
