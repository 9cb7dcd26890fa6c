"""What must hold of training runs with terms on inner states, through the real fairseq command lines."""

import importlib.util

import pytest
import torch

from tests.support import (
    MODEL,
    USER_DIR,
    assert_same_weights,
    free_port,
    load,
    logged,
    make_checkpoint,
    run,
    run_together,
    train,
    training,
)

SHORT = ["--max-update", 12, "--no-epoch-checkpoints", "--disable-validation"]
ALL_TERMS = [
    "--kd-hidden", "factor", "--kd-factor-updates", 11, "--kd-factor-dim", 6, "--kd-attention", "both", "--kd-rdrop", 2,
    "--kd-hidden-weight", 0.5, "--kd-hidden-weight-end", 0.1, "--kd-schedule", "linear", "--kd-schedule-updates", 30,
    "--kd-projection-rate", 2,
]  # fmt: skip


def same_criterion(one, other, tolerance=0.0):
    a, b = load(one)["criterion"], load(other)["criterion"]
    assert a.keys() == b.keys() and len(a) > 1
    for name, value in a.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert value == b[name], name
    return a


def test_weight_zero_is_the_run_without_it_bit_by_bit(workspace, tmp_path):
    kd = workspace.distil("--kd-alpha", 0.3)
    off = ["--kd-hidden", "factor", "--kd-hidden-weight", 0, "--kd-attention", "both", "--kd-attention-weight", 0]
    run_together(
        training(workspace.data, tmp_path / "without", *kd, *SHORT),
        training(workspace.data, tmp_path / "zero", *kd, *off, *SHORT),
    )
    one, other = (tmp_path / name / "checkpoint_last.pt" for name in ("without", "zero"))
    assert_same_weights(one, other)
    assert load(other)["criterion"] is None


@pytest.mark.parametrize("parts", [7, 16], ids=["while the auto-encoder learns", "after it is frozen"])
@pytest.mark.parametrize("student", [[], ["--kd-packed-student", "--kd-fused-head"]], ids=["plain", "packed and fused"])
def test_all_terms_together_resume_bitwise_in_mid_epoch(workspace, tmp_path, parts, student):
    """Weights, projections and optimiser; the auto-encoder is frozen at the same update with the same values."""
    flags = workspace.distil(
        "--kd-alpha", 0.4, *ALL_TERMS, *student, "--update-epoch-batch-itr", "True", "--disable-validation",
        "--max-update", 20, "--save-interval-updates", parts, "--no-epoch-checkpoints",
    )  # fmt: skip
    output = train(workspace.data, tmp_path / "whole", *flags).stdout
    assert "compression 5.3, learns for 11 updates" in output
    (start,) = (tmp_path / "whole").glob(f"checkpoint_*_{parts}.pt")
    resumed = train(workspace.data, tmp_path / "resumed", *flags, "--restore-file", start).stdout
    assert "Loaded checkpoint" in resumed
    one, other = (tmp_path / name / "checkpoint_last.pt" for name in ("whole", "resumed"))
    assert_same_weights(one, other)
    state = same_criterion(one, other)
    frozen = [value["frozen"] for name, value in state.items() if name.startswith("hidden") and "_extra_state" in name]
    assert frozen == [True, True]
    steps = logged(output, "train_inner")
    assert ["hidden_loss" in step for step in steps] == [False] * 11 + [True] * 9
    assert all("factor_error" in step and "attention_loss" in step and "rdrop_loss" in step for step in steps)
    assert steps[10]["factor_error"] < steps[0]["factor_error"]


