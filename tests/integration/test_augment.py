"""--kd-augment through the real command lines: who reads what, and that nothing but the seed decides."""

from tests.support import (
    PLUGIN,
    assert_same_weights,
    free_port,
    logged,
    run,
    run_together,
    training,
)

SPEC = "upper:0.3,typo:0.5:0.3"  # words are symbols in this corpus, so noise makes unknown ones
SHORT = ["--max-update", 6, "--disable-validation"]


def test_teachers_read_clean_sources_and_nothing_changes_without_noise(workspace, tmp_path):
    """A teacher's likelihood of the references depends on its source, and is that of the run without the flag; answers
    from a cache stay valid; probability 0 is the run without the flag, bit by bit."""
    cache = ["--teacher-path", workspace.teacher, "--subset", "train", "--cache-dir", tmp_path / "cache", "--k", 8]
    run("kd-plugin", "cache", workspace.data, *cache)
    flags = [*workspace.distil("--kd-alpha", 0.5), *SHORT]
    noisy = ["--kd-augment", SPEC]
    cached = [*PLUGIN, "--teacher-cache", tmp_path / "cache", "--kd-alpha", 0.5, *SHORT, *noisy]
    plain, zero, student, stored = run_together(
        training(workspace.data, tmp_path / "plain", *flags),
        training(workspace.data, tmp_path / "zero", *flags, "--kd-augment", "upper:0,typo:0"),
        training(workspace.data, tmp_path / "noisy", *flags, *noisy, "--kd-packed-student"),
        training(workspace.data, tmp_path / "stored", *cached),
    )
    assert_same_weights(tmp_path / "plain" / "checkpoint_last.pt", tmp_path / "zero" / "checkpoint_last.pt")
    steps = [logged(result.stdout, "train_inner") for result in (plain, zero, student, stored)]
    assert all(len(found) == 6 for found in steps)
    for one, nothing, other, from_cache in zip(*steps):
        assert one["loss"] == nothing["loss"] and "augmented" not in one and "augmented" not in nothing
        assert one["teacher_nll_loss"] == other["teacher_nll_loss"]
        assert 30 < other["augmented"] < 95 and other["augment_left"] == 0
        assert other["augmented"] == from_cache["augmented"] and abs(other["ce_loss"] - from_cache["ce_loss"]) < 0.5
    assert steps[0][0]["ce_loss"] != steps[2][0]["ce_loss"]
    assert f"|augment:{SPEC}|" in student.stdout and "augment" not in plain.stdout.replace("kd_augment", "")
    assert b"kd_augment" not in (tmp_path / "noisy" / "checkpoint_last.pt").read_bytes()


def test_resume_with_workers_is_bitwise(workspace, tmp_path):
    """In mid-epoch, with R-Drop: a run in two parts, the second with data-loading workers, is the run in one."""
    flags = [*workspace.distil("--kd-alpha", 0.5, "--kd-augment", SPEC, "--kd-rdrop", 1), "--disable-validation"]
    flags += ["--update-epoch-batch-itr", "True", "--save-interval-updates", 7, "--max-update", 22]
    output = run(*training(workspace.data, tmp_path / "whole", *flags)).stdout
    (middle,) = (tmp_path / "whole").glob("checkpoint_*_7.pt")
    more = ["--restore-file", middle, "--num-workers", 2]
    resumed = run(*training(workspace.data, tmp_path / "rest", *flags, *more)).stdout
    assert_same_weights(tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "rest" / "checkpoint_last.pt")
    one, other = logged(output, "train_inner"), logged(resumed, "train_inner")
    assert [step["augmented"] for step in one[7:]] == [step["augmented"] for step in other]
    assert one[-1]["epoch"] > 1


def test_two_ranks_are_one_with_twice_the_batches(workspace, tmp_path):
    """With the student's own words beside the references."""
    flags = [*workspace.distil("--kd-alpha", 0.5, "--kd-augment", SPEC, "--kd-on-policy", "parallel"), *SHORT]
    flags += ["--optimizer", "sgd", "--lr", 0.1, "--dropout", 0]
    rank = ["--distributed-no-spawn", "--distributed-world-size", 2, "--distributed-backend", "gloo"]
    rank += ["--distributed-init-method", f"tcp://localhost:{free_port()}", "--ddp-backend", "legacy_ddp"]
    one, *ranks = run_together(
        training(workspace.data, tmp_path / "one", *flags, "--update-freq", 2),
        *(training(workspace.data, tmp_path / "two", *flags, *rank, "--distributed-rank", at) for at in range(2)),
    )
    assert_same_weights(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt", 1e-5)
    for alone, together in zip(logged(one.stdout, "train_inner"), logged(ranks[0].stdout, "train_inner")):
        assert alone["augmented"] == together["augmented"] > 0


def test_what_does_not_go_with_noise_is_refused_by_name(workspace, tmp_path):
    for more, message in (
        (["--kd-hidden", "mse"], "--kd-hidden compares layers"),
        (["--num-batch-buckets", 2], "--num-batch-buckets"),
    ):
        command = workspace.distil("--kd-alpha", 0.5, "--kd-augment", SPEC, *more)
        refused = run(*training(workspace.data, tmp_path / "no", *command, *SHORT), check=False)
        assert refused.returncode != 0 and message in refused.stdout and "Remedy" in refused.stdout, refused.stdout[
            -800:
        ]
    assert not (tmp_path / "no" / "checkpoint_last.pt").exists()
