"""fairseq's search with a CTranslate2 model.

CTranslate2's beam search takes the same steps as fairseq's, but differs in these respects:

* At the length limit it returns its hypotheses without an end of sentence. fairseq takes one more step there, in which
  only the end is allowed, adds its log-probability, and normalises by a length that includes it.
* It removes forbidden symbols (padding, an end at the beginning, unknown symbols on request) before the softmax,
  fairseq afterwards. Here, such symbols end a hypothesis, which is discarded: its place in the beam goes to the next
  candidate, as in fairseq, and the others keep their probabilities.
* If more than `beam` hypotheses are finished, it returns the best of them. fairseq stops at `beam`, and of those that
  end in the same step it takes the likelier ones.
* Without a length penalty it stops early.

Sentences in which one of the first three occurs are searched again, either for all hypotheses that the search meets or
step by step, and fairseq's rules are applied to the result. All others are searched once. The time of a search step by
step grows with the square of the length. If it would take too long, fairseq itself searches if the checkpoint is
available; otherwise CTranslate2 searches with the forbidden symbols removed. The probabilities of the result are the
model's in either case.
"""

import math
from typing import AbstractSet, Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from kd_plugin.corpus.batches import by_length

Tokens = List[str]
Scored = Tuple[Tokens, float]

END = "</s>"
NO_PENALTY = 1e-12  # any length to this power is 1; with an exponent of 0 CTranslate2 stops early
STEPS = 100_000  # limit on the sum of squared lengths in a batch searched step by step: a few seconds
SCORED_TOKENS = 2000  # tokens scored at once: each needs a row as long as the vocabulary


class Hypothesis(NamedTuple):
    """tokens: without end of sentence. total: log-probability, including the end if the hypothesis is finished."""

    tokens: Tokens
    total: float


class Beam(NamedTuple):
    """All hypotheses that a search has met after a number of steps; alive ones have that many tokens.

    clean: the search was the same as fairseq's: no forbidden symbol entered the beam.
    """

    finished: List[Hypothesis]
    alive: List[Hypothesis]
    clean: bool = True


