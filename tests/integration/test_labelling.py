"""What must hold of trainings that classify sentences or label words, each through the real fairseq command lines."""

import re

import pytest
import torch

from tests.labelled import CLASSES, HEAD, STOCK, TAGS, TOKEN_HEAD, label_training, make_folders, plugin
from tests.support import assert_same_weights, load, logged, run, run_together

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
