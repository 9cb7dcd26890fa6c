"""Exports a model that classifies or tags for ONNX Runtime, and checks that it gives the same logits."""

import random
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from kd_plugin.checkpoints.classifier import LABEL_TASKS, Classifier, open_for_task
from kd_plugin.checkpoints.onnx_folder import (
    CLASSIFIER,
    FORMAT,
    FORMAT_VERSION,
    INSTALL,
    MODEL,
    SUBWORDS,
    Described,
    OnnxSession,
)
from kd_plugin.compat import onnx_export
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import check_model
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError
from kd_plugin.export.options import Export
from kd_plugin.files.atomic import write_json
from kd_plugin.version import __version__

OPSET = 17  # ONNX 1.12, of 2022; the newest that all versions of torch here write
TOLERANCE = 1e-4  # of logits, relative to the largest one or absolute: float32 sums in another order
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # of the random sentences that are compared


class Checked(NamedTuple):
    """How far an exported model was compared: sentences, and the largest difference of two logits."""

    sentences: int
    largest_difference: float


def prepared(args: Export) -> Tuple[Callable[[Path], None], int]:
    """What writes the folder, after all checks that need no writing; and the number of parameters.

    Raises:
        KDPluginError: the libraries are not installed, or as `open_classifier`
    """
    _check_installed()
    task = args.task or LABEL_TASKS[0]
    opened = open_for_task(args.checkpoint, task, args.head, args.dict_dir)
    subwords = args.subwords.open().source
    if subwords.path is not None:
        what = f"the dictionary {opened.dictionary_path}"
        check_model(str(subwords), subwords.pieces, opened.dictionary.symbols, what)
    described = _described(opened, task)
    lines = [text for _, text in numbered_lines(Path(args.check), "--check")] if args.check else []

    def write(folder: Path) -> None:
        folder.mkdir()
        head = Logits(opened.model, opened.head).eval()
        _write_model(head, described, folder / MODEL, args.checkpoint)
        if subwords.path is not None:
            shutil.copyfile(str(subwords.path), folder / SUBWORDS)
        sentences = _sentences(described, lines, subwords)
        checked = compare(head, OnnxSession(folder / MODEL), sentences, described.padding, args.checkpoint)
        content = described._asdict()
        content["vocabulary"] = {symbol: index for index, symbol in enumerate(described.vocabulary)}
        facts: Dict[str, Any] = {
            "format": FORMAT, "version": FORMAT_VERSION, "kd_plugin": __version__, "parameters": opened.parameters,
            "checkpoint_sha256": opened.sha256, "check": checked._asdict(),
        }  # fmt: skip
        write_json(folder / CLASSIFIER, {**facts, **content})
        print(
            f"check: {checked.sentences:,} sentences, largest difference of two logits "
            f"{checked.largest_difference:.1e} against fairseq's"
        )

    return write, opened.parameters


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401  # torch writes the file with it
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise KDPluginError(f"--format onnx: {error}. Remedy: {INSTALL}") from error


def _described(opened: Classifier, task: str) -> Described:
    labels = None if task == "regression" else opened.names
    if task != "regression" and (labels is None or len(labels) != opened.outputs):
        raise KDPluginError(
            f"{opened.path}: has {opened.outputs} outputs, but no label/dict.txt with as many labels was found. "
            "Remedy: --dict-dir FOLDER, the binarised folder that it was trained on"
        )
    init, _ = opened.tokens
    dictionary, limit = opened.dictionary, opened.model.max_positions()
    return Described(
        task, labels, list(dictionary.symbols), dictionary.unk_word, [] if init is None else [int(init)],
        [dictionary.eos()], dictionary.pad(), None if limit is None else int(limit),
    )  # fmt: skip


class Logits(nn.Module):
    """The logits of a head, of B × T indices alone: what the exported model computes."""

    def __init__(self, model: nn.Module, head: str):
        super().__init__()
        self.model, self.head = model, head

    def forward(self, tokens: Tensor) -> Tensor:
        """B × outputs, or B × T × outputs."""
        logits: Tensor = self.model(src_tokens=tokens, features_only=True, classification_head_name=self.head)[0]
        return logits


def _write_model(head: nn.Module, described: Described, file: Path, path: str) -> None:
    # with padding, so that what a model computes only for padded batches is recorded
    example = torch.full((2, 6), described.padding, dtype=torch.long)
    words = len(described.vocabulary) - 1
    example[0] = torch.tensor([*[words] * 5, described.suffix[0]])
    example[1, :3] = torch.tensor([words, words, described.suffix[0]])
    axes = {0: "sentences", 1: "symbols"}
    try:
        onnx_export(head, example, str(file), axes, axes if described.task == "tagging" else {0: "sentences"}, OPSET)
    except Exception as error:  # torch raises all kinds
        reason = " ".join(str(error).split())[:300]
        raise KDPluginError(
            f"{path}: torch cannot export this architecture to ONNX ({type(error).__name__}: {reason}); nothing was "
            "written. Remedy: text_cnn, bilstm, bag_of_embeddings or roberta"
        ) from error


def _sentences(described: Described, lines: List[str], subwords: Subwords) -> List[List[int]]:
    """Random sentences of several lengths, and those of --check."""
    draw, room = random.Random(1), described.max_length or 10**9
    around = len(described.prefix) + len(described.suffix)
    symbols = range(4, len(described.vocabulary))
    found = [[draw.choice(symbols) for _ in range(length)] for length in LENGTHS if length + around <= room]
    indices = {symbol: index for index, symbol in enumerate(described.vocabulary)}
    unknown = indices[described.unknown]
    for line in lines:
        found.append([indices.get(piece, unknown) for piece in subwords.encode(line)][: room - around])
    return [[*described.prefix, *ids, *described.suffix] for ids in found]


@torch.no_grad()
def compare(
    head: nn.Module, session: OnnxSession, sentences: List[List[int]], padding: int, path: str, size: int = 8
) -> Checked:
    """Compares the logits of both models, in padded batches and, for the first of each, alone.

    Args:
        sentences: of indices
        size: of the batches

    Raises:
        KDPluginError: two logits differ by more than TOLERANCE
    """
    largest = 0.0
    order = sorted(sentences, key=len)
    groups = [order[at :: -(-len(order) // size)] for at in range(-(-len(order) // size))]  # short beside long ones
    for group in [*groups, *([one] for one, *_ in groups)]:
        tokens = np.full((len(group), max(map(len, group))), padding, dtype=np.int64)
        for row, ids in zip(tokens, group):
            row[: len(ids)] = ids
        theirs, ours = head(torch.from_numpy(tokens)).numpy(), session(tokens)
        seen: Optional[Any] = tokens != padding if theirs.ndim == 3 else slice(None)
        difference = float(np.abs(ours[seen] - theirs[seen]).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(theirs[seen]).max()))
        if not difference <= allowed:
            raise KDPluginError(
                f"{path}: the exported model's logits differ by {difference:.2g}, more than {allowed:.2g}; nothing was "
                "written. Remedy: please report the architecture; fairseq's own format is --format fairseq"
            )
        largest = max(largest, difference)
    return Checked(len(sentences), largest)
