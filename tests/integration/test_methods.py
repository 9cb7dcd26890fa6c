"""examples/translation/methods.sh: several methods and seeds beside each other."""

import os
import subprocess

from tests import warm_start
from tests.support import ROOT, load

SETTINGS = {"MAX_UPDATE": "4", "AVERAGE": "2", "WARMUP": "2", "OMP_NUM_THREADS": "1", "SEEDS": "3"}
SETTINGS.update(ENCODER_LAYERS="1", DECODER_LAYERS="1", DIM="16", FFN="32", HEADS="2")


def methods(workspace, out, text, **settings):
    path = warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]
    file = out.parent / "methods.tsv"
    file.write_text(text)
    script = ROOT / "examples" / "translation" / "methods.sh"
    return subprocess.run(
        ["bash", script, workspace.data, workspace.teacher, out, file, "--disable-validation", "--num-workers", "0"],
        env={**os.environ, "PATH": path, **SETTINGS, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=600,
    )  # fmt: skip


def test_each_method_trains_the_same_student_and_its_cost_is_written_down(workspace, tmp_path):
    out = tmp_path / "out"
    text = f"# a comment\nplain\t-\t--kd-alpha 1\nsecond\t{out}/plain-3/averaged.pt\t--kd-rdrop 1\n"
    refused = methods(workspace, out, text)
    assert refused.returncode == 1 and "starts from" in refused.stdout and not out.exists()
    done = methods(workspace, out, "plain\t-\t--kd-alpha 1\nrdrop\t-\t--kd-rdrop 1")
    assert done.returncode == 0, done.stdout[-3000:]
    logs = {name: (out / f"{name}-3.log").read_text() for name in ("plain", "rdrop")}
    assert "rdrop_loss" in logs["rdrop"] and "rdrop_loss" not in logs["plain"] and "kd_alpha 1" in logs["plain"]
    state = load(out / "rdrop-3" / "checkpoint_last.pt")
    assert state["cfg"]["common"]["seed"] == 3 and state["optimizer_history"][-1]["num_updates"] == 4
    assert (out / "plain-3" / "averaged.pt").is_file()
    lines = [line.split("\t") for line in (out / "costs.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines[1:]] == [["plain", "3"], ["rdrop", "3"]]
    assert all(float(line[2]) >= 0 and float(line[3]) > 0 for line in lines[1:])
    again = methods(workspace, out, "plain\t-\t--kd-alpha 1\nrdrop\t-\t--kd-rdrop 2")
    assert again.returncode == 1 and "plain-3: done before" in again.stdout
    assert "rdrop-3 was begun with other settings" in again.stdout


def test_a_wrong_list_is_refused_before_any_work(workspace, tmp_path):
    for text, message in (
        ("", "names no method"),
        ("a b\t-\tx\n", "cannot name a folder"),
        ("a\t-\t\na\t-\t\n", "a occurs twice"),
        ("a\n", "no second column"),
    ):
        done = methods(workspace, tmp_path / "out", text)
        assert done.returncode == 1 and message in done.stdout and not (tmp_path / "out").exists()
