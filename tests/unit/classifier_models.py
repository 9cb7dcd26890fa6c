"""Tiny models that classify or tag an invented corpus, with its folder and its sentencepiece model."""

import json
from typing import Any, List

import pytest
import torch

from tests.labelled import TAG, binarise, sentences
from tests.support import make_checkpoint
from tests.unit.sentencepiece_models import encoded, train

KINDS = {
    "classification": ["--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", 2],
    "tagging": ["--task", "distillation_sequence_tagging", "--criterion", "kd_sequence_tagging", "--num-classes", 3],
    "regression": [
        "--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", 1,
        "--regression-target",
    ],
}  # fmt: skip
ARCHITECTURES = {
    "text_cnn": ["--encoder-embed-dim", 8, "--filters", 6],
    "bilstm": ["--encoder-embed-dim", 8, "--encoder-hidden-size", 6, "--encoder-layers", 2],
    "bag_of_embeddings": ["--encoder-embed-dim", 8],
    "roberta": [
        "--encoder-layers", 2, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 24, "--encoder-attention-heads", 2,
        "--max-positions", 11, "--init-token", 0,
    ],
}  # fmt: skip
TAGGERS = ["text_cnn", "bilstm", "roberta"]


class Corpus:
    """The folder: classification/, tagging/, regression/ as fairseq reads them, spm.model, and test.* as raw text."""

    def __init__(self, root: Any):
        self.root, self.spm = root, root / "spm.model"
        self.rows = sentences(40, 3)
        texts = [" ".join(words) for words, _ in self.rows]
        # sentencepiece's own choice of pieces; few of them, so that most words have several
        train(self.spm, texts * 5, 34)
        pieces = [" ".join(line) for line in encoded(self.spm, texts)]
        self.numbers = [round(len(words) + 0.1 * at % 1, 3) for at, (words, _) in enumerate(self.rows)]
        for kind in KINDS:
            binarise({"train": pieces, "valid": pieces}, root / kind / "input0")
        self.tags = [[TAG.get(word, "O") for word in words] for words, _ in self.rows]
        labels = [label for _, label in self.rows]
        binarise({"train": labels, "valid": labels}, root / "classification" / "label")
        tagged = [" ".join(tags) for tags in self.tags]
        binarise({"train": tagged, "valid": tagged}, root / "tagging" / "label")
        (root / "regression" / "label").mkdir()
        numbers = "".join(f"{number}\n" for number in self.numbers)
        for name in ("test.number", "regression/label/valid.label", "regression/label/train.label"):
            (root / name).write_text(numbers)
        (root / "test.text").write_text("".join(text + "\n" for text in texts))
        (root / "test.label").write_text("".join(label + "\n" for label in labels))
        columns = [
            "".join(f"{w}\t{t}\n" for w, t in zip(words, tags)) for (words, _), tags in zip(self.rows, self.tags)
        ]
        (root / "test.conll").write_text("\n".join(columns))

    def checkpoint(self, arch: str, kind: str = "classification", seed: int = 0) -> str:
        """The path of an untrained model, with weights large enough for answers of all kinds."""
        path = self.root / f"{arch}-{kind}-{seed}.pt"
        if not path.exists():
            make_checkpoint(
                path, self.root / kind, *KINDS[kind], "--arch", arch, *ARCHITECTURES[arch], "--dropout", 0.1, seed=seed
            )
            state = torch.load(path, weights_only=False)
            for name, weight in state["model"].items():
                if name.startswith("classification_heads") and weight.dim() == 2:
                    weight *= 20
                elif arch == "roberta" and weight.dim() == 2:
                    weight *= 8  # fairseq initialises it so small that all sentences look alike
            torch.save(state, path)
        return str(path)


def hugging_face(folder: Any, words: List[str], kind: str, labels: List[str]) -> str:
    """A tiny BERT with a head for these labels; it splits words that end in -y, and does not know the other letters."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder.mkdir()
    known = [word[:-1] if word.endswith("y") else word for word in words]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(known), "##y"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=12)
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)},
        initializer_range=0.5,
    )  # fmt: skip
    made = transformers.BertForTokenClassification if kind == "tagging" else transformers.BertForSequenceClassification
    made(config).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    assert json.loads((folder / "config.json").read_text())["id2label"]
    return str(folder)
