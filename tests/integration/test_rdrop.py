"""What must hold of a training run with R-Drop, through the real fairseq command lines."""

import pytest

from tests.support import (
    PLUGIN,
    assert_same_weights,
    free_port,
    load,
    logged,
    run_together,
    train,
    training,
)

SHORT = ["--max-update", 12, "--no-epoch-checkpoints", "--disable-validation"]


def test_weight_zero_is_the_run_without_it_bit_by_bit(workspace, tmp_path):
    kd = workspace.distil("--kd-alpha", 0.3)
    run_together(
        training(workspace.data, tmp_path / "without", *kd, *SHORT),
        training(workspace.data, tmp_path / "zero", *kd, "--kd-rdrop", 0, *SHORT),
    )
    assert_same_weights(tmp_path / "without" / "checkpoint_last.pt", tmp_path / "zero" / "checkpoint_last.pt")


def test_terms_add_up_in_training_and_validation_has_one_pass(workspace, tmp_path):
    """Beside a teacher, and without teacher and without the plugin's task."""
    commands = {
        "beside": workspace.distil("--kd-alpha", 0.3, "--kd-rdrop", 2),
        "alone": [*PLUGIN, "--task", "translation", "--kd-alpha", 1, "--kd-rdrop", 2],
    }
    for name, flags in commands.items():
        output = train(workspace.data, tmp_path / name, *flags, "--max-update", 6, "--no-epoch-checkpoints").stdout
        steps, (valid,) = logged(output, "train_inner"), logged(output, "valid")
        assert len(steps) == 6 and ("|rdrop:2|" in output) == (name == "beside")  # fairseq's own task logs no signature
        for step in steps:
            kd = 0.3 * step["ce_loss"] + 0.7 * step["kd_loss"] if name == "beside" else step["ce_loss"]
            assert step["loss"] == pytest.approx(kd + 2 * step["rdrop_loss"], abs=6e-3) and step["rdrop_loss"] > 0
            assert step["ppl"] == pytest.approx(2 ** step["nll_loss"], rel=2e-2)
        assert "valid_rdrop_loss" not in valid
        assert abs(valid["valid_nll_loss"] - steps[-1]["nll_loss"]) < 0.5  # not doubled
        keys = load(tmp_path / name / "checkpoint_last.pt")
        assert "criterion" not in keys or keys["criterion"] is None


def test_resume_is_bitwise(workspace, tmp_path):
    flags = workspace.distil(
        "--kd-alpha", 0.4, "--kd-rdrop", 3, "--kd-selection", "global", "--kd-packed-student", "--kd-fused-head",
        "--update-epoch-batch-itr", "True", "--disable-validation", "--max-update", 16, "--save-interval-updates", 9,
    )  # fmt: skip
    train(workspace.data, tmp_path / "whole", *flags)
    (start,) = (tmp_path / "whole").glob("checkpoint_*_9.pt")
    resumed = train(workspace.data, tmp_path / "resumed", *flags, "--restore-file", start).stdout
    assert "Loaded checkpoint" in resumed
    assert_same_weights(tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "resumed" / "checkpoint_last.pt")


# each sentence pair gets the dropout that its batch's ids decide, so that it does not depend on who computes it
SEEDED = """
import sys, torch
from fairseq_cli import train  # first: it sets up the logging
from kd_plugin.distill.student import Student
passes = Student.passes
def seeded(self, model, sample, *rest):
    torch.manual_seed(int(sample["id"].sum()) + 1)
    return passes(self, model, sample, *rest)
Student.passes = seeded
train.cli_main()
"""


def test_two_gloo_ranks_equal_one_rank_with_update_freq_two(workspace, tmp_path):
    """Same batches with the same dropout: weights agree to 2e-6, logged values to their rounding."""
    (tmp_path / "seeded.py").write_text(SEEDED)
    kd = workspace.distil("--kd-alpha", 0.4, "--kd-rdrop", 2)
    same = [*SHORT, "--optimizer", "sgd", "--lr", 0.1]

    def command(name, *extra):
        return ["python", tmp_path / "seeded.py", *training(workspace.data, tmp_path / name, *kd, *same, *extra)[1:]]

    port = free_port()
    ranks = [
        command(
            "two", "--distributed-no-spawn", "--distributed-rank", rank, "--distributed-world-size", 2,
            "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-init-method",
            f"tcp://localhost:{port}",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    two = run_together(*ranks)[0].stdout
    one = run_together(command("one", "--update-freq", 2))[0].stdout
    assert_same_weights(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt", 2e-6)
    steps = list(zip(logged(one, "train_inner"), logged(two, "train_inner")))
    assert len(steps) == 12
    for step_one, step_two in steps:
        assert step_one["rdrop_loss"] > 0
        for name in ("loss", "nll_loss", "kd_loss", "rdrop_loss", "agreement", "wpb"):
            assert step_one[name] == pytest.approx(step_two[name], abs=2e-3), name
