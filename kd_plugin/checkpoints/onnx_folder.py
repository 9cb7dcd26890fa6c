"""A folder with an ONNX classifier, as `kd-plugin export --format onnx` writes it, and its runtime."""

import os
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import read_json

MODEL, CLASSIFIER, SUBWORDS = "model.onnx", "classifier.json", "spm.model"
FORMAT, FORMAT_VERSION = "kd_plugin onnx classifier", 1
REMEDY = "Remedy: a folder of kd-plugin export --format onnx, unedited"
INSTALL = "pip install 'kd-plugin[onnx]'"


class Described(NamedTuple):
    """What classifier.json says.

    Args:
        task: classification, tagging or regression
        labels: their names, in the order of the logits; None: it predicts numbers
        vocabulary: the dictionary's symbols, in the order of their indices
        prefix, suffix: indices before and after a sentence's symbols
        padding: the index that fills shorter sentences of a batch, on the right
        max_length: the longest sentence, with prefix and suffix; None: any
    """

    task: str
    labels: Optional[List[str]]
    vocabulary: List[str]
    unknown: str
    prefix: List[int]
    suffix: List[int]
    padding: int
    max_length: Optional[int]


def is_onnx(path: str) -> bool:
    """Whether a path is such a folder."""
    return os.path.isfile(os.path.join(path, CLASSIFIER))


def read_described(path: str) -> Described:
    """What the folder's classifier.json says.

    Raises:
        KDPluginError: it is not such a file, or one of another version
    """
    file = Path(path) / CLASSIFIER
    content = read_json(file, REMEDY)
    if (content.get("format"), content.get("version")) != (FORMAT, FORMAT_VERSION):
        raise KDPluginError(f"{file}: is not version {FORMAT_VERSION} of {FORMAT}. {REMEDY}")
    try:
        vocabulary = sorted(content["vocabulary"].items(), key=lambda item: int(item[1]))
        if [index for _, index in vocabulary] != list(range(len(vocabulary))):
            raise ValueError("the vocabulary's indices have gaps")
        symbols = [symbol for symbol, _ in vocabulary]
        others = {name: content[name] for name in Described._fields if name != "vocabulary"}
        described = Described(vocabulary=symbols, **others)
        _check(described)
        return described
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KDPluginError(f"{file}: is damaged ({error}). {REMEDY}") from error


def _check(described: Described) -> None:
    """Refuses what an edit may have broken, before anything is computed with it.

    Raises:
        ValueError: a field has another type, or an index that the vocabulary does not have
    """
    size, numbers = len(described.vocabulary), described.task == "regression"
    if described.task not in ("classification", "tagging", "regression"):
        raise ValueError(f"the task is {described.task!r}")
    labels = described.labels
    if numbers != (labels is None):
        raise ValueError(f"labels are {labels!r:.60} for the task {described.task}")
    if labels is not None:
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise ValueError("labels are not a list of names")
        if len(set(labels)) != len(labels):
            raise ValueError("labels have a name twice")
    if described.unknown not in described.vocabulary:
        raise ValueError(f"unknown {described.unknown!r:.60} is not in the vocabulary")
    for name, value in (("prefix", described.prefix), ("suffix", described.suffix), ("padding", [described.padding])):
        if not isinstance(value, list) or not all(type(index) is int and 0 <= index < size for index in value):
            raise ValueError(f"{name} is {value!r:.60}, not indices of the {size:,} symbols")
    limit, around = described.max_length, len(described.prefix) + len(described.suffix)
    if limit is not None and not (type(limit) is int and limit > around):
        raise ValueError(f"max_length is {limit!r:.60}")


class OnnxSession:
    """A model that ONNX Runtime runs on the CPU.

    Args:
        file: model.onnx

    Raises:
        KDPluginError: ONNX Runtime is not installed, or cannot open the file
    """

    def __init__(self, file: Path, threads: int = 1):
        try:
            import onnxruntime
        except ImportError as error:
            raise KDPluginError(f"{file}: needs ONNX Runtime ({error}). Remedy: {INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library raises its own kinds
            reason = " ".join(str(error).split())[:200]
            raise KDPluginError(f"{file}: ONNX Runtime cannot open it ({reason}). {REMEDY}") from error

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Logits, B × outputs or B × T × outputs, of (B, T) int64 indices."""
        found: Tuple[Any, ...] = self._session.run(None, {"tokens": tokens})
        logits: np.ndarray = found[0]
        return logits
