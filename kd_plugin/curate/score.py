"""The cross-entropy of translations, from the teacher, another model, or one that translates back.

A translation's score is the log-probability of a target token, the mean with end of sentence, as fairseq-generate
--score-reference gives it (there in bits). From a model of the other direction it is that of the source, given the
translation: what a translation has left out or made up costs there.
"""

import functools
import math
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from fairseq import utils
from fairseq.data.language_pair_dataset import collate
from fairseq.sequence_scorer import SequenceScorer

from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.destination import Destination, TranslationSession, run_session
from kd_plugin.corpus.hypotheses import Record
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.subword_checks import Marks, check_known, check_text
from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.corpus.translations import Translations
from kd_plugin.decoding.base import ModelOptions, not_a_number
from kd_plugin.decoding.fairseq import DTYPES, Checkpoints, checkpoints_of, default_dtype, load_ensemble
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners.jobs import Job, device_of

TOO_LONG = "dropped_too_long"

Pair = Tuple[List[str], List[str]]  # symbols of what the model reads and of what it is asked about


class Scoring(NamedTuple):
    """What to score, and with what: the options of `kd-plugin score`."""

    input_dir: str
    models: ModelOptions
    subwords: SubwordOptions
    compute_type: str
    max_tokens: int
    job: Job
    to: Destination


def score(args: Scoring) -> None:
    """Write this job's share of the translations again, with scores."""
    check_languages(args.models.source_lang, args.models.target_lang)
    args.job.check()
    Translations(Path(args.input_dir)).check_any()
    run_session(args.to, args.job, "score", functools.partial(Session, args))


class Session(TranslationSession):
    """Translations and a model, ready to score any shard. number: of the worker"""

    def __init__(self, args: Scoring, number: int):
        self.output, self._max_tokens = Path(args.to.output), args.max_tokens
        self._translations = Translations(Path(args.input_dir))
        manifest = self._translations.manifest
        self.languages, self.input_lines, self.lines = manifest.languages, manifest.input_lines, manifest.lines
        # a shard of the input becomes one of the output
        self.plans = [Plan(at, at, at + 1, shard.hypotheses) for at, shard in enumerate(manifest.shards)]
        self._args = args
        checkpoints = self._checkpoints = checkpoints_of(args.models)
        self._backward = self._is_backward(checkpoints)
        self._subwords = args.subwords.open()
        dictionaries = checkpoints.source_dictionary.symbols, checkpoints.target_dictionary.symbols
        self._subwords.check(args.models.path, *dictionaries)
        device = device_of(number)
        dtype = args.compute_type if args.compute_type != "auto" else default_dtype(device)
        self.identity = {
            "verb": "score",
            "backward": self._backward,
            "compute_type": dtype,
            "models": checkpoints.identity(),
            "overrides": checkpoints.overrides,
            "subwords": self._subwords.identity(),
            "max_tokens": args.max_tokens,
            "input": manifest.digest(),
        }
        self._open = functools.partial(Scorer, checkpoints, device, DTYPES[dtype])

    @functools.cached_property
    def _scorer(self) -> "Scorer":
        """Opened by who scores, and not by who only shares the work out."""
        return self._open()

    def prepare(self) -> None:
        """Workers of their own open the model again."""
        if not self._args.job.is_here:
            self._checkpoints.let_go()

    def _is_backward(self, checkpoints: Checkpoints) -> bool:
        """Whether the model translates from the translations' target to their source language."""
        if checkpoints.languages is None or checkpoints.languages == self.languages:
            return False
        if checkpoints.languages == self.languages[::-1]:
            return True
        raise KDPluginError(
            f"{checkpoints.paths[0]}: translates {'-'.join(checkpoints.languages)}, and {self._translations.folder} "
            f"holds {'-'.join(self.languages)}. Remedy: a model of these languages, in either direction"
        )

    def __call__(self, plan: Plan) -> Plan:
        """Score a shard's translations and write them again, in the same order."""
        records = list(self._translations.records_of(self._translations.manifest.shards[plan.number]))
        texts = [pair for record in records for pair in self._texts(record)]
        for side, (subwords, dictionary) in enumerate(zip(self._subwords, self._scorer.dictionaries)):
            marks = Marks(text[side] for text in texts)
            check_text(marks, subwords.path is not None, dictionary.symbols, str(self._translations.folder))
        joined = self._scorer.dictionaries[0].symbols == self._scorer.dictionaries[1].symbols
        self._subwords.check_sides((read for read, _ in texts), str(self._translations.folder), joined)
        pairs = [(self._subwords.source.encode(read), self._subwords.target.encode(asked)) for read, asked in texts]
        for side, (subwords, dictionary) in enumerate(zip(self._subwords, self._scorer.dictionaries)):
            check_known((pair[side] for pair in pairs), dictionary.indices, subwords.path is not None)
        scores = iter(self._scores(pairs))
        scored, dropped = [], 0
        for record in records:
            with_scores = [(hypothesis, next(scores)) for hypothesis in record.hypotheses]
            left = [hypothesis._replace(score=score) for hypothesis, score in with_scores if score is not None]
            dropped += len(record.hypotheses) - len(left)
            scored.append(record._replace(hypotheses=left))
        self.folder.write_records(plan.name, scored, {TOO_LONG: dropped})
        return plan

    def _texts(self, record: Record) -> Iterator[Tuple[str, str]]:
        """What the model reads and what it is asked about."""
        for hypothesis in record.hypotheses:
            texts = record.source, hypothesis.text
            yield texts[::-1] if self._backward else texts

    def _scores(self, pairs: List[Pair]) -> List[Optional[float]]:
        """None: longer than the model reads or writes. Nothing for nothing, as decode translates empty lines, has 0."""
        lengths = np.array([[len(read), len(asked)] for read, asked in pairs], dtype=np.int64).reshape(-1, 2).T
        possible = np.flatnonzero((lengths <= np.array(self._scorer.max_tokens)[:, None]).all(0) & lengths.any(0))
        scores: List[Optional[float]] = [None if read or asked else 0.0 for read, asked in pairs]
        self.progress(len(pairs) - len(possible))
        padded = lengths[:, possible] + 1
        for positions in by_length(np.stack([padded[0], padded.max(0, initial=0)]), self._max_tokens):
            batch = possible[positions]
            for at, score in zip(batch, self._scorer([pairs[at] for at in batch])):
                scores[at] = score
            self.progress(len(batch))
        return scores


