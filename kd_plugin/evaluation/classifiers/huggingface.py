"""A Hugging Face folder that classifies sentences or labels words, with its own tokenizer."""

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import torch

from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.huggingface import folder_sha256
from kd_plugin.checkpoints.transformers_library import LOCAL, opening
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers.labelled_text import NUMBERS, TAGS, LabelledTest
from kd_plugin.evaluation.classifiers.labellers import LOST, Encoded, Facts, Labeller

FAR = 10**6  # tokenizers without a limit say so with a huge number


class HuggingFaceLabeller(Labeller):
    """A *ForSequenceClassification or *ForTokenClassification folder.

    Args:
        path: a folder with config.json, safetensors and a tokenizer.json
        kind: one of labelled_text.KINDS

    Raises:
        KDPluginError: transformers is not installed, or the folder is incomplete or has no such head
    """

    def __init__(self, path: str, kind: str):
        files = sorted(Path(path).glob("*.safetensors"))
        if not files:
            raise KDPluginError(
                f"{path}: has no .safetensors file. Remedy: save_pretrained of transformers writes one; run it only on "
                "files that you trust"
            )
        with opening(path) as transformers:
            tokens = kind == TAGS
            of = (
                transformers.AutoModelForTokenClassification
                if tokens
                else transformers.AutoModelForSequenceClassification
            )
            self._model, info = of.from_pretrained(path, use_safetensors=True, output_loading_info=True, **LOCAL)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, use_fast=True, **LOCAL)
        missing = sorted(map(str, info["missing_keys"]))
        if missing:
            what = "labels words" if kind == TAGS else "classifies sentences"
            raise KDPluginError(
                f"{path}: has no weights for {missing[0]}: no model that {what}. Remedy: fine-tune it first"
            )
        if not self._tokenizer.is_fast:
            raise KDPluginError(
                f"{path}: has no tokenizer.json, which tells words. Remedy: save its fast tokenizer there"
            )
        self._model.float().eval().requires_grad_(False)
        check_finite(self._model.state_dict(), path)
        config = self._model.config
        self.padding = int(self._tokenizer.pad_token_id or 0)
        limits = (self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
        self._limit = min([int(limit) for limit in limits if limit and limit < FAR], default=None)
        labels = None if kind == NUMBERS else [config.id2label[at] for at in range(config.num_labels)]
        size = sum(file.stat().st_size for file in files)
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self.facts = Facts("transformers", labels, parameters, size, folder_sha256(path))

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
        found = self._model(input_ids=ids, attention_mask=ids.ne(self.padding).long()).logits
        return np.asarray(found.numpy())