def test_two_gloo_ranks_equal_one_rank_with_update_freq_two(workspace, tmp_path):
    """Same batches: weights and projections agree to 2e-6, logged values to their rounding."""
    kd = workspace.distil("--kd-alpha", 0.4, "--kd-hidden", "mse", "--kd-attention", "both")
    same = [*SHORT, "--dropout", 0, "--optimizer", "sgd", "--lr", 0.1]
    port = free_port()
    ranks = [
        training(
            workspace.data, tmp_path / "two", *kd, *same, "--distributed-no-spawn", "--distributed-rank", rank,
            "--distributed-world-size", 2, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
            "--distributed-init-method", f"tcp://localhost:{port}",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    two = run_together(*ranks)[0].stdout
    one = train(workspace.data, tmp_path / "one", *kd, *same, "--update-freq", 2).stdout
    first, second = (tmp_path / name / "checkpoint_last.pt" for name in ("one", "two"))
    assert_same_weights(first, second, 2e-6)
    same_criterion(first, second, 2e-6)
    steps = list(zip(logged(one, "train_inner"), logged(two, "train_inner")))
    assert len(steps) == 12
    for step_one, step_two in steps:
        for name in ("loss", "nll_loss", "kd_loss", "hidden_loss", "attention_loss", "wpb"):
            assert step_one[name] == pytest.approx(step_two[name], abs=3e-3), name


def test_terms_add_up_and_the_student_stays_an_ordinary_checkpoint(workspace, tmp_path):
    """In training and validation; stock fairseq reads the student, and its exports are a plain student's in size."""
    flags = ["--kd-hidden", "cosine", "--kd-hidden-weight", 3, "--kd-attention", "cross", "--kd-attention-weight", 2]
    short = ["--max-update", 10, "--no-epoch-checkpoints"]
    train(workspace.data, tmp_path / "plain", *workspace.distil("--kd-alpha", 0.3), *short)
    output = train(workspace.data, tmp_path / "kd", *workspace.distil("--kd-alpha", 0.3, *flags), *short).stdout
    steps, (valid,) = logged(output, "train_inner"), logged(output, "valid")
    assert "|hidden:cosine:last:3|attention:cross:last:2|teacher:" in output
    for prefix, entries in (("", steps), ("valid_", [valid])):
        for entry in entries:
            value = {
                name: entry[prefix + name] for name in ("loss", "ce_loss", "kd_loss", "hidden_loss", "attention_loss")
            }
            terms = 0.3 * value["ce_loss"] + 0.7 * value["kd_loss"]
            terms += 3 * value["hidden_loss"] + 2 * value["attention_loss"]
            assert value["loss"] == pytest.approx(terms, abs=1e-2) and value["hidden_loss"] > 0
    assert steps[-1]["hidden_loss"] < steps[0]["hidden_loss"]

    plain, student = (tmp_path / name / "checkpoint_last.pt" for name in ("plain", "kd"))
    a, b = load(plain), load(student)
    assert a["model"].keys() == b["model"].keys()
    assert all(a["model"][name].shape == b["model"][name].shape for name in a["model"])
    assert a["cfg"]["criterion"] == b["cfg"]["criterion"] and a["cfg"]["task"].keys() == b["cfg"]["task"].keys()
    generated = run(
        "fairseq-generate", workspace.data, "--path", student, "--user-dir", USER_DIR, "--cpu", "--gen-subset", "test",
        "--max-tokens", 500,
    ).stdout  # fmt: skip
    assert "Generate test" in generated
    formats = ["fairseq"] + (["ctranslate2"] if importlib.util.find_spec("ctranslate2") else [])
    for to in formats:
        sizes = []
        for name in ("plain", "kd"):
            exported = tmp_path / f"{name}-{to}"
            checkpoint = tmp_path / name / "checkpoint_last.pt"
            run("kd-plugin", "export", checkpoint, "--output", exported, "--format", to, "--dict-dir", workspace.data)
            sizes.append(sum(file.stat().st_size for file in exported.iterdir() if file.suffix in (".pt", ".bin")))
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-3) and sizes[0] > 10_000


def test_checkpoints_without_projections_are_refused_or_say_that_they_start_anew(workspace, tmp_path):
    """A resume that would go on with an optimiser of other parameters is refused; a new beginning is announced."""
    kd = workspace.distil("--kd-alpha", 0.3)
    train(workspace.data, tmp_path / "plain", *kd, *SHORT)
    start = tmp_path / "plain" / "checkpoint_last.pt"
    flags = [*kd, "--kd-hidden", "mse", *SHORT, "--max-update", 14]
    refused = training(workspace.data, tmp_path / "refused", *flags, "--restore-file", start)
    result = run(*refused, check=False)
    assert result.returncode not in (0, None) and not list((tmp_path / "refused").glob("*.pt"))
    last = result.stdout.strip().splitlines()[-1]
    assert "the checkpoint has no projections for --kd-hidden. Remedy: --reset-optimizer" in last
    for name, extra in (
        ("reset", ["--restore-file", start, "--reset-optimizer"]),
        ("finetuned", ["--finetune-from-model", start]),
    ):
        output = train(workspace.data, tmp_path / name, *flags, *extra).stdout
        assert "the checkpoint has no projections for --kd-hidden: they start anew" in output
        assert load(tmp_path / name / "checkpoint_last.pt")["criterion"]
    other = training(
        workspace.data, tmp_path / "other", *kd, "--kd-hidden", "mse", "--kd-attention", "self", *SHORT, "--max-update",
        30, "--restore-file", tmp_path / "reset" / "checkpoint_last.pt",
    )  # fmt: skip
    result = run(*other, check=False)
    assert result.returncode not in (0, None)
    assert "has projections of other layers or sizes for --kd-hidden and --kd-attention" in result.stdout


def test_teachers_and_students_of_other_depths_and_kinds(workspace, tmp_path):
    """A deeper, wider pre-norm teacher, pairs by hand; a cache or an ensemble has no layers, and is refused at once."""
    teacher = tmp_path / "teacher.pt"
    make_checkpoint(
        teacher, workspace.data, *MODEL, "--encoder-layers", 6, "--decoder-layers", 6, "--encoder-embed-dim", 40,
        "--decoder-embed-dim", 40, "--encoder-normalize-before", "--decoder-normalize-before",
    )  # fmt: skip
    kd = [*workspace.distil("--kd-alpha", 0.3), "--teacher-path", teacher]
    layers = ["--kd-hidden-layers", "enc:0-0,5-1;dec:5-0", "--encoder-layers", 2]
    output = train(
        workspace.data, tmp_path / "kd", *kd, "--kd-hidden", "relation", *layers, *SHORT, "--max-update", 4
    ).stdout
    assert all(step["hidden_loss"] > 0 for step in logged(output, "train_inner"))
    twice = [*kd, "--teacher-path", f"{teacher}:{workspace.teacher}", "--kd-attention", "self"]
    lstm = [*kd, "--kd-hidden", "mse", "--arch", "lstm"]
    for flags, named in (
        (twice, "--kd-attention needs a teacher's"),
        (lstm, "--kd-hidden: the student is not a transf"),
    ):
        command = [part for part in training(workspace.data, tmp_path / "no", *flags, *SHORT)]
        if flags is lstm:  # without the flags of a transformer
            command = [
                "fairseq-train",
                workspace.data,
                "--cpu",
                "--save-dir",
                tmp_path / "no",
                *lstm,
                "--optimizer",
                "sgd",
            ]
            command += ["--lr", 0.1, "--max-tokens", 200, *SHORT]
        result = run(*command, check=False)
        assert result.returncode not in (0, None) and named in result.stdout
    assert not list((tmp_path / "no").glob("*.pt"))
