"""fairseq's other commands on a distilled student, with and without the plugin."""

import os
import re

import pytest

from kd_plugin.compat import TORCH_VERSION, fairseq_distribution
from tests.support import ROOT, STOCK, USER_DIR, load, logged, run, train

# one length limit for all: fairseq's --max-len-a depends on the longest source of a batch
BEAM = ["--beam", 3, "--max-len-a", 0, "--max-len-b", 20]
# stock fairseq reads its own checkpoints on torch >= 2.6 only so; with the plugin it is not needed
TRUSTED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
STOCK_GENERATES = fairseq_distribution() != "fairseq:0.12.2" or TORCH_VERSION < (1, 13)


@pytest.fixture(scope="module")
def student(workspace, tmp_path_factory):
    """A student far from its teacher, trained with --eval-bleu and many of fairseq's own flags; (checkpoint, log)."""
    folder = tmp_path_factory.mktemp("student")
    result = train(
        workspace.data, folder, *workspace.distil("--kd-alpha", 0.5), "--max-update", 40, "--validate-interval-updates",
        20, "--save-interval-updates", 20, "--keep-interval-updates", 1, "--keep-last-epochs", 1, "--patience", 5,
        "--eval-bleu", "--eval-bleu-args", '{"beam": 3, "max_len_a": 0, "max_len_b": 20}', "--best-checkpoint-metric",
        "bleu", "--maximize-best-checkpoint-metric", "--keep-best-checkpoints", 2, "--sentence-avg",
        "--ignore-prefix-size", 1, "--report-accuracy", "--update-freq", 2, "--lr", 0.01,
    )  # fmt: skip
    return folder / "checkpoint_last.pt", result.stdout


def generate(workspace, checkpoint, subset, *extra, env=None):
    return run(
        "fairseq-generate", workspace.data, "--cpu", "--path", checkpoint, "--gen-subset", subset, *BEAM,
        "--required-batch-size-multiple", 1, "--scoring", "sacrebleu", *extra, env=env,
    ).stdout  # fmt: skip


def bleu(output):
    return float(re.search(r"BLEU\S* = ([\d.]+)", output).group(1))


def hypotheses(output):
    return sorted(re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, flags=re.MULTILINE))


def test_eval_bleu_scores_the_student(workspace, student):
    checkpoint, output = student
    logged_bleu = logged(output, "valid")[-1]["valid_bleu"]
    generated = bleu(generate(workspace, checkpoint, "valid", "--user-dir", USER_DIR))
    assert generated == pytest.approx(logged_bleu, abs=0.011)  # both are printed with two decimals
    teacher = bleu(generate(workspace, workspace.teacher, "valid", "--user-dir", USER_DIR))
    assert teacher > logged_bleu + 5  # else a score of the teacher could pass for one of the student


def test_generate_with_and_without_the_plugin(workspace, student):
    checkpoint, _ = student
    with_task = generate(workspace, checkpoint, "test", "--user-dir", USER_DIR, "--task", "distillation_translation")
    assert len(hypotheses(with_task)) == 41
    if not STOCK_GENERATES:
        pytest.skip("stock fairseq 0.12.2 generates with no model on this torch (Mask Type should be defined)")
    stock = generate(workspace, checkpoint, "test", env=TRUSTED)
    assert hypotheses(with_task) == hypotheses(stock)


def test_interactive_and_validate(workspace, student):
    checkpoint, output = student
    lines = (workspace.folder / "test.en").read_text(encoding="utf-8").splitlines()[:5]
    interactive = run(
        "fairseq-interactive", workspace.data, "--cpu", "--path", checkpoint, *BEAM, "--user-dir", USER_DIR,
        input="\n".join(lines) + "\n",
    ).stdout  # fmt: skip
    expected = dict(hypotheses(generate(workspace, checkpoint, "test", "--user-dir", USER_DIR)))
    assert dict(hypotheses(interactive)) == {str(i): expected[str(i)] for i in range(5)}

    validated = run(
        "fairseq-validate", workspace.data, "--cpu", "--path", checkpoint, "--task", "translation", "--user-dir",
        USER_DIR, "--valid-subset",
        "valid", "--max-tokens", 200, "--required-batch-size-multiple", 1, "--log-format", "json",
    ).stdout  # fmt: skip
    nll_loss = float(re.search(r'"valid_nll_loss": "([\d.]+)"', validated).group(1))
    assert nll_loss == pytest.approx(logged(output, "valid")[-1]["valid_nll_loss"], abs=2e-3)


def test_from_pretrained_needs_no_teacher(workspace, student):
    from fairseq.models.transformer import TransformerModel

    import kd_plugin  # noqa: F401  torch >= 2.6 reads no fairseq checkpoint otherwise

    checkpoint, _ = student
    hub = TransformerModel.from_pretrained(
        str(checkpoint.parent), checkpoint_file=checkpoint.name, data_name_or_path=str(workspace.data)
    )
    assert type(hub.task).__name__ == "TranslationTask"
    expected = dict(hypotheses(generate(workspace, checkpoint, "test", "--user-dir", USER_DIR)))
    line = (workspace.folder / "test.en").read_text(encoding="utf-8").splitlines()[0]
    assert hub.translate(line, beam=3, max_len_a=0, max_len_b=20) == expected["0"]


