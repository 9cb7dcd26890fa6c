"""What must hold of trainings that classify sentences or label words, each through the real fairseq command lines."""

import re

import pytest
import torch

from tests.labelled import CLASSES, HEAD, NO_DROPOUT, STOCK, TAGS, TOKEN_HEAD, label_training, make_folders, plugin
from tests.support import assert_same_weights, free_port, load, logged, run, run_together

SHORT = ["--max-update", 12, "--disable-validation"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of both tasks, and a teacher for each."""
    root = tmp_path_factory.mktemp("labelled")
    classes, tags = make_folders(root)
    taught = ["--max-update", 30, "--disable-validation"]
    run_together(
        label_training(classes, root / "teacher", *STOCK, *taught),
        label_training(tags, root / "tagger", *plugin(TAGS, "--kd-alpha", 1), *taught),
    )
    return classes, tags, root / "teacher" / "checkpoint_last.pt", root / "tagger" / "checkpoint_last.pt"


def test_alpha_one_is_stock_sentence_prediction_bit_by_bit(folders, tmp_path):
    """With dropout, and a real teacher loaded: same weights, same logged values, an ordinary checkpoint."""
    data, _, teacher, _ = folders
    flags = ["--max-update", 12]
    stock, kd = run_together(
        label_training(data, tmp_path / "stock", *STOCK, *flags),
        label_training(
            data, tmp_path / "kd", *plugin(CLASSES, "--kd-alpha", 1, "--teacher-path", teacher), *flags
        ),
    )  # fmt: skip
    assert_same_weights(tmp_path / "stock" / "checkpoint_last.pt", tmp_path / "kd" / "checkpoint_last.pt")
    for tag, names in (
        ("train_inner", "loss nll_loss accuracy gnorm"),
        ("valid", "valid_loss valid_nll_loss valid_accuracy"),
    ):
        for one, other in zip(logged(stock.stdout, tag), logged(kd.stdout, tag)):
            assert [one[name] for name in names.split()] == [other[name] for name in names.split()]
    one, other = (load(tmp_path / name / "checkpoint_last.pt")["cfg"] for name in ("stock", "kd"))
    assert one["task"] == {**other["task"]} and one["criterion"] == other["criterion"]
    pickled = (tmp_path / "kd" / "checkpoint_last.pt").read_bytes()
    for private in (b"teacher_path", b"distillation_sentence", b"kd_schedule", b"word_start", str(teacher).encode()):
        assert private not in pickled, private


OPEN = """
import argparse, sys, torch
from fairseq.models.roberta import RobertaModel
torch.serialization.add_safe_globals([argparse.Namespace])
hub = RobertaModel.from_pretrained(sys.argv[1], "checkpoint_last.pt", sys.argv[2], bpe=None).eval()
assert not [name for name in sys.modules if name.startswith("kd_plugin")]
tokens = torch.tensor([[0, 5, 6, 7, 2]])
head = hub.model.classification_heads[sys.argv[3]]
features = hub.model(tokens, features_only=True)[0]
print("logits", [head(features[:, t:])[0].tolist() for t in range(5)])
"""


@pytest.mark.parametrize("kind, head", [(CLASSES, HEAD), (TAGS, TOKEN_HEAD)])
def test_a_students_checkpoint_opens_in_stock_roberta(folders, tmp_path, kind, head):
    """Without the plugin, and with the same answers as the teacher that the plugin makes of it."""
    from kd_plugin.checkpoints.classifier import open_classifier

    data, teacher = (folders[0], folders[2]) if kind is CLASSES else (folders[1], folders[3])
    output = run(
        *label_training(
            data, tmp_path, *plugin(kind, "--kd-alpha", 0.5, "--kd-temperature", 2, "--teacher-path", teacher), *SHORT
        )
    ).stdout  # fmt: skip
    assert "|vocab:ok|" in output
    for step in logged(output, "train_inner"):
        assert step["loss"] == pytest.approx(0.5 * step["ce_loss"] + 0.5 * 4 * step["kd_loss"], abs=5e-3)
        assert step["kd_loss"] > 0 and 0 <= step["agreement"] <= 100 and 0 <= step["accuracy"] <= 100
    opened = run("python", "-c", OPEN, tmp_path, data, head).stdout
    stock = torch.tensor(eval(re.search(r"^logits (.*)$", opened, re.MULTILINE).group(1)))
    model = open_classifier(str(tmp_path / "checkpoint_last.pt"), kind is TAGS, None, None, {"data": str(data)}).model
    with torch.no_grad():
        ours = model(torch.tensor([[0, 5, 6, 7, 2]]), features_only=True, classification_head_name=head)[0]
    torch.testing.assert_close(ours[0], stock if kind is TAGS else stock[0], rtol=1e-5, atol=1e-6)


SGD = ["--optimizer", "sgd", "--lr", 0.1, *NO_DROPOUT]


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
def test_two_ranks_are_one_with_twice_the_batches(folders, tmp_path, kind):
    """Same weights and logs; the last batch of an epoch is one rank's alone."""
    data, teacher = (folders[0], folders[2]) if kind is CLASSES else (folders[1], folders[3])
    flags = [*plugin(kind, "--kd-alpha", 0.4, "--teacher-path", teacher), *SGD, *SHORT]
    flags += ["--batch-size", 5]
    rank = ["--distributed-no-spawn", "--distributed-world-size", 2, "--distributed-backend", "gloo"]
    rank += ["--distributed-init-method", f"tcp://localhost:{free_port()}", "--ddp-backend", "legacy_ddp"]
    one, *ranks = run_together(
        label_training(data, tmp_path / "one", *flags, "--update-freq", 2),
        *(label_training(data, tmp_path / "two", *flags, *rank, "--distributed-rank", number) for number in range(2)),
    )
    assert_same_weights(tmp_path / "one" / "checkpoint_last.pt", tmp_path / "two" / "checkpoint_last.pt", 1e-5)
    for alone, together in zip(logged(one.stdout, "train_inner"), logged(ranks[0].stdout, "train_inner")):
        for name in ("loss", "ce_loss", "kd_loss", "accuracy", "agreement"):
            assert alone[name] == pytest.approx(together[name], abs=2e-3), name


def test_resume_is_bitwise(folders, tmp_path):
    """With dropout, a schedule and selection's queue: a run in two parts is the run in one."""
    data, teacher = folders[1], folders[3]
    flags = plugin(
        TAGS, "--kd-alpha", 0.9, "--kd-alpha-end", 0.1, "--kd-schedule", "linear", "--kd-schedule-updates", 20
    )
    flags += ["--teacher-path", teacher, "--kd-selection", "global", "--kd-queue-size", 40, "--disable-validation"]
    flags += ["--update-epoch-batch-itr", "True", "--save-interval-updates", 6]
    output = run(*label_training(data, tmp_path / "whole", *flags, "--max-update", 12)).stdout
    (middle,) = (tmp_path / "whole").glob("checkpoint_*_6.pt")
    resumed = run(*label_training(data, tmp_path / "rest", *flags, "--max-update", 12, "--restore-file", middle)).stdout
    assert "Loaded checkpoint" in resumed
    assert_same_weights(tmp_path / "whole" / "checkpoint_last.pt", tmp_path / "rest" / "checkpoint_last.pt")
    last = [logged(text, "train_inner")[-1] for text in (output, resumed)]
    assert last[0]["loss"] == last[1]["loss"] and last[0]["kd_alpha"] == last[1]["kd_alpha"]


def test_unlabelled_text_trains_beside_labelled_text(folders, tmp_path):
    """Through the command line: a second folder, a share of whose batches have no label at all."""
    data, _, teacher, _ = folders
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "input0").symlink_to(data / "input0")
    output = run(*label_training(
        data, tmp_path / "mixed", *plugin(CLASSES, "--kd-alpha", 0.5, "--teacher-path", teacher),
        "--kd-unlabelled", bare, "--max-update", 16, "--batch-size", 2, "--no-save",
    )).stdout  # fmt: skip
    steps = logged(output, "train_inner")
    assert len(steps) == 16 and all("kd_loss" in step for step in steps)
    assert any("ce_loss" not in step for step in steps) and any("ce_loss" in step for step in steps)
    refused = run(
        *label_training(data, tmp_path / "no", *plugin(CLASSES, "--kd-alpha", 1), "--kd-unlabelled", bare), check=False
    )
    assert refused.returncode != 0 and "--kd-unlabelled" in refused.stdout and "Remedy" in refused.stdout
    assert not (tmp_path / "no" / "checkpoint_last.pt").exists()


