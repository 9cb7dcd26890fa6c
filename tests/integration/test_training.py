"""What must hold of a training run, each through the real fairseq command lines."""

import zipfile

import pytest

from tests.support import (
    MODEL,
    STOCK,
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

# Adam turns a gradient that is nothing but rounding (that of k_proj.bias) into a full step; SGD leaves it that small
SGD = ["--optimizer", "sgd", "--lr", 0.1]
SHORT = ["--max-update", 25, "--no-epoch-checkpoints", "--disable-validation"]


def test_alpha_one_is_stock_fairseq_bit_by_bit(workspace, tmp_path):
    """25 updates with dropout, and a real teacher loaded: same weights, an ordinary checkpoint, no teacher in it."""
    run_together(
        training(workspace.data, tmp_path / "stock", *STOCK, *SHORT),
        training(workspace.data, tmp_path / "kd", *workspace.distil("--kd-alpha", 1), *SHORT),
    )
    stock, kd = tmp_path / "stock" / "checkpoint_last.pt", tmp_path / "kd" / "checkpoint_last.pt"
    assert_same_weights(stock, kd)
    assert kd.stat().st_size == pytest.approx(stock.stat().st_size, rel=0.01)

    with zipfile.ZipFile(kd) as archive:
        pickled = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert str(workspace.data).encode() in pickled  # the paths of a checkpoint can be found this way
    for private in (str(workspace.teacher), "teacher_path", "distillation_translation", "kd_schedule"):
        assert private.encode() not in pickled, private
    state = load(kd)
    assert state["task_state"]["kd_signature"].startswith(
        "kd|alpha:1.0|T:1.0|div:forward_kl|ls:0.1|select:all|teacher:sha"
    )
    assert state["cfg"]["task"].keys() == load(stock)["cfg"]["task"].keys()
    assert state["cfg"]["criterion"] == load(stock)["cfg"]["criterion"]


def test_terms_are_logged_in_training_and_validation_and_add_up(workspace, tmp_path):
    output = train(
        workspace.data, tmp_path, *workspace.distil("--kd-alpha", 0.3, "--kd-temperature", 2), "--max-update", 12,
        "--no-save", "--report-accuracy",
    ).stdout  # fmt: skip
    steps, valid = logged(output, "train_inner"), logged(output, "valid")
    assert len(steps) == 12 and len(valid) == 1
    for prefix, entries in (("", steps), ("valid_", valid)):
        for entry in entries:
            value = {name: entry[prefix + name] for name in (
                "loss", "nll_loss", "ppl", "ce_loss", "kd_loss", "teacher_nll_loss", "agreement", "kd_alpha",
                "kd_temperature", "accuracy",
            )}  # fmt: skip
            assert (value["kd_alpha"], value["kd_temperature"]) == (0.3, 2.0)
            assert value["loss"] == pytest.approx(0.3 * value["ce_loss"] + 0.7 * 4 * value["kd_loss"], abs=4e-3)
            assert value["ppl"] == pytest.approx(2 ** value["nll_loss"], rel=2e-2)
            assert 0 <= value["agreement"] <= 100 and value["kd_loss"] > 0
            assert value["teacher_nll_loss"] < value["nll_loss"]  # the teacher was trained, the student was not
    assert "learned nothing about such text" not in output
    signatures = [line for line in output.splitlines() if "kd|alpha:0.3|T:2.0|" in line]
    assert len(signatures) == 1 and "|vocab:ok|" in signatures[0]


def test_a_teacher_that_knows_nothing_of_the_data_is_pointed_out(workspace, tmp_path):
    untrained = tmp_path / "untrained" / "teacher.pt"
    make_checkpoint(untrained, workspace.data, *MODEL)
    output = train(
        workspace.data, tmp_path / "s", *workspace.distil("--teacher-path", untrained), "--max-update", 11, "--no-save",
        "--disable-validation",
    ).stdout  # fmt: skip
    assert output.count("it has learned nothing about such text") == 1


def test_schedules_move_alpha_and_temperature(workspace, tmp_path):
    schedule = ["--kd-alpha", 1, "--kd-alpha-end", 0, "--kd-temperature", 1, "--kd-temperature-end", 3]
    schedule += ["--kd-schedule", "linear", "--kd-schedule-updates", 4]
    output = train(
        workspace.data, tmp_path, *workspace.distil(*schedule), "--max-update", 6, "--no-save", "--disable-validation"
    ).stdout
    steps = logged(output, "train_inner")
    assert [step["kd_alpha"] for step in steps] == [1, 0.75, 0.5, 0.25, 0, 0]
    assert [step["kd_temperature"] for step in steps] == [1, 1.5, 2, 2.5, 3, 3]
    assert "alpha:1.0>0.0:linear:4|T:1.0>3.0:linear:4" in output


WATCHER = """
import hashlib, json
from fairseq_cli import train  # first: it sets up the logging
from kd_plugin.tasks import DistillationTranslationTask as Task

def weights_hash(task):
    digest = hashlib.sha256()
    for name, tensor in sorted(task.teacher.members[0].model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()

seen = dict(modes=set(), calls=0, hashes=[], grads=set(), student=set())
build = Task.build_criterion
def build_criterion(self, *args, **kwargs):
    criterion = build(self, *args, **kwargs)
    model = self.teacher.members[0].model
    seen["hashes"].append(weights_hash(self))
    def watch(module, inputs, output):
        seen["calls"] += 1
        seen["modes"].update(m.training for m in model.modules())
        seen["grads"].add(output[0].requires_grad)
    model.register_forward_hook(watch)
    seen["task"] = self
    return criterion
Task.build_criterion = build_criterion
train.cli_main()
model = seen["task"].teacher.members[0].model
seen["hashes"].append(weights_hash(seen["task"]))
print("WATCHED", json.dumps(dict(
    calls=seen["calls"], modes=sorted(seen["modes"]), hashes=seen["hashes"], outputs_with_grad=sorted(seen["grads"]),
    with_grad=[n for n, p in model.named_parameters() if p.requires_grad or p.grad is not None],
)))
"""


def test_teacher_is_untouched_by_200_updates(workspace, tmp_path):
    """Same weights before and after, never in train mode, no gradient, and the student did learn from it."""
    import json

    (tmp_path / "watch.py").write_text(WATCHER)
    command = training(
        workspace.data, tmp_path / "kd", *workspace.distil("--kd-alpha", 0.2), "--max-update", 200,
        "--no-epoch-checkpoints", "--store-ema", "--lr", 0.01, "--validate-interval", 5,
    )  # fmt: skip
    output = run("python", tmp_path / "watch.py", *command[1:]).stdout
    watched = json.loads(output.split("WATCHED ")[1].splitlines()[0])
    assert watched["calls"] >= 200
    assert watched["modes"] == [False] and watched["outputs_with_grad"] == [False] and watched["with_grad"] == []
    assert watched["hashes"][0] == watched["hashes"][1]
    steps = logged(output, "train_inner")
    assert steps[-1]["kd_loss"] < 0.5 * steps[0]["kd_loss"] and steps[-1]["agreement"] > 50
    state = load(tmp_path / "kd" / "checkpoint_last.pt")
    assert state["extra_state"]["ema"].keys() == state["model"].keys()


def test_two_gloo_ranks_equal_one_rank_with_update_freq_two(workspace, tmp_path):
    """Same batches, summed by another order of additions: weights agree to 2e-6, logged terms to their rounding."""
    port = free_port()
    same = ["--max-update", 12, "--no-epoch-checkpoints", "--dropout", 0, "--disable-validation", *SGD]
    kd = workspace.distil("--kd-alpha", 0.4, "--kd-temperature", 2)
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
    assert_same_weights(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt", 2e-6)
    names = (
        "loss",
        "nll_loss",
        "ce_loss",
        "kd_loss",
        "teacher_nll_loss",
        "agreement",
        "kd_alpha",
        "kd_temperature",
        "wpb",
    )
    for step_one, step_two in zip(logged(one, "train_inner"), logged(two, "train_inner")):
        for name in names:
            assert step_one[name] == pytest.approx(step_two[name], abs=2e-3), name
    assert len(logged(two, "train_inner")) == 12


SCHEDULE = ["--kd-alpha-end", 0.9, "--kd-schedule", "cosine", "--kd-schedule-updates", 40]
IN_PARTS = [*SCHEDULE, "--update-epoch-batch-itr", "True", "--disable-validation", "--max-update", 40]
IN_PARTS += ["--save-interval-updates", 23]


@pytest.fixture(scope="module")
def whole(workspace, tmp_path_factory):
    """A run in a single part, of which checkpoints of its parts are left: (its folder, its output)."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(workspace.data, folder, *workspace.distil(*IN_PARTS)).stdout


@pytest.mark.parametrize("where", ["epoch_end", "mid_epoch"])
def test_resume_is_bitwise(workspace, tmp_path, whole, where):
    """Weights and optimiser of a run in two parts equal those of one in a single part; the schedule goes on too."""
    folder, output = whole
    epoch_updates = int(logged(output, "train")[0]["train_num_updates"])
    assert 0 < epoch_updates < 23 and 23 % epoch_updates  # so that one point is at an end, the other in the middle
    start = {"epoch_end": "checkpoint1.pt", "mid_epoch": f"checkpoint_{23 // epoch_updates + 1}_23.pt"}[where]
    flags = workspace.distil(*IN_PARTS, "--restore-file", folder / start)
    resumed = train(workspace.data, tmp_path / "resumed", *flags).stdout
    assert "Loaded checkpoint" in resumed
    one, two = folder / "checkpoint_last.pt", tmp_path / "resumed" / "checkpoint_last.pt"
    assert_same_weights(one, two)
    a, b = load(one), load(two)
    assert a["optimizer_history"][-1]["num_updates"] == b["optimizer_history"][-1]["num_updates"] == 40
    moments = [state["last_optimizer_state"]["state"] for state in (a, b)]
    for key in moments[0]:
        assert (moments[0][key]["exp_avg_sq"] == moments[1][key]["exp_avg_sq"]).all()
    last = [logged(text, "train_inner")[-1] for text in (output, resumed)]
    assert last[0]["loss"] == last[1]["loss"] and last[0]["kd_alpha"] == last[1]["kd_alpha"]


def test_ensembles(workspace, tmp_path):
    """A teacher with itself is that teacher (1e-6: the rounding of a mixture); weights (1, 0) are exactly the first."""
    other = tmp_path / "other" / "teacher.pt"
    make_checkpoint(other, workspace.data, *MODEL, "--encoder-layers", 2)
    twice, pair = f"{workspace.teacher}:{workspace.teacher}", f"{workspace.teacher}:{other}"
    short = ["--max-update", 10, "--no-epoch-checkpoints", "--disable-validation", *SGD]
    runs = {
        "single": [],
        "twice": ["--teacher-path", twice],
        "first": ["--teacher-path", pair, "--teacher-weights", "1,0"],
        "mixed": ["--teacher-path", pair, "--teacher-weights", "0.5,0.5"],
    }
    commands = [
        training(workspace.data, tmp_path / name, *workspace.distil(*extra), *short) for name, extra in runs.items()
    ]
    run_together(*commands[:2])
    run_together(*commands[2:])
    last = {name: tmp_path / name / "checkpoint_last.pt" for name in runs}
    assert_same_weights(last["single"], last["first"])
    assert_same_weights(last["single"], last["twice"], 1e-6)
    with pytest.raises(AssertionError):
        assert_same_weights(last["single"], last["mixed"], 1e-6)
