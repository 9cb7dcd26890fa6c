"""A multilingual student with a teacher per pair, through the real command lines."""

import pytest

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
)
from tests.unit import multilingual

TASK = "translation_multi_simple_epoch"
TRAIN = [
    "--arch", "transformer", *MODEL[2:], "--share-all-embeddings", "--optimizer", "sgd", "--lr", 0.1, "--seed", 5,
    "--cpu", "--max-sentences", 4, "--required-batch-size-multiple", 1, "--num-workers", 0, "--data-buffer-size", 0,
    "--log-format", "json", "--log-interval", 1, "--label-smoothing", 0.1, "--no-epoch-checkpoints",
    "--encoder-langtok", "tgt", "--decoder-langtok",
]  # fmt: skip
KD = ["--user-dir", USER_DIR, "--task", f"distillation_{TASK}", "--criterion", "kd_label_smoothed_cross_entropy"]
STOCK = ["--task", TASK, "--criterion", "label_smoothed_cross_entropy"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Multilingual data, teachers of two of three pairs, and the routing file."""
    folder = tmp_path_factory.mktemp("pairs")
    data = multilingual.write(folder / "data", splits=("train", "valid"), times=4)
    lines = []
    for seed, pair in enumerate(("de-en", "en-fr")):
        source, target = pair.split("-")
        path = folder / pair / "teacher.pt"
        make_checkpoint(path, data, *MODEL, "-s", source, "-t", target, seed=seed)
        lines.append(f"  {pair}: {path}\n")
    (folder / "routing.yaml").write_text("switch_off: true\nteachers:\n" + "".join(lines))
    return folder


def command(pairs, save_dir, *more):
    return ["fairseq-train", pairs / "data", *multilingual.flags(), *TRAIN, "--save-dir", save_dir, *more]


def test_alpha_one_is_stock_fairseq_bit_by_bit_and_generate_reads_it_without_the_plugin(pairs, tmp_path):
    same = ["--max-update", 8, "--dropout", 0.1]
    _, kd = run_together(
        command(pairs, tmp_path / "stock", *STOCK, *same),
        command(pairs, tmp_path / "kd", *KD, "--kd-alpha", 1, "--teacher-routing", pairs / "routing.yaml", *same),
    )
    stock, student = (load(tmp_path / name / "checkpoint_last.pt") for name in ("stock", "kd"))
    assert_same_weights(tmp_path / "stock" / "checkpoint_last.pt", tmp_path / "kd" / "checkpoint_last.pt")
    assert "teacher[de-en]:sha256:" in kd.stdout and "switch_off:0" in kd.stdout
    assert student["cfg"]["task"]._name == TASK and student["cfg"]["criterion"] == stock["cfg"]["criterion"]
    for part in ("task", "model"):
        ours, theirs = vars(student["cfg"][part]), vars(stock["cfg"][part])
        different = {"save_dir", "tensorboard_logdir"}
        assert {k: v for k, v in ours.items() if k not in different} == {
            k: v for k, v in theirs.items() if k not in different
        }
    generate = ["fairseq-generate", pairs / "data", "--task", TASK, "-s", "de", "-t", "en", "--gen-subset", "valid"]
    generate += [*multilingual.flags("--encoder-langtok", "tgt", "--decoder-langtok"), "--cpu", "--max-len-b", 10]
    outputs = run_together(
        *([*generate, "--path", tmp_path / name / "checkpoint_last.pt"] for name in ("stock", "kd")),
        # since torch 2.6, stock fairseq needs it for all checkpoints of its older tasks, which hold a namespace
        env={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )
    written = [[line for line in output.stdout.splitlines() if line[:2] in ("S-", "H-")] for output in outputs]
    assert written[0] == written[1] and len(written[0]) >= 12


def test_distils_the_pairs_that_have_teachers_and_says_so(pairs, tmp_path):
    output = run(
        *command(pairs, tmp_path, *KD, "--kd-alpha", 0.3, "--teacher-routing", pairs / "routing.yaml"),
        "--max-update",
        8,
    ).stdout
    steps, (valid,) = logged(output, "train_inner"), logged(output, "valid")[-1:]
    assert all(0 <= step["kd_untaught"] <= 100 for step in steps) and steps[0]["kd_loss"] > 0
    # of all tokens, those of fr-en, and of the others their tag, which the teachers have never seen
    sizes = {pair: [len(target) + 2 for _, target in data] for pair, data in multilingual.DATA.items()}
    tokens, tags = sum(map(sum, sizes.values())), len(sizes["de-en"]) + len(sizes["en-fr"])
    assert valid["valid_kd_untaught"] == pytest.approx(100 * (sum(sizes["fr-en"]) + tags) / tokens, abs=0.01)
    for pair in ("de-en", "en-fr"):
        assert valid[f"valid_nll_loss_{pair}"] > 0 and valid[f"valid_teacher_nll_loss_{pair}"] > 0
    assert "valid_nll_loss_fr-en" not in valid
    # neither has learned anything, and the student soon has
    assert "from here on without the teacher" in output


def test_resumes_bit_by_bit_with_the_teachers_that_rest(pairs, tmp_path):
    kd = [*KD, "--kd-alpha", 0.3, "--teacher-routing", pairs / "routing.yaml", "--kd-selection", "global"]
    kd += ["--validate-interval-updates", 3, "--save-interval-updates", 5, "--keep-interval-updates", 1]
    whole = run(*command(pairs, tmp_path / "whole", *kd, "--max-update", 12)).stdout
    run(*command(pairs, tmp_path / "parts", *kd, "--max-update", 7))
    resumed = run(*command(pairs, tmp_path / "parts", *kd, "--max-update", 12)).stdout
    assert_same_weights(tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "parts" / "checkpoint_last.pt")
    assert "from here on without the teacher" in whole
    # what rested before goes on resting, and is not decided anew
    state = load(tmp_path / "parts" / "checkpoint_last.pt")["extra_state"]["train_iterator"]["kd_teacher"]
    assert state == load(tmp_path / "whole" / "checkpoint_last.pt")["extra_state"]["train_iterator"]["kd_teacher"]
    assert state["resting"]
    steps = logged(resumed, "train_inner")
    assert [step["kd_untaught"] for step in steps] == [step["kd_untaught"] for step in logged(whole, "train_inner")[7:]]


def test_two_gloo_ranks_equal_one_rank_with_update_freq_two(pairs, tmp_path):
    port = free_port()
    same = [*KD, "--kd-alpha", 0.3, "--teacher-routing", pairs / "routing.yaml", "--max-update", 6, "--dropout", 0]
    same += ["--validate-interval-updates", 2]
    ranks = [
        command(
            pairs, tmp_path / "two", *same, "--distributed-world-size", 2, "--distributed-rank", rank,
            "--distributed-init-method", f"tcp://localhost:{port}", "--distributed-no-spawn", "--distributed-backend",
            "gloo", "--ddp-backend", "legacy_ddp",
        )
        for rank in (0, 1)
    ]  # fmt: skip
    two, _, one = run_together(*ranks, command(pairs, tmp_path / "one", *same, "--update-freq", 2))
    assert_same_weights(tmp_path / "two" / "checkpoint_last.pt", tmp_path / "one" / "checkpoint_last.pt", 2e-6)
    for mine, other in zip(logged(two.stdout, "valid"), logged(one.stdout, "valid")):
        for pair in ("de-en", "en-fr"):
            for name in ("nll_loss", "teacher_nll_loss"):
                key = f"valid_{name}_{pair}"
                assert mine[key] == pytest.approx(other[key], abs=2e-3)
    # every rank has decided the same: a rank that went on asking would have other gradients
    rests = [line for line in two.stdout.splitlines() if "from here on without" in line]
    assert rests


def test_a_teacher_for_a_pair_that_is_not_trained_is_refused_before_any_work(pairs, tmp_path):
    routing = tmp_path / "routing.yaml"
    routing.write_text(f"teachers:\n  de-nl: {pairs}/de-en/teacher.pt\n")
    result = run(*command(pairs, tmp_path / "s", *KD, "--teacher-routing", routing), check=False)
    assert result.returncode != 0 and "`de-nl` is neither a pair of --lang-pairs" in result.stdout
    assert "loading data for" not in result.stdout
