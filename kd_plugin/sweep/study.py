"""The trials of a sweep: what to try next, several trainings at a time, and which to stop early."""

import contextlib
import logging
import os
import random
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import optuna
import sqlalchemy.exc
import sqlalchemy.pool
from optuna.trial import FrozenTrial, Trial, TrialState

from kd_plugin.errors import KDPluginError
from kd_plugin.runners.progress import progress_bar
from kd_plugin.sweep.config import Sweep
from kd_plugin.sweep.space import Space, Values, key_of, suggest, untried
from kd_plugin.sweep.training import CHECKPOINTS, DONE, FAILED, LOG, Outcome, Training

ATTEMPTS = 10  # at a proposal that has not been tried yet
DATABASE, NAME, GIVEN, ERROR, SECONDS = "study.db", "sweep", "given", "error", "seconds"


class Place(NamedTuple):
    """Where trainings run.

    devices: a value of CUDA_VISIBLE_DEVICES for each worker; empty: as this process
    ended:   set when all of them have to stop, because one has failed or the user interrupts
    """

    output: Path
    workers: int
    devices: Sequence[str]
    ended: threading.Event

    def environment(self, worker: int) -> Dict[str, str]:
        device = {"CUDA_VISIBLE_DEVICES": self.devices[worker]} if self.devices else {}
        return {**os.environ, **device}