def test_a_teacher_of_text_reads_both_sentences_of_a_pair(tmp_path):
    """Through the command line: its logged likelihood of the labels is transformers' own for the pairs of sentences."""
    transformers = pytest.importorskip("transformers")
    from tests.labelled import make_pairs, pieces, sentences
    from tests.unit.test_labelling_folders import save_folder

    data = make_pairs(tmp_path / "pairs")
    path = str(save_folder(tmp_path / "teacher", False, ["same", "other"]))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 20 if weight.dim() == 2 else 1  # so that pairs differ
    model.save_pretrained(path)
    output = run(*label_training(
        data, tmp_path / "student", *plugin(CLASSES, "--kd-alpha", 0.5, "--teacher-path", path), "--separator-token", 2,
        "--batch-size", 64, "--max-update", 1, "--disable-validation", "--no-save",
    )).stdout  # fmt: skip
    rows = [sentences(64, 3), sentences(64, 5)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def likelihood(*sides):
        total = 0.0
        for first, second in zip(*rows):
            label = "same" if first[1] == second[1] else "other"
            texts = [" ".join("".join(pieces(w)).replace("\u2581", "") for w in one[0]) for one in (first, second)]
            inputs = tokenizer(*(texts[side] for side in sides), truncation=True, return_tensors="pt")
            with torch.no_grad():
                logits = model.eval()(**inputs).logits[0].double()
            total -= torch.log_softmax(logits, 0)[model.config.label2id[label]] / 0.6931471805599453
        return float(total / 64)

    (step,) = logged(output, "train_inner")
    assert step["teacher_nll_loss"] == pytest.approx(likelihood(0, 1), abs=2e-3)
    assert abs(likelihood(0) - likelihood(0, 1)) > 0.02 and abs(likelihood(0, 0) - likelihood(0, 1)) > 0.02
