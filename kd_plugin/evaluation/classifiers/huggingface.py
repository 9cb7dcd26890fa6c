"""A Hugging Face folder that classifies sentences or labels words, with its own tokenizer."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch

from kd_plugin.checkpoints.classifier import check_outputs_of
from kd_plugin.checkpoints.label_folder import LabelFolder
from kd_plugin.checkpoints.tokenizer import NO_LIMIT
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers.labelled_text import NUMBERS, TAGS, LabelledTest
from kd_plugin.evaluation.classifiers.labellers import LOST, Encoded, Facts, Labeller

BEYOND = -1  # marks what is beyond a sentence's end: without a padding token, any index may be a token of the text


class HuggingFaceLabeller(Labeller):
    """A *ForSequenceClassification or *ForTokenClassification folder.

    Args:
        path: as for LabelFolder
        kind: one of labelled_text.KINDS

    Raises:
        KDPluginError: as LabelFolder, its labels have no names, or its number of outputs is that of another task
    """

    def __init__(self, path: str, kind: str):
        opened = LabelFolder(path, kind == TAGS)
        check_outputs_of(path, opened.outputs, kind)
        self._model, self._tokenizer = opened.model, opened.tokenizer
        self.padding = BEYOND
        self._filler = int(self._tokenizer.pad_token_id or 0)
        self._limit = opened.limit if opened.limit < NO_LIMIT else None
        size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
        self.facts = Facts("transformers", self._labels(opened, kind), opened.parameters, size, opened.sha256)

    @staticmethod
    def _labels(opened: LabelFolder, kind: str) -> Optional[List[str]]:
        if kind == NUMBERS:
            return None
        if opened.names is None:
            raise KDPluginError(
                f"{opened.path}: its labels have no names, only numbers. Remedy: name them in config.json, in id2label "
                "and label2id"
            )
        return opened.names

    def encode(self, test: LabelledTest, kind: str) -> List[Encoded]:
        """As Labeller's; a word is lost if the tokenizer drops it."""
        found = []
        for at in range(len(test)):
            text: Any = test.words[at] if kind == TAGS else test.texts[at]
            whole = self._tokenizer(text, is_split_into_words=kind == TAGS, truncation=False, verbose=False)
            cut = self._limit is not None and len(whole["input_ids"]) > self._limit
            if cut:
                whole = self._tokenizer(text, is_split_into_words=kind == TAGS, truncation=True, max_length=self._limit)
            places = []
            if kind == TAGS:
                first: Dict[Any, int] = {}
                for place, word in enumerate(whole.word_ids()):
                    first.setdefault(word, place)
                places = [first.get(word, LOST) for word in range(len(text))]
            found.append(Encoded(list(whole["input_ids"]), places, cut))
        return found

    @torch.no_grad()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As Labeller's."""
        ids = torch.from_numpy(tokens)
        seen = ids.ne(BEYOND)
        found = self._model(input_ids=ids.masked_fill(~seen, self._filler), attention_mask=seen.long()).logits
        return np.asarray(found.numpy())
