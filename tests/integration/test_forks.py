"""A teacher that fairseq-train made with an architecture and a task of a fork's; its student is stock fairseq's."""

import math
import shlex

import pytest

from tests.support import PLUGIN, STOCK, logged, run, train
from tests.unit.forks import MARK, PACKAGE, write_fork


@pytest.fixture(scope="module")
def fork(tmp_path_factory, workspace):
    """(folder of its code, its teacher)"""
    folder = tmp_path_factory.mktemp("fork")
    code = write_fork(folder / PACKAGE)
    train(
        workspace.data, folder / "teacher", *STOCK, "--user-dir", code, "--arch", f"transformer_18_18_{MARK}",
        "--task", f"marked_{MARK}", "--marks", 2, "--max-update", 30, "--disable-validation", "--no-epoch-checkpoints",
    )  # fmt: skip
    return code, folder / "teacher" / "checkpoint_last.pt"


def test_a_student_learns_from_it_beside_it_and_from_its_answers(fork, workspace, tmp_path):
    code, teacher = fork
    more = [*PLUGIN, "--max-update", 4, "--disable-validation", "--no-epoch-checkpoints", "--dropout", 0]
    named = ["--teacher-path", teacher, "--teacher-user-dir", code]
    beside = train(workspace.data, tmp_path / "beside", *more, *named).stdout
    answers = run(
        "kd-plugin", "cache", workspace.data, *named, "--k", 40, "--cache-dir", tmp_path / "cache", "--workers", 2,
        "--shard-tokens", 1500, "--max-tokens", 400,
    )  # fmt: skip
    assert "captures" in answers.stdout
    cached = train(workspace.data, tmp_path / "cached", *more, "--teacher-cache", tmp_path / "cache").stdout
    losses = [[step["kd_loss"] for step in logged(output, "train_inner")] for output in (beside, cached)]
    assert len(losses[0]) == 4 and all(0 < loss < math.inf for loss in losses[0])
    assert losses[0] == pytest.approx(losses[1], abs=0.02)

    # a stock checkpoint, which nobody needs the fork for
    saved = (tmp_path / "beside" / "checkpoint_last.pt").read_bytes()
    for private in (b"teacher_user_dir", PACKAGE.encode(), b"distillation_translation"):
        assert private not in saved
    assert "Generate test" in run(
        "fairseq-generate", workspace.data, "--path", tmp_path / "beside" / "checkpoint_last.pt", "--cpu",
        "--user-dir", "kd_plugin", "--gen-subset", "test", "--max-tokens", 500,
    ).stdout  # fmt: skip


def test_without_its_code_training_ends_before_it_begins(fork, workspace, tmp_path):
    _, teacher = fork
    result = train(workspace.data, tmp_path / "save", *PLUGIN, "--teacher-path", teacher, check=False)
    assert result.returncode != 0 and not (tmp_path / "save" / "checkpoint_last.pt").exists()
    assert (
        f"its architecture 'transformer_18_18_{MARK}' is not registered here. Remedy: --teacher-user-dir"
        in result.stdout
    )


def test_doctor_s_command_trains(fork, workspace, tmp_path):
    """With its teacher's flags, and the data filled in."""
    code, teacher = fork
    report = run("kd-plugin", "doctor", "--teacher", teacher, "--user-dir", code, check=False).stdout
    command = shlex.split(report[report.index("fairseq-train DATA_BIN") :].replace("\\\n", " "))
    assert command[:2] == ["fairseq-train", "DATA_BIN"]
    given = dict(zip(command[2::2], command[3::2]))
    assert given["--teacher-user-dir"] == str(code)
    output = train(
        workspace.data, tmp_path / "save", *PLUGIN, "--teacher-path", given["--teacher-path"],
        "--teacher-sha256", given["--teacher-sha256"], "--teacher-user-dir", given["--teacher-user-dir"],
        "--max-update", 1, "--disable-validation", "--no-save",
    ).stdout  # fmt: skip
    assert "|teacher:" in output
