"""A tiny corpus whose sentences and words have labels, and the real fairseq command lines run on it."""

import random
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

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


class Built(NamedTuple):
    """What fairseq-train builds before its first update."""

    task: Any
    model: Any
    criterion: Any

    def batch(self, ids: Optional[Sequence[int]] = None, split: str = "train") -> Dict[str, Any]:
        """The sentences with these ids, as one batch; None: the first eight in the order of training."""
        if split not in self.task.datasets:
            self.task.load_dataset(split)
        dataset = self.task.datasets[split]
        ids = dataset.ordered_indices()[:8] if ids is None else ids
        return dataset.collater([dataset[int(index)] for index in ids])

    def loss(self, batch: Dict[str, Any]) -> Tuple[Any, Any, Dict[str, Any]]:
        self.model.zero_grad()
        return self.criterion(self.model, batch)


NO_DROPOUT = ["--dropout", 0, "--attention-dropout", 0, "--pooler-dropout", 0]


def build(data: Any, *flags: Any, seed: int = 1) -> Built:
    """Task, model and criterion of a training, in this process, without dropout."""
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    import kd_plugin  # noqa: F401  registers with fairseq

    line = list(map(str, [data, "--cpu", *MODEL, *NO_DROPOUT, *flags]))
    args = options.parse_args_and_arch(options.get_training_parser(), line)
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    return Built(task, model, task.build_criterion(cfg.criterion))


def save_checkpoint(path: Any, built: Built, data: Any) -> Any:
    """The checkpoint that fairseq-train would write of such a model."""
    from omegaconf import OmegaConf, open_dict

    root = built.task._root()
    with open_dict(root):
        for part in (root.task, root.model):
            part.num_classes = built.task.cfg.num_classes
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg = OmegaConf.to_container(root, resolve=True, enum_to_str=True)
    torch.save({"args": None, "cfg": cfg, "model": built.model.state_dict()}, str(path))
    return path


def make_pairs(folder: Any, seed: int = 5) -> Any:
    """Pairs of sentences whose label says whether both are of the same kind. seed: of the second sentences"""
    first = {split: sentences(size, at) for split, size, at in (("train", 64, 3), ("valid", 13, 4))}
    second = {split: sentences(len(rows), seed + at) for at, (split, rows) in enumerate(first.items())}
    text = [
        {split: [" ".join(p for w in words for p in pieces(w)) for words, _ in rows] for split, rows in side.items()}
        for side in (first, second)
    ]
    symbols = sorted({symbol for line in text[0]["train"] for symbol in line.split()})
    for part, side in zip(("input0", "input1"), text):
        binarise(side, folder / part, symbols)
    labels = {
        split: ["same" if one[1] == other[1] else "other" for one, other in zip(rows, second[split])]
        for split, rows in first.items()
    }
    binarise(labels, folder / "label", ["other", "same"])
    return folder