class Search:
    """Beam search, or draws, with a translator.

    Args:
        translator: a ctranslate2.Translator
        beam, nbest, lenpen: as fairseq-generate's
        sampling: CTranslate2's options for draws; empty: beam search
        forbidden: symbols that must not be written
        options: further CTranslate2 options for all translations
        of_fairseq: fairseq's own search, for sentences that would take too long here
        prefix: symbols that every translation begins with but that are not part of it: a language token

    Attributes:
        approximate: the sentences of the last call whose translations come from CTranslate2's own search only
    """

    def __init__(
        self,
        translator: Any,
        beam: int,
        nbest: int,
        lenpen: float,
        sampling: Dict[str, Any],
        forbidden: Sequence[str],
        options: Dict[str, Any],
        of_fairseq: Optional[Callable[[List[Tokens]], List[List[Scored]]]] = None,
        prefix: Sequence[str] = (),
    ):
        self._of_fairseq, self._prefix = of_fairseq, list(prefix)
        self._translator, self._sampling, self._forbidden = translator, sampling, list(forbidden)
        self._beam, self._nbest, self._lenpen = beam, nbest, lenpen
        self.approximate: AbstractSet[int] = frozenset()
        self._options = {"max_input_length": 0, "return_scores": True, **options}

    def __call__(self, sources: List[Tokens], limit: int) -> List[List[Scored]]:
        """The nbest translations of each sentence, best first.

        Args:
            sources: symbols without end of sentence
            limit: the most symbols of a translation, without its end

        Raises:
            FloatingPointError: a score is NaN
        """
        self.approximate = frozenset()
        results = self._draw(sources, limit) if self._sampling else self._search(sources, limit)
        return [sorted(result, key=lambda scored: -scored[1])[: self._nbest] for result in results]

    def _draw(self, sources: List[Tokens], limit: int) -> List[List[Scored]]:
        """`beam` draws of each sentence."""
        one: Dict[str, Any] = {"beam_size": 1, "num_hypotheses": self._beam, **self._sampling}
        one["suppress_sequences"] = [[symbol] for symbol in self._forbidden]
        answers = self._translate(sources, limit, self._lenpen, **one)
        capped = [
            (at, number)
            for at, answer in enumerate(answers)
            for number, (tokens, _) in enumerate(answer)
            if len(tokens) >= limit
        ]
        scored = self._score([(sources[at], answers[at][number][0]) for at, number in capped])
        for (at, number), log_probs in zip(capped, scored):
            tokens, score = answers[at][number]
            total = score * len(tokens) ** self._lenpen + log_probs[-1]
            answers[at][number] = (tokens, self._normalised(Hypothesis(tokens, total)))
        return answers

    def _search(self, sources: List[Tokens], limit: int) -> List[List[Scored]]:
        """The hypotheses of each sentence, as fairseq's search would finish them."""
        results, anew = [], []
        again: Dict[int, List[int]] = {}  # steps after which fairseq's search has stopped -> sentences
        answers = self._translate_with_ends(sources, limit, self._lenpen or NO_PENALTY, self._beam, self._beam)
        for at, answer in enumerate(answers):
            longest = max(len(symbols) for symbols, _ in answer)  # the end is one of them
            if not all(self._is_clean(symbols) for symbols, _ in answer):
                anew.append(at)
            elif any(symbols[-1] != END for symbols, _ in answer):
                again.setdefault(limit, []).append(at)
            elif [len(symbols) for symbols, _ in answer[: self._nbest]].count(longest) > 1:
                again.setdefault(longest, []).append(at)  # more hypotheses may have finished than were returned
            results.append([(symbols[:-1], score) for symbols, score in answer])
        for steps, places in again.items():
            beams = dict(zip(places, self._explore([sources[at] for at in places], steps)))
            if steps == limit:
                for at in self._force_ends(sources, beams, limit):
                    del beams[at]
                    anew.append(at)
            for at, beam in beams.items():
                if not beam.clean:
                    anew.append(at)
                elif len(beam.finished) >= self._beam or steps == limit:  # else: rounding made a difference this time
                    results[at] = self._first(beam.finished)
        if not anew:
            return results
        if len(anew) * limit**2 <= STEPS:
            for at, beam in zip(anew, self._step_by_step([sources[at] for at in anew], limit)):
                results[at] = self._first(beam.finished)
        elif self._of_fairseq is not None:
            answers = self._of_fairseq(sources)  # the whole batch, on which its length limit depends
            results = [answers[at] if at in anew else result for at, result in enumerate(results)]
        else:
            self.approximate = frozenset(anew)
            for at, hypotheses in zip(anew, self._without_forbidden([sources[at] for at in anew], limit)):
                results[at] = self._first(hypotheses)
        return results

    def _without_forbidden(self, sources: List[Tokens], limit: int) -> List[List[Hypothesis]]:
        """Search with the forbidden symbols removed; the scores are the unchanged model's."""
        never = [[symbol] for symbol in self._forbidden]
        answers = self._translate(
            sources, limit, self._lenpen or NO_PENALTY, beam_size=self._beam, num_hypotheses=self._beam,
            suppress_sequences=never, min_decoding_length=1,
        )  # fmt: skip
        scored = iter(self._score([(source, t) for source, answer in zip(sources, answers) for t, _ in answer]))
        return [[Hypothesis(tokens, sum(next(scored))) for tokens, _ in answer] for answer in answers]

    def _is_clean(self, symbols: Tokens) -> bool:
        """Whether fairseq's search would let it into the beam: no early end, no empty one, no forbidden symbol."""
        return symbols != [END] and END not in symbols[:-1] and not any(symbol in symbols for symbol in self._forbidden)

    def _explore(self, sources: List[Tokens], steps: int) -> List[Beam]:
        """All hypotheses that a search meets if nothing stops it before a number of steps.

        A hypothesis that ends in the very last step leaves its place among the alive ones empty.
        """
        beams = []
        number = self._beam if self._beam == 1 else steps * self._beam
        for answer in self._translate_with_ends(sources, steps, NO_PENALTY, self._beam, number):
            alive = [Hypothesis(symbols, total) for symbols, total in answer if symbols[-1] != END]
            finished = [Hypothesis(symbols[:-1], total) for symbols, total in answer if symbols[-1] == END]
            beams.append(Beam(finished, alive, all(self._is_clean(symbols) for symbols, _ in answer)))
        return beams

    def _force_ends(self, sources: List[Tokens], beams: Dict[int, Beam], limit: int) -> List[int]:
        """fairseq's step at the limit: alive hypotheses are finished while there is room.

        Returns:
            the sentences for which this would take too long; they are left unchanged
        """
        beams = {at: beam for at, beam in beams.items() if beam.clean and len(beam.finished) < self._beam}
        slow = self._fill(sources, beams, limit)
        beams = {at: beam for at, beam in beams.items() if at not in slow}
        for beam, ended in zip(
            beams.values(), self._end([sources[at] for at in beams], [b.alive for b in beams.values()])
        ):
            beam.finished.extend(ended)
        return slow

    def _fill(self, sources: List[Tokens], beams: Dict[int, Beam], limit: int) -> List[int]:
        """Fill the empty places among the hypotheses that are alive at the limit.

        CTranslate2 did not return those: the search is resumed after the last step that left no place empty.

        Returns:
            the sentences for which this would take too long
        """
        starts = {}
        for at, beam in beams.items():
            starts[at] = max(set(range(1, limit + 1)) - {len(hypothesis.tokens) + 1 for hypothesis in beam.finished})
        slow: List[int] = []
        if sum((limit - start) * limit for start in starts.values()) > STEPS:
            slow = [at for at, start in starts.items() if start < limit]
            starts = {at: start for at, start in starts.items() if start == limit}
        for steps in range(min(starts.values(), default=limit), limit):
            fresh = [at for at, start in starts.items() if start == steps]
            for at, beam in zip(fresh, self._explore([sources[at] for at in fresh], steps)):
                beams[at].alive[:] = beam.alive
            some = [at for at, start in starts.items() if start <= steps]
            grown = self._grow([sources[at] for at in some], [beams[at].alive for at in some], steps + 1)
            for at, candidates in zip(some, grown):
                beams[at].alive[:] = candidates
        return slow

    def _step_by_step(self, sources: List[Tokens], limit: int) -> List[Beam]:
        """fairseq's search step by step, for the few sentences of weak models that need it: slow."""
        beams = [Beam([], [Hypothesis([], 0.0)]) for _ in sources]
        for steps in range(limit + 1):
            going_on = [at for at, beam in enumerate(beams) if len(beam.finished) < self._beam]
            some, alive = [sources[at] for at in going_on], [beams[at].alive for at in going_on]
            # no end in the first step, only ends at the limit
            ended = self._end(some, alive) if steps else [[] for _ in some]
            longer = self._grow(some, alive, steps + 1) if steps < limit else [[] for _ in some]
            for at, ends, others in zip(going_on, ended, longer):
                best = sorted([*ends, *others], key=lambda h: -h.total)[: self._beam]
                beams[at].finished.extend(h for h in best if len(h.tokens) == steps)
                beams[at].alive[:] = others
        return beams

    def _end(self, sources: List[Tokens], alive: List[List[Hypothesis]]) -> List[List[Hypothesis]]:
        """The same hypotheses with an end of sentence."""
        pairs = [(source, hypothesis.tokens) for source, some in zip(sources, alive) for hypothesis in some]
        scored = iter(self._score(pairs))
        return [[Hypothesis(tokens, total + next(scored)[-1]) for tokens, total in some] for some in alive]

    def _grow(self, sources: List[Tokens], alive: List[List[Hypothesis]], steps: int) -> List[List[Hypothesis]]:
        """The `beam` likeliest hypotheses that are one symbol longer and not ended, likeliest first."""
        rows = [(source, hypothesis) for source, some in zip(sources, alive) for hypothesis in some]
        if not rows:
            return [[] for _ in alive]
        width = self._beam + 2 + 2 * len(self._forbidden)  # a symbol that ends after a prefix takes up two places
        prefixes = [hypothesis.tokens for _, hypothesis in rows]
        answers = iter(
            self._translate_with_ends([source for source, _ in rows], steps, NO_PENALTY, width, width, prefixes)
        )
        grown = []
        for some in alive:
            candidates = [Hypothesis(symbols, h.total + more) for h in some for symbols, more in next(answers)]
            candidates = [h for h in candidates if h.tokens[-1] != END and self._is_clean(h.tokens)]
            grown.append(sorted(candidates, key=lambda h: -h.total)[: self._beam])
        return grown

    def _first(self, hypotheses: List[Hypothesis]) -> List[Scored]:
        """The hypotheses that fairseq's search finishes before it stops."""
        in_order = sorted(hypotheses, key=lambda hypothesis: (len(hypothesis.tokens), -hypothesis.total))
        return [(h.tokens, self._normalised(h)) for h in in_order[: self._beam]]

    def _normalised(self, hypothesis: Hypothesis) -> float:
        return float(hypothesis.total / (len(hypothesis.tokens) + 1) ** self._lenpen)

    def _translate_with_ends(
        self,
        sources: List[Tokens],
        steps: int,
        lenpen: float,
        beam: int,
        number: int,
        prefixes: Optional[List[Tokens]] = None,
    ) -> List[List[Scored]]:
        """Symbols up to the end or a forbidden symbol, with their score; stops after `number` hypotheses."""
        more: Dict[str, Any] = {"patience": number / beam} if number > beam else {}
        more.update(end_token=[END, *self._forbidden], return_end_token=True, min_decoding_length=0)
        return self._translate(sources, steps, lenpen, prefixes, beam_size=beam, num_hypotheses=number, **more)

    def _translate(
        self,
        sources: List[Tokens],
        steps: int,
        lenpen: float,
        prefixes: Optional[List[Tokens]] = None,
        **more: Any,
    ) -> List[List[Scored]]:
        """Symbols after self._prefix, and their score."""
        before = len(self._prefix)
        if prefixes is not None or before:
            more["target_prefix"] = [[*self._prefix, *prefix] for prefix in prefixes or [[]] * len(sources)]
        answers = self._translator.translate_batch(
            sources, max_decoding_length=steps + before, length_penalty=lenpen, **self._options, **more
        )
        found = []
        for answer in answers:
            some = []
            for symbols, score in zip(answer.hypotheses, map(float, answer.scores)):
                # CTranslate2 normalises by a length that includes the prefix
                own = max(1, len(symbols) - before)
                some.append((symbols[before:], score * (len(symbols) / own) ** lenpen if before else score))
            found.append(some)
        if any(math.isnan(score) for some in found for _, score in some):
            raise FloatingPointError("a score is NaN")
        return found

    def _score(self, pairs: List[Tuple[Tokens, Tokens]]) -> List[List[float]]:
        """Log-probabilities of the symbols of each pair's target, including its end."""
        results: List[List[float]] = [[] for _ in pairs]
        lengths = np.array([max(len(source), len(target)) + 1 for source, target in pairs], dtype=np.int64)
        for batch in by_length(lengths, SCORED_TOKENS):
            sources = [pairs[at][0] for at in batch]
            targets = [[*self._prefix, *pairs[at][1]] for at in batch]
            for at, scored in zip(batch, self._translator.score_batch(sources, targets, max_input_length=0)):
                results[at] = scored.log_probs[len(self._prefix) :]
        return results
