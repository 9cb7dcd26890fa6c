"""A source sentence with its translations, as a line of JSON (kd_plugin.corpus.translations)."""

import json
from pathlib import Path
from typing import List, NamedTuple, Optional

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import SURROGATE, is_number


class Hypothesis(NamedTuple):
    """A translation. score: given by its system, higher is better (fairseq: log-probability per token)."""

    text: str
    score: Optional[float] = None


class Record(NamedTuple):
    """A source sentence, its translations, best first, and the corpus lines (from 0, ascending) that contain it.

    system: the system that translated it, if known
    """

    ids: List[int]
    source: str
    hypotheses: List[Hypothesis]
    system: Optional[str] = None

    def encode(self) -> str:
        """Encodes the record as a line of JSON; refuses values that `decode` would not accept."""
        try:
            self._check_values()
        except ValueError as error:
            raise KDPluginError(f"sentence {self.ids[0]}: {error}") from error
        content = {"ids": self.ids, "source": self.source, "hypotheses": [h._asdict() for h in self.hypotheses]}
        if self.system is not None:
            content["system"] = self.system
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def decode(cls, line: str) -> "Record":
        """Decodes a line of JSON.

        Raises:
            ValueError: it is not a record; says why
        """
        try:
            content = json.loads(line)
            hypotheses = [Hypothesis(h["text"], h["score"]) for h in content["hypotheses"]]
            record = cls(content["ids"], content["source"], hypotheses, content.get("system"))
        except RecursionError as error:
            raise ValueError("brackets are nested too deeply") from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a record ({error!r})") from error
        if type(record.ids) is not list or not record.ids or not all(type(number) is int for number in record.ids):
            raise ValueError("ids is not a list of numbers")
        record._check_values()
        return record

    def _check_values(self) -> None:
        """Raises ValueError if a text is not a string or cannot be a line, or a score is not a number."""
        for text in (self.source, *(hypothesis.text for hypothesis in self.hypotheses), self.system or ""):
            if type(text) is not str:
                raise ValueError(f"{text!r} is not text")
            if "\n" in text or "\r" in text:
                raise ValueError(f"a line break inside {text!r}")
            if not text.isascii() and SURROGATE.search(text):
                raise ValueError(f"half of a surrogate pair inside {text!r}")
        for score in (hypothesis.score for hypothesis in self.hypotheses):
            if score is not None and not is_number(score):
                raise ValueError(f"score {'NaN' if score != score else repr(score)} is not a number")


def scores_of(record: Record, folder: Path, remedy: str) -> List[float]:
    """The scores of all of a record's translations.

    Raises:
        KDPluginError: one has no score
    """
    scores = []
    for hypothesis in record.hypotheses:
        if hypothesis.score is None:
            raise KDPluginError(
                f"{folder}: line {record.ids[0]} (from 0) has a translation without a score: {hypothesis.text!r}. "
                f"Remedy: {remedy}, or import with scores"
            )
        scores.append(hypothesis.score)
    return scores
