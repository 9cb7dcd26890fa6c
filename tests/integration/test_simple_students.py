"""The simple students in fairseq's own sentence_prediction, without a teacher, from real command lines."""

import random

import pytest

from tests.support import BATCHES, LOGS, OPTIMIZER, USER_DIR, logged, run

GOOD, BAD, ANY = ["good", "fine", "great"], ["bad", "poor", "awful"], ["the", "film", "was", "a", "very", "so"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of fairseq's sentence_prediction: the label is what kind of adjective a sentence has."""
    folder, draw = tmp_path_factory.mktemp("sentences"), random.Random(5)
    for split, size in (("train", 160), ("valid", 40)):
        labels = [draw.choice(("good", "bad")) for _ in range(size)]
        lines = []
        for label in labels:
            words = [draw.choice(ANY) for _ in range(draw.randint(1, 8))]
            words.insert(draw.randint(0, len(words)), draw.choice(GOOD if label == "good" else BAD))
            lines.append(" ".join(words))
        (folder / f"{split}.text").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.label").write_text("\n".join(labels) + "\n")
    for kind, part in (("text", "input0"), ("label", "label")):
        run(
            "fairseq-preprocess", "--only-source", "--trainpref", folder / f"train.{kind}", "--validpref",
            folder / f"valid.{kind}", "--destdir", folder / "data-bin" / part,
        )  # fmt: skip
    return folder / "data-bin"


@pytest.mark.parametrize(
    "arch, sizes",
    [
        ("text_cnn_tiny", ["--filters", 8, "--filter-widths", "1,2,3"]),
        ("bilstm_tiny", ["--encoder-hidden-size", 8]),
        ("bag_of_embeddings_tiny", []),
    ],
)
def test_students_learn_with_stock_task_and_criterion(data, tmp_path, arch, sizes):
    output = run(
        "fairseq-train", data, "--cpu", "--user-dir", USER_DIR, "--task", "sentence_prediction", "--criterion",
        "sentence_prediction", "--num-classes", 2, "--arch", arch, "--encoder-embed-dim", 8, *sizes, *OPTIMIZER,
        *BATCHES, *LOGS, "--lr", 0.02, "--dropout", 0.1, "--max-epoch", 8, "--no-save",
    ).stdout  # fmt: skip
    assert logged(output, "valid")[-1]["valid_accuracy"] > 95, output[-3000:]
