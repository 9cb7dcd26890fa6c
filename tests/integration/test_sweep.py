"""kd-plugin sweep with real trainings."""

import json
import os
import shlex

import pytest

from tests import warm_start
from tests.support import BATCHES, MODEL, logged, run

pytest.importorskip("optuna")


def test_trials_end_as_their_printed_command_does(workspace, tmp_path):
    flags = map(str, [workspace.data, "--cpu", *MODEL, *BATCHES, *workspace.distil("--kd-alpha", 0.5)])
    config = {
        "train": [*flags, "--optimizer", "adam", "--lr", "0.01", "--label-smoothing", "0.1"],
        "parameters": {"--kd-alpha": ["0.5", "0.1"], "--kd-packed-student": ["true", "false"]},
        "trials": "2", "updates": "12", "validate": "4", "retrain": {"best": "1", "seeds": ["1"]},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(config))  # JSON is YAML
    env = {} if os.environ.get("KD_TEST_COLD") else {"PATH": warm_start.path_of_commands()}
    out = tmp_path / "out"
    first = run("kd-plugin", "sweep", tmp_path / "sweep.yaml", "--output", out, env=env).stdout
    content = json.loads((out / "sweep.json").read_text())
    given = next(trial for trial in content["trials"] if trial["given"])
    assert given["values"] == {"--kd-alpha": "0.5", "--kd-packed-student": "false"}
    assert all(trial["state"] == "done" and trial["updates"] == 12 for trial in content["trials"])
    assert len({trial["value"] for trial in content["trials"]}) == 2 and content["command"] in first
    words = shlex.split(content["command"].replace("checkpoints/best", str(tmp_path / "again")))
    assert words.count("--kd-alpha") == 1
    valid = [step["valid_nll_loss"] for step in logged(run(*words).stdout, "valid")]
    assert len(valid) == 3 and min(valid) == content["trials"][0]["value"]
    # a second call has nothing left to do
    before = {path: path.stat().st_mtime_ns for path in out.rglob("train.log")}
    second = run("kd-plugin", "sweep", tmp_path / "sweep.yaml", "--output", out, env=env).stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("train.log")} == before and len(before) == 2
    assert content == json.loads((out / "sweep.json").read_text()) and content["command"] in second
