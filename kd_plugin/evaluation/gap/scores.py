"""Both systems' scores on slices, and the bootstrap interval of their difference."""

from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from kd_plugin.evaluation.scores import SEED

Score = Callable[[np.ndarray], float]  # of summed or averaged statistics


class Difference(NamedTuple):
    """Scores on a slice. gap: student minus teacher; low, high: the ends of its 95 % interval"""

    teacher: float
    student: float
    gap: float
    low: float
    high: float


class Measure(NamedTuple):
    """A metric's statistics of each sentence.

    score:    from a slice's sum
    teacher, student: (sentences, statistics)
    """

    score: Score
    teacher: np.ndarray
    student: np.ndarray

    def difference(self, rows: Sequence[int], samples: int) -> Difference:
        """On the sentences `rows`; the bootstrap is paired, and draws the same for every metric."""
        teacher, student = self.teacher[list(rows)], self.student[list(rows)]
        scores = self.score(teacher.sum(0)), self.score(student.sum(0))
        gap = scores[1] - scores[0]
        low = high = float("nan")
        if samples and len(rows) > 1:
            drawn = np.random.default_rng(SEED).choice(len(rows), size=(samples, len(rows)))
            gaps = sorted(self.score(student[each].sum(0)) - self.score(teacher[each].sum(0)) for each in drawn)
            tail = samples // 40
            low, high = gaps[tail], gaps[samples - tail - 1]
        return Difference(*scores, gap, low, high)


def measures(
    teacher: Sequence[str], student: Sequence[str], references: Sequence[str], tokenize: str, lowercase: bool
) -> Tuple[Dict[str, Measure], Dict[str, str]]:
    """BLEU and chrF2 by sacreBLEU, and their signatures."""
    metrics: Dict[str, Any] = {"BLEU": BLEU(tokenize=tokenize, lowercase=lowercase), "chrF2": CHRF(lowercase=lowercase)}
    found, signatures = {}, {}
    for name, metric in metrics.items():
        sides = [_statistics(metric, side, references) for side in (teacher, student)]
        found[name] = Measure(_scorer(metric), *sides)
        metric.sentence_score("a", ["a"])  # tells it the number of references, which the signature needs
        signatures[name] = str(metric.get_signature())
    return found, signatures


def of_sentences(teacher: np.ndarray, student: np.ndarray) -> Measure:
    """A metric whose score is the mean over sentences, such as COMET's."""
    teacher, student = (np.stack([values, np.ones(len(values))], axis=1) for values in (teacher, student))
    return Measure(lambda sums: float(sums[0] / sums[1]), teacher, student)


def _scorer(metric: Any) -> Score:
    return lambda sums: float(metric._compute_score_from_stats([int(number) for number in sums]).score)


def _statistics(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    rows: List[Any] = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    return np.array(rows)