def test_fairseqs_own_flags_kept_their_meaning(student):
    checkpoint, output = student
    names = sorted(path.name for path in checkpoint.parent.iterdir())
    assert "checkpoint_best.pt" in names and "checkpoint_last.pt" in names
    assert len([name for name in names if name.startswith("checkpoint.best_bleu_")]) <= 2
    assert len([name for name in names if re.fullmatch(r"checkpoint_\d+_\d+\.pt", name)]) <= 1
    assert len([name for name in names if re.fullmatch(r"checkpoint\d+\.pt", name)]) <= 1
    best = max(entry["valid_bleu"] for entry in logged(output, "valid"))
    assert load(checkpoint)["extra_state"]["best"] == best


def test_resume_after_eval_bleu_reads_its_numpy_values(workspace, student, tmp_path):
    """On torch >= 2.6 stock fairseq cannot resume such a run at all."""
    checkpoint, _ = student
    resumed = train(
        workspace.data, tmp_path, *workspace.distil(), "--restore-file", checkpoint, "--max-update", 42,
        "--disable-validation", "--sentence-avg", "--update-freq", 2, "--lr", 0.01,
    ).stdout  # fmt: skip
    assert [step["num_updates"] for step in logged(resumed, "train_inner")] == [41, 42]


YAML = """
common: {{user_dir: {user_dir}, cpu: true, log_format: json, log_interval: 1, seed: 5, bf16: {bf16}}}
dataset: {{max_tokens: 200, required_batch_size_multiple: 1, num_workers: 0, data_buffer_size: 0}}
optimization: {{max_update: 6, lr: [0.003], clip_norm: 1.0}}
checkpoint: {{save_dir: {save_dir}, no_epoch_checkpoints: true}}
task:
  _name: distillation_translation
  data: {data}
  teacher_path: {teachers}
  teacher_weights: [3, 1]
  teacher_overrides: {{dropout: 0.0}}
criterion: {{_name: kd_label_smoothed_cross_entropy, label_smoothing: 0.1, kd_alpha: 0.25, kd_temperature: 2.0}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
model: {{_name: transformer_student_micro, encoder_layers: 1, decoder_layers: 1, base_layers: 0}}
"""


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_hydra_train_with_a_yaml(workspace, tmp_path, bf16):
    (tmp_path / "config").mkdir()
    teachers = f"'{workspace.teacher}:{workspace.teacher}'"
    text = YAML.format(
        user_dir=USER_DIR, save_dir=f"'{tmp_path / 'out'}'", data=f"'{workspace.data}'", teachers=teachers, bf16=bf16
    )
    (tmp_path / "config" / "distill.yaml").write_text(text)
    output = run(
        "fairseq-hydra-train", "--config-dir", tmp_path / "config", "--config-name", "distill", cwd=str(tmp_path)
    ).stdout
    logs = output + "".join(path.read_text() for path in tmp_path.rglob("*.log"))
    assert "alpha:0.25|T:2.0" in logs and "*0.75|teacher:sha256:" in logs
    state = load(tmp_path / "out" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 6
    assert state["cfg"]["task"]["_name"] == "translation" and state["cfg"]["model"]["_name"] == "transformer"
    assert str(workspace.teacher) not in str(state["cfg"])
    plugin = [] if STOCK_GENERATES else ["--user-dir", USER_DIR]
    generated = generate(workspace, tmp_path / "out" / "checkpoint_last.pt", "test", *plugin, env=TRUSTED)
    assert len(hypotheses(generated)) == 41


def test_user_dir_by_relative_path_and_tensorboard(workspace, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train(
        workspace.data, tmp_path / "save", "--user-dir", "kd_plugin", "--task", "distillation_translation",
        "--criterion", "kd_label_smoothed_cross_entropy", "--teacher-path", workspace.teacher, "--max-update", 2,
        "--tensorboard-logdir", tmp_path / "board", "--no-save", cwd=str(ROOT),
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "board" / "train_inner"
    events = EventAccumulator(str(folder)).Reload()
    assert {"kd_loss", "ce_loss", "agreement", "teacher_nll_loss", "kd_alpha"} <= set(events.Tags()["scalars"])
    assert len(os.listdir(tmp_path / "board")) >= 2  # validation too


def test_plain_training_needs_no_teacher(workspace, tmp_path):
    output = train(
        workspace.data, tmp_path, *STOCK[:1], "distillation_translation", "--user-dir", USER_DIR, "--criterion",
        "kd_label_smoothed_cross_entropy", "--kd-alpha", 1, "--max-update", 2, "--no-save",
    ).stdout  # fmt: skip
    assert "teacher:none" in output
    assert all("kd_loss" not in step and "ce_loss" in step for step in logged(output, "train_inner"))