class Scorer:
    """fairseq's SequenceScorer with one model or an ensemble (the mean of their probabilities) of any architecture.

    Args:
        dtype: of the weights on `device`
    """

    def __init__(self, checkpoints: Checkpoints, device: torch.device, dtype: torch.dtype = torch.float32):
        self._ensemble, self._device = load_ensemble(checkpoints, device, dtype), device
        self.dictionaries = (checkpoints.source_dictionary, checkpoints.target_dictionary)
        self._paths, self._dtype = checkpoints.paths, str(dtype).replace("torch.", "")
        self._scorer = SequenceScorer(checkpoints.target_dictionary)
        self.max_tokens = (self._ensemble.max_source_tokens, self._ensemble.max_target_tokens)

    def __call__(self, pairs: List[Pair]) -> List[float]:
        """Log-probability a token of the second of each pair, given the first.

        Args:
            pairs: symbols, without end of sentence; one batch
        """
        samples: List[Dict[str, Any]] = []
        for number, pair in enumerate(pairs):
            source, target = (
                torch.tensor([dictionary.index(token) for token in tokens] + [dictionary.eos()])
                for dictionary, tokens in zip(self.dictionaries, pair)
            )
            samples.append({"id": number, "source": source, "target": target})
        pad, eos = self.dictionaries[1].pad(), self.dictionaries[1].eos()
        sample = collate(samples, pad, eos, left_pad_source=True, left_pad_target=False)
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self._device), sample)
        answers = self._scorer.generate(self._ensemble.models, sample)
        scores = {int(number): float(answer[0]["score"]) for number, answer in zip(sample["id"], answers)}
        if not all(map(math.isfinite, scores.values())):
            raise not_a_number(", ".join(self._paths), self._dtype)
        return [scores[number] for number in range(len(pairs))]