class Study:
    """Trials in an SQLite database, which says after any interruption what has been tried and what is unfinished.

    Tree-structured Parzen estimators (Bergstra et al. 2011) propose, asynchronous successive halving (Li et al. 2020)
    stops. Each proposal has its own seed, so that an interrupted sweep with one worker proposes what it would have
    proposed.
    """

    def __init__(self, sweep: Sweep, space: Space, place: Place):
        self._sweep, self._space, self._place = sweep, space, place
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        halving = sweep.halving
        try:
            self._study = optuna.create_study(
                storage=_storage(place.output / DATABASE),
                study_name=NAME,
                load_if_exists=True,
                direction=sweep.direction,  # type: ignore[arg-type]
                pruner=optuna.pruners.NopPruner()
                if halving is None
                else optuna.pruners.SuccessiveHalvingPruner(halving.first, halving.factor),
            )
        except (sqlalchemy.exc.DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            raise KDPluginError(
                f"{place.output / DATABASE}: cannot be read ({str(error).splitlines()[0]}). Remedy: another --output"
            ) from error
        self._lock = threading.Lock()
        self._ended = place.ended

    def trials(self) -> List[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def run(self) -> None:
        """Runs trials until the file's number of them has ended.

        Raises:
            KDPluginError: the first trial fails, which has the values of the command itself
        """
        trials = self.trials()
        for trial in trials[:1]:
            if trial.state == TrialState.FAIL:
                raise self._first_fails(trial.user_attrs.get(ERROR, ""))
        if not trials and set(self._space.given) == set(self._space.distributions):
            self._study.enqueue_trial(self._space.given, user_attrs={GIVEN: True})
        unfinished = [trial for trial in trials if trial.state == TrialState.RUNNING]
        over = sum(trial.state.is_finished() for trial in trials)
        with progress_bar("trials", self._sweep.trials, "trial", initial=over) as bar:
            with ThreadPoolExecutor(self._place.workers) as pool:
                work = [pool.submit(self._work, worker, unfinished, bar) for worker in range(self._place.workers)]
                try:
                    for future in work:
                        future.result()
                except BaseException:
                    self._ended.set()
                    raise

    def _work(self, worker: int, unfinished: List[FrozenTrial], bar: Any) -> None:
        while not self._ended.is_set():
            with self._lock:
                trial = self._next(unfinished)
                values = suggest(trial, self._space) if trial is not None else {}
            if trial is None:
                return
            try:
                self._tell(trial, values, self._training(trial.number, values, worker).run(self._judge(trial)))
            except BaseException:
                self._ended.set()
                raise
            bar.update()
            with contextlib.suppress(ValueError):  # no trial has a value yet
                bar.set_postfix_str(f"{self._sweep.objective} {self._study.best_value:.4g}")

    def _next(self, unfinished: List[FrozenTrial]) -> Optional[Trial]:
        """An interrupted trial, or else a new one; None if there are enough."""
        if unfinished:
            return Trial(self._study, unfinished.pop(0)._trial_id)
        begun = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
        if len(begun) >= self._sweep.trials:
            return None
        seed = (self._sweep.seed * 100_003 + len(begun)) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if all(trial.state != TrialState.WAITING for trial in self.trials()):
            left = untried(self._space, [trial.params for trial in begun])
            if left is not None:
                if not left:
                    return None
                self._study.enqueue_trial(self._proposed(begun, left, seed))
        return self._study.ask()

    def _proposed(self, begun: List[FrozenTrial], left: Dict[Any, Values], seed: int) -> Values:
        """What the sampler would try next, among the settings that are left: alone, it would repeat some, and a
        repeated training costs as much and teaches nothing."""
        for attempt in range(ATTEMPTS):
            draft = optuna.create_study(
                direction=self._sweep.direction,  # type: ignore[arg-type]
                sampler=optuna.samplers.TPESampler(seed=(seed + attempt) % 2**32, constant_liar=True),
            )
            draft.add_trials(begun)
            values = left.get(key_of(self._space, suggest(draft.ask(), self._space)))
            if values is not None:
                return values
        return random.Random(seed).choice(list(left.values()))

    def _training(self, number: int, values: Values, worker: int) -> Training:
        folder = trial_folder(self._place.output, number)
        words = training_words(self._sweep, self._space, values, folder, self._sweep.seed)
        return Training(folder, words, self._sweep.objective, self._place.environment(worker), self._ended.is_set)

    def _judge(self, trial: Trial) -> Any:
        def judge(update: int, value: float) -> bool:
            with self._lock:
                known = self._study._storage.get_trial(trial._trial_id).intermediate_values
                if update not in known:
                    trial.report(value, update)
                ended = update >= (self._sweep.updates or 0)  # nothing is left to save
                return self._sweep.halving is not None and not ended and trial.should_prune()

        return judge

    def _tell(self, trial: Trial, values: Values, outcome: Outcome) -> None:
        with self._lock:
            trial.set_user_attr(SECONDS, outcome.seconds)
            if outcome.state == FAILED:
                trial.set_user_attr(ERROR, outcome.error)
                self._study.tell(trial, state=TrialState.FAIL)
                if trial.number == 0:
                    raise self._first_fails(outcome.error)
            elif outcome.state == DONE:
                self._study.tell(trial, best(self._sweep, outcome))
            else:
                self._study.tell(trial, state=TrialState.PRUNED)

    def _first_fails(self, error: str) -> KDPluginError:
        return KDPluginError(
            f"{self._sweep.path}: the first training fails, so others would too: {error}. Remedy: read "
            f"{trial_folder(self._place.output, 0) / LOG}, mend the command or the values to try, and begin with "
            "another --output"
        )


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """An SQLite file, whatever its name: in an address, `?` and `%` have meanings that vary with SQLAlchemy."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=60, check_same_thread=False)

    return optuna.storages.RDBStorage("sqlite://", {"creator": connect, "poolclass": sqlalchemy.pool.NullPool})


def best(sweep: Sweep, outcome: Outcome) -> float:
    """The objective of the checkpoint that fairseq keeps as checkpoint_best.pt."""
    values = outcome.values.values()
    return max(values) if sweep.direction == "maximize" else min(values)


def trial_folder(output: Path, number: int) -> Path:
    return output / "trials" / f"{number:04d}"


def training_words(sweep: Sweep, space: Space, values: Values, folder: Path, seed: int) -> List[str]:
    """fairseq-train's arguments for one training."""
    each = str(sweep.validate)
    words = [
        *space.command(sweep.train, values),
        "--seed",
        str(seed),
        "--save-dir",
        str(folder / CHECKPOINTS),
    ]
    if sweep.updates is None:
        words += ["--stop-time-hours", f"{(sweep.seconds or 0) / 3600:.8f}"]
    else:
        words += ["--max-update", str(sweep.updates)]
    # checkpoint_last.pt at every validation, from which an interrupted training goes on
    words += ["--validate-interval-updates", each, "--save-interval-updates", each, "--keep-interval-updates", "1"]
    words += ["--no-epoch-checkpoints", "--log-format", "json", "--best-checkpoint-metric", sweep.objective]
    return words + (["--maximize-best-checkpoint-metric"] if sweep.direction == "maximize" else [])
