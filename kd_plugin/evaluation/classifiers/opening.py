"""Opens what --model names: a fairseq checkpoint, an ONNX folder or a Hugging Face folder."""

from pathlib import Path
from typing import Any, List, NamedTuple, Optional

import numpy as np
import torch

from kd_plugin.checkpoints.classifier import Classifier, open_for_task
from kd_plugin.checkpoints.onnx_folder import (
    CLASSIFIER,
    MODEL,
    REMEDY,
    SUBWORDS,
    Described,
    OnnxSession,
    is_onnx,
    read_described,
)
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.corpus.subword_checks import check_model
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers.huggingface import HuggingFaceLabeller
from kd_plugin.evaluation.classifiers.labelled_text import NUMBERS, TAGS
from kd_plugin.evaluation.classifiers.labellers import Facts, Labeller, SymbolLabeller
from kd_plugin.files.atomic import sha256_of


class Asked(NamedTuple):
    """The options that say how models are opened. head: None: the usual one, or the only one"""

    kind: str
    head: Optional[str]
    data: Optional[str]
    subwords: Subwords
    threads: int


def open_labeller(path: str, asked: Asked) -> Labeller:
    """The model at a path.

    Raises:
        KDPluginError: it is none of the three kinds, is damaged, or is for another task
    """
    if Path(path).is_dir():
        if is_onnx(path):
            return OnnxLabeller(path, asked)
        if is_huggingface(path):
            return HuggingFaceLabeller(path, asked.kind)
        raise KDPluginError(
            f"{path}: is a folder without {CLASSIFIER} or a Hugging Face config.json. Remedy: a checkpoint, a folder "
            "of kd-plugin export --format onnx, or a Hugging Face folder"
        )
    if not Path(path).is_file():
        raise KDPluginError(f"{path}: no such checkpoint file or model folder. Remedy: check the path")
    return FairseqLabeller(path, asked)


class FairseqLabeller(SymbolLabeller):
    """A checkpoint of fairseq-train, with a classification head."""

    def __init__(self, path: str, asked: Asked):
        opened = open_for_task(path, asked.kind, asked.head, asked.data)
        dictionary, (init, _) = opened.dictionary, opened.tokens
        if asked.subwords.path is not None:
            check_model(
                str(asked.subwords),
                asked.subwords.pieces,
                dictionary.symbols,
                f"the dictionary {opened.dictionary_path}",
            )
        super().__init__(
            dictionary.indices, dictionary.unk(), dictionary.pad(), [] if init is None else [init], [dictionary.eos()],
            limit_of(opened.model), asked.subwords,
        )  # fmt: skip
        self._model, self._head = opened.model, opened.head
        size = sum(tensor.numel() * tensor.element_size() for tensor in opened.model.parameters())
        labels = None if asked.kind == NUMBERS else named_labels(opened, path)
        self.facts = Facts("fairseq", labels, opened.parameters, size, opened.sha256)

    @torch.no_grad()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As Labeller's."""
        source = torch.from_numpy(tokens)
        lengths = source.ne(self.padding).sum(dim=1)
        found, _ = self._model(
            src_tokens=source, src_lengths=lengths, features_only=True, classification_head_name=self._head
        )
        return np.asarray(found.numpy())


class OnnxLabeller(SymbolLabeller):
    """A folder of kd-plugin export --format onnx; its own subword model, if it has one, reads raw text."""

    def __init__(self, path: str, asked: Asked):
        described = read_described(path)
        if described.task != asked.kind:
            raise KDPluginError(f"{path}: is for {described.task}. Remedy: --task {described.task}, or another model")
        own = Path(path) / SUBWORDS
        subwords = Subwords(str(own), flag="--model") if own.is_file() else asked.subwords
        symbols = {symbol: index for index, symbol in enumerate(described.vocabulary)}
        super().__init__(
            symbols, symbols[described.unknown], described.padding, described.prefix, described.suffix,
            described.max_length, subwords,
        )  # fmt: skip
        file = Path(path) / MODEL
        self._session = OnnxSession(file, asked.threads)
        self._check_outputs(Path(path) / CLASSIFIER, described)
        self.facts = Facts("ONNX Runtime", described.labels, None, file.stat().st_size, sha256_of(file))

    def _check_outputs(self, file: Path, described: Described) -> None:
        """Refuses labels that the model does not have, by its answer to one sentence."""
        sentence = [*described.prefix, self._unknown, *described.suffix]
        shape = self._session(np.array([sentence], dtype=np.int64)).shape
        expected = (1, *([len(sentence)] if described.task == TAGS else []), len(described.labels or [None]))
        if shape != expected:
            raise KDPluginError(
                f"{file}: the model answers with {' × '.join(map(str, shape))} numbers where {file.name} has the task "
                f"{described.task} and {'no labels' if described.labels is None else len(described.labels)}"
                f"{'' if described.labels is None else ' labels'} ({' × '.join(map(str, expected))} expected). {REMEDY}"
            )

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As Labeller's."""
        return self._session(tokens)


def limit_of(model: Any) -> Optional[int]:
    """The longest sentence that a model reads, in symbols; None: any."""
    limit = model.max_positions()
    return None if limit is None else int(limit)


def named_labels(opened: Classifier, path: str) -> List[str]:
    """The labels' names, in the order of the outputs.

    Raises:
        KDPluginError: there is no label/dict.txt, or one for another number of labels
    """
    if opened.names is None or len(opened.names) != opened.outputs:
        found = "no label/dict.txt was found" if opened.names is None else f"its label/dict.txt has {len(opened.names)}"
        raise KDPluginError(
            f"{path}: has {opened.outputs} outputs, but {found}, so it is unclear what they mean. Remedy: --dict-dir "
            "FOLDER, the binarised folder that it was trained on"
        )
    return opened.names
