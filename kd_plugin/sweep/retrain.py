"""The best trials and the command's own values, trained with several seeds: is the difference more than chance?"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from optuna.trial import FrozenTrial, TrialState

from kd_plugin.runners.progress import progress_bar
from kd_plugin.sweep.config import Sweep
from kd_plugin.sweep.space import Space, Values
from kd_plugin.sweep.study import GIVEN, Place, best, training_words, trial_folder
from kd_plugin.sweep.training import DONE, Training

DEFAULT = "as given"


class Retrained(NamedTuple):
    """Values trained with several seeds. scores: by seed; None: that training failed"""

    name: str
    values: Values
    scores: Dict[int, Optional[float]]


def retrain(sweep: Sweep, space: Space, place: Place, trials: Sequence[FrozenTrial]) -> List[Retrained]:
    """Trains the command as given, then the best trials, with each of the file's seeds and without stopping early.

    A trial that has run to its end with one of these seeds is not trained again with it.
    """
    count, seeds = sweep.retrain
    if not count:
        return []
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    ranked = sorted(complete, key=lambda trial: (trial.value or 0.0) * (-1 if sweep.direction == "maximize" else 1))
    chosen = [trial for trial in ranked if not trial.user_attrs.get(GIVEN)][:count]
    given = next((trial for trial in trials if trial.user_attrs.get(GIVEN)), None)
    jobs = []
    for name, values, trial in [
        (DEFAULT, space.given, given),
        *((f"trial {t.number}", dict(t.params), t) for t in chosen),
    ]:
        for seed in seeds:
            done = trial is not None and trial.state == TrialState.COMPLETE and seed == sweep.seed
            if done and trial is not None:
                folder = trial_folder(place.output, trial.number)
            else:
                folder = place.output / "retrained" / name.replace(" ", "-") / f"seed-{seed}"
            jobs.append((name, values, seed, folder))
    workers = list(range(place.workers))

    def train(job: "tuple[str, Values, int, Path]") -> Optional[float]:
        worker = workers.pop(0)
        try:
            words = training_words(sweep, space, job[1], job[3], job[2])
            outcome = Training(job[3], words, sweep.objective, place.environment(worker), place.ended.is_set).run(
                lambda *_: False
            )
        finally:
            workers.append(worker)
            bar.update()
        return best(sweep, outcome) if outcome.state == DONE else None

    with progress_bar("with other seeds", len(jobs), "training") as bar:
        with ThreadPoolExecutor(place.workers) as pool:
            try:
                scores = list(pool.map(train, jobs))
            except BaseException:
                place.ended.set()
                raise
    found: Dict[str, Retrained] = {}
    for (name, values, seed, _), score in zip(jobs, scores):
        found.setdefault(name, Retrained(name, values, {})).scores[seed] = score
    return list(found.values())


def verdict(sweep: Sweep, retrained: Sequence[Retrained]) -> str:
    """What the seeds say about the best of the trials against the command as given."""
    if len(retrained) < 2:
        return ""
    baseline, rest = retrained[0], retrained[1:]
    ranked = [(mean(one), one) for one in rest if mean(one) is not None]
    if mean(baseline) is None or not ranked:
        return "Too many of these trainings failed to compare them."
    order = max if sweep.direction == "maximize" else min
    top = order(ranked, key=lambda pair: pair[0] or 0.0)[1]
    pairs = [(one, baseline.scores[seed]) for seed, one in top.scores.items()]
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    wins = sum(sweep.better(one, other) for one, other in known)
    gain, spread = abs((mean(top) or 0.0) - (mean(baseline) or 0.0)), max(width(baseline), width(top))
    ahead = sweep.better(mean(top) or 0.0, mean(baseline) or 0.0)
    count = wins if ahead else len(known) - wins
    text = (
        f"{top.name} is {'better' if ahead else 'worse'} than the command as given in {count} of {len(known)} seeds, "
        f"by {gain:.4g} on average; seeds differ by up to {spread:.4g}. "
    )
    if not ahead:
        return text + "Keep the command as given."
    if wins == len(known) and gain > spread:
        return text + "That is more than chance."
    return text + "That is within what seeds change: the command as given is as good."


def mean(one: Retrained) -> Optional[float]:
    known = [score for score in one.scores.values() if score is not None]
    return sum(known) / len(known) if known else None


def width(one: Retrained) -> float:
    known = [score for score in one.scores.values() if score is not None]
    return max(known) - min(known) if known else 0.0
