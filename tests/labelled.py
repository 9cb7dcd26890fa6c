"""A tiny corpus whose sentences and words have labels, and the real fairseq command lines run on it."""

import random
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tests.support import LOGS, USER_DIR

GOOD, BAD, OTHER = ["fine", "great", "lovely"], ["awful", "poor", "sad"], ["film", "plot", "cast", "the", "a", "was"]
# single pieces, so that a word may have several
PIECES = {"lovely": ["\u2581love", "ly"], "awful": ["\u2581aw", "ful"]}
TAG = {**{word: "B-good" for word in GOOD}, **{word: "B-bad" for word in BAD}}
HEAD, TOKEN_HEAD = "sentence_classification_head", "token_classification_head"


def pieces(word: str) -> List[str]:
    return PIECES.get(word, [f"\u2581{word}"])


def sentences(size: int, seed: int) -> List[Tuple[List[str], str]]:
    """Words and the label of a sentence: pos or neg, by which kind of word it has."""
    draw = random.Random(seed)
    found = []
    for _ in range(size):
        label, kind = draw.choice([("pos", GOOD), ("neg", BAD)])
        words = draw.choices(OTHER, k=draw.randint(0, 6)) + [draw.choice(kind)]
        draw.shuffle(words)
        found.append((words, label))
    return found


def binarise(lines: Dict[str, List[str]], folder: Any, symbols: Optional[Sequence[str]] = None) -> None:
    """What fairseq-preprocess --only-source makes of the lines of each split, in this process.

    Args:
        symbols: of the dictionary; None: those of the training lines, by frequency
    """
    from fairseq.data import Dictionary, indexed_dataset

    folder.mkdir(parents=True)
    dictionary = Dictionary()
    for line in lines["train"] if symbols is None else symbols:
        for word in line.split():
            dictionary.add_symbol(word)
    dictionary.finalize(padding_factor=1)
    dictionary.save(str(folder / "dict.txt"))
    for split, text in lines.items():
        builder = indexed_dataset.make_builder(str(folder / f"{split}.bin"), impl="mmap", vocab_size=len(dictionary))
        for line in text:
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False).int())
        builder.finalize(str(folder / f"{split}.idx"))


def make_folders(root: Any) -> Tuple[Any, Any]:
    """The same sentences for classification and for tagging."""
    splits = {"train": sentences(64, 1), "valid": sentences(13, 2)}
    text = {name: [" ".join(p for w in words for p in pieces(w)) for words, _ in rows] for name, rows in splits.items()}
    tags = {name: [" ".join(TAG.get(w, "O") for w in words) for words, _ in rows] for name, rows in splits.items()}
    binarise(text, root / "classes" / "input0")
    binarise({name: [label for _, label in rows] for name, rows in splits.items()}, root / "classes" / "label")
    binarise(text, root / "tags" / "input0")
    binarise(tags, root / "tags" / "label")
    return root / "classes", root / "tags"


MODEL = [
    "--arch", "roberta", "--encoder-layers", 2, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 24,
    "--encoder-attention-heads", 2, "--max-positions", 24, "--init-token", 0, "--dropout", 0.1,
    "--attention-dropout", 0.1, "--pooler-dropout", 0.1,
]  # fmt: skip
STOCK = ["--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", 2]
CLASSES = ["--task", "distillation_sentence_prediction", "--criterion", "kd_sentence_prediction"]
TAGS = ["--task", "distillation_sequence_tagging", "--criterion", "kd_sequence_tagging"]


def label_training(data: Any, save_dir: Any, *extra: Any) -> List[Any]:
    """`fairseq-train` with everything but the task: a tiny RoBERTa, 13 sentences or so per batch."""
    common = ["--cpu", "--save-dir", save_dir, "--optimizer", "adam", "--lr", 0.005, "--clip-norm", 1.0, "--seed", 5]
    batches = ["--batch-size", 8, "--required-batch-size-multiple", 1, "--num-workers", 0, "--data-buffer-size", 0]
    return ["fairseq-train", data, *common, *MODEL, *batches, *LOGS, "--no-epoch-checkpoints", *extra]


def plugin(kind: Sequence[Any], *extra: Any) -> List[Any]:
    return ["--user-dir", USER_DIR, *kind, *extra]
