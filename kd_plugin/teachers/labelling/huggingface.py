"""A Hugging Face model as a labelling teacher. It reads text or words, with its own tokenizer."""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from kd_plugin.checkpoints.label_folder import LabelFolder
from kd_plugin.corpus.words_of_sentences import WordsOfSentences
from kd_plugin.losses.answer import Project
from kd_plugin.models.states import Inner, States
from kd_plugin.teachers.labelling.base import Labelling, LabelMember, label_symbols, word_numbers
from kd_plugin.teachers.member import as_it_is, at_rows
from kd_plugin.teachers.vocabulary import Symbols


class Encoder(NamedTuple):
    """Turns words into a model's inputs; data-loading workers pickle it.

    tokens: whether words are labelled rather than sentences
    limit:  the most tokens per sentence
    """

    tokenizer: Any
    tokens: bool
    limit: int

    def __call__(self, sentences: Sequence[List[List[str]]]) -> Dict[str, Any]:
        """The inputs of some sentences, each one or two lists of words.

        Returns:
            inputs: {input_ids, attention_mask, …}, each (sentences, tokens)
            cut:    (sentences,) bool, those of which the model reads only the beginning
            places: (sentences, words) the position of each word's first token; -1: it has none. Only for words
            lost:   (sentences,) the number of words without a token, although nothing was cut there
        """
        if self.tokens:
            texts: List[Any] = [[words for words in sentence[0]] for sentence in sentences]
        else:
            texts = [" ".join(filter(None, sentence[0])) for sentence in sentences]
        pairs = [" ".join(filter(None, sentence[1])) for sentence in sentences] if len(sentences[0]) > 1 else None
        encoded = self.tokenizer(
            texts,
            pairs,
            is_split_into_words=self.tokens,
            truncation=True,
            max_length=self.limit,
            padding=True,
            return_tensors="pt",
        )
        cut = torch.tensor([bool(one.overflowing) for one in encoded.encodings])
        found = {"inputs": dict(encoded), "cut": cut}
        if not self.tokens:
            return found
        places = torch.full((len(texts), max(map(len, texts))), -1, dtype=torch.int64)
        lost = torch.zeros(len(texts), dtype=torch.int64)
        for number, words in enumerate(texts):
            last = -1
            for place, word in enumerate(encoded.word_ids(number)):
                if word is not None and places[number, word] < 0:
                    places[number, word] = place
                    last = word
            read = last + 1 if cut[number] else len(words)
            lost[number] = int((places[number, :read] < 0).sum())
        return {**found, "places": places, "lost": lost}


class TextCollater:
    """Wraps a data set's collater to add a teacher's inputs; a class, so that workers can pickle it."""

    def __init__(self, collater: Any, words: WordsOfSentences, encoder: Encoder, key: str):
        self._collater, self._words, self._encoder, self._key = collater, words, encoder, key

    def __call__(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        sample: Dict[str, Any] = self._collater(*args, **kwargs)
        if sample:
            unknown = self._encoder.tokenizer.unk_token or ""
            sample[self._key] = self._encoder([self._words(index, unknown) for index in sample["id"].tolist()])
        return sample


class HuggingFaceLabelMember(LabelMember):
    """A …ForSequenceClassification or …ForTokenClassification.

    Args:
        number: of this member in its ensemble
    """

    reads_text = truncates = True

    def __init__(self, folder: LabelFolder, labelling: Labelling, target: Symbols, number: int):
        super().__init__(folder.model, folder.path, folder.sha256, folder.parameters, Symbols(), target)
        self._encoder = Encoder(folder.tokenizer, labelling.tokens, folder.limit)
        self._key = f"teacher_text_{number}"

    def attach(self, dataset: Any, words: WordsOfSentences) -> None:
        """As LabelMember's."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers that fairseq forks are parallel already
        dataset.collater = TextCollater(dataset.collater, words, self._encoder, self._key)

    def truncated(self, batch: Dict[str, Any]) -> Tensor:
        """As LabelMember's."""
        cut: Tensor = batch[self._key]["cut"]
        return cut

    def lost(self, batch: Dict[str, Any]) -> Optional[Tensor]:
        """As LabelMember's."""
        return batch[self._key].get("lost")

    def covered(self, batch: Dict[str, Any], rows: Tensor) -> Optional[Tensor]:
        """As LabelMember's: words that the tokenizer has kept."""
        return self._places(batch, rows)[1] >= 0 if self._encoder.tokens else None

    def _places(self, batch: Dict[str, Any], rows: Tensor) -> Tuple[Tensor, Tensor]:
        """(tokens,) the sentence of each row, and the position of its word's first token there, or -1."""
        length = batch["target"].size(1)
        sentences = torch.div(rows, length, rounding_mode="floor")
        numbers = word_numbers(batch["target"]).reshape(-1)[rows]
        return sentences, batch[self._key]["places"][sentences, numbers]

    def features(
        self, batch: Dict[str, Any], rows: Tensor, inner: Optional[Inner] = None
    ) -> Tuple[Tensor, Project, States]:
        """As Member's: the logits at the rows."""
        logits = self.model(**batch[self._key]["inputs"]).logits
        if not self._encoder.tokens:
            return at_rows(rows, logits), as_it_is, {}
        sentences, places = self._places(batch, rows)
        return at_rows(sentences * logits.size(1) + places.clamp(min=0), logits), as_it_is, {}


def fit_folder(
    folder: LabelFolder, labelling: Labelling, number: int, given_labels: Optional[Sequence[str]] = None
) -> HuggingFaceLabelMember:
    """A folder as a teacher for this student.

    Raises:
        KDPluginError: its labels are unknown, or others than the student's
    """
    names = None if labelling.names is None else folder.names
    target = label_symbols(labelling, names, folder.outputs, folder.path, given_labels)
    return HuggingFaceLabelMember(folder, labelling, target, number)
