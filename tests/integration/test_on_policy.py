"""--kd-on-policy through the real command lines."""

import pytest

from tests.support import assert_same_weights, free_port, load, logged, run_together, train, training

SGD = ["--optimizer", "sgd", "--lr", 0.1]
SHORT = ["--max-update", 12, "--no-epoch-checkpoints", "--disable-validation"]
SAMPLED = ["--kd-on-policy", "sampled", "--kd-on-policy-max-len-a", 0, "--kd-on-policy-max-len-b", 8]
BOTH = {
    "sampled": [*SAMPLED, "--kd-on-policy-topk", 10, "--kd-on-policy-buffer", 2],
    "parallel": ["--kd-on-policy", "parallel"],
}


@pytest.mark.parametrize("mode", BOTH)
def test_share_zero_is_the_run_without_it_bit_by_bit(workspace, tmp_path, mode):
    kd = workspace.distil("--kd-alpha", 0.4)
    run_together(
        training(workspace.data, tmp_path / "without", *kd, *SHORT),
        training(workspace.data, tmp_path / "zero", *kd, *BOTH[mode], "--kd-on-policy-share", 0, *SHORT),
    )
    assert_same_weights(tmp_path / "without" / "checkpoint_last.pt", tmp_path / "zero" / "checkpoint_last.pt")


@pytest.mark.parametrize("mode", BOTH)
def test_resume_is_bitwise_in_the_middle_of_an_epoch(workspace, tmp_path, mode):
    """With dropout, and for `sampled` with translations that wait for the next on-policy update."""
    kd = [
        *workspace.distil("--kd-alpha", 0.3),
        *BOTH[mode],
        "--kd-on-policy-share",
        0.6,
        "--update-epoch-batch-itr",
        "True",
    ]
    kd += ["--disable-validation", "--max-update", 18, "--save-interval-updates", 7]
    output = train(workspace.data, tmp_path / "whole", *kd).stdout
    (start,) = (tmp_path / "whole").glob("checkpoint_*_7.pt")
    resumed = train(workspace.data, tmp_path / "resumed", *kd, "--restore-file", start).stdout
    assert_same_weights(tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "resumed" / "checkpoint_last.pt")
    if mode == "sampled":
        assert load(start)["extra_state"]["train_iterator"]["kd_on_policy"]["buffer"]
    names = ["on_policy", "on_policy_kd_loss"] + (
        ["on_policy_length", "on_policy_repeated"] if mode == "sampled" else []
    )
    whole, rest = logged(output, "train_inner"), logged(resumed, "train_inner")
    for one, other in zip(whole[7:], rest):
        assert {name: one.get(name) for name in names} == {name: other.get(name) for name in names}
    taken = [step["on_policy"] == 100 for step in whole]
    assert 3 < sum(taken) < 17
    for step, own in zip(whole, taken):
        assert own == ("on_policy_kd_loss" in step)
    assert f"|on_policy:{mode}:0.6|" in output


@pytest.mark.parametrize("mode", BOTH)
def test_two_gloo_ranks_equal_one_rank_with_update_freq_two(workspace, tmp_path, mode):
    port = free_port()
    same = [
        *workspace.distil("--kd-alpha", 0.4),
        *BOTH[mode],
        "--kd-on-policy-share",
        0.7,
        *SHORT,
        "--dropout",
        0,
        *SGD,
    ]
    same += ["--kd-on-policy-buffer", 1] if mode == "sampled" else []
    ranks = [
        training(
            workspace.data, tmp_path / "two", *same, "--distributed-no-spawn", "--distributed-rank", rank,
            "--distributed-world-size", 2, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
            "--distributed-init-method", f"tcp://localhost:{port}",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    two, _, one = run_together(*ranks, training(workspace.data, tmp_path / "one", *same, "--update-freq", 2))
    assert_same_weights(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt", 2e-6)
    for mine, other in zip(logged(one.stdout, "train_inner"), logged(two.stdout, "train_inner")):
        for name in ("loss", "nll_loss", "kd_loss", "on_policy", "on_policy_kd_loss", "on_policy_length"):
            assert mine.get(name) == pytest.approx(other.get(name), abs=2e-3), name


@pytest.mark.parametrize("mode, further", [
    ("sampled", ["--kd-packed-student", "--kd-fused-head", "--kd-divergence", "js", "--kd-selection", "batch"]),
    ("parallel", ["--kd-selection", "global", "--report-accuracy"]),
])  # fmt: skip
def test_the_student_learns_and_leaves_an_ordinary_checkpoint(workspace, tmp_path, mode, further):
    kd = [*workspace.distil("--kd-alpha", 0.2), *BOTH[mode], *further, "--lr", 0.01, "--max-update", 60]
    output = train(workspace.data, tmp_path / mode, *kd, "--no-epoch-checkpoints").stdout
    steps, valid = logged(output, "train_inner"), logged(output, "valid")
    own = [step["on_policy_kd_loss"] for step in steps if "on_policy_kd_loss" in step]
    assert sum(own[-5:]) < 0.9 * sum(own[:5])
    assert valid[-1]["valid_nll_loss"] < valid[0]["valid_nll_loss"] and "valid_on_policy" not in valid[-1]
    assert all("nll_loss" in step for step in steps if step["on_policy"] == 0)
    state = load(tmp_path / mode / "checkpoint_last.pt")
    assert not [key for key in state["cfg"]["criterion"] if "on_policy" in key]
    assert not [key for key in state["model"] if "on_policy" in key]
