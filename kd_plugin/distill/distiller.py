"""The distiller of a criterion: the terms of the loss, their schedules, the selection of tokens, and the teacher, which
it asks once per batch."""

import functools
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch
from fairseq.distributed import utils as distributed_utils
from torch import Tensor

from kd_plugin.corpus.noisy_sources import as_clean
from kd_plugin.distill.course import Schedule
from kd_plugin.distill.plausible import Plausible
from kd_plugin.distill.signature import run_signature
from kd_plugin.distill.student import StudentAnswer
from kd_plugin.distill.terms import asked_terms
from kd_plugin.distill.terms.base import Batch, Term, TermResult
from kd_plugin.distill.terms.projections import untouched
from kd_plugin.distill.terms.tokens import TokensTerm
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.selection import SELECTIONS, gather_from_ranks
from kd_plugin.models.states import Inner, StateKey
from kd_plugin.teachers.base import Answer, Request, Teacher


class Weights(NamedTuple):
    """The factors of cross-entropy and divergence.

    own:    whether the batch holds the student's own words, whose cross-entropy would teach it nothing
    others: whether to compute the other terms as well
    """

    cross_entropy: float
    divergence: float
    own: bool = False
    others: bool = True


class Distiller:
    """Computes the sum of the terms.

    Args:
        cfg: the criterion's flags, already checked
        task: its `teacher`, `num_updates` (from 0) and `is_dummy_batch` are read when needed
        further: a field of the run's signature; empty: none
        main: the term of cross-entropy and divergence

    Raises:
        KDPluginError: the teacher cannot provide what a term needs
    """

    def __init__(self, cfg: Any, task: Any, further: str = "", main: Type[TokensTerm] = TokensTerm):
        self.alpha, self.temperature = Schedule.of(cfg, "kd_alpha"), Schedule.of(cfg, "kd_temperature")
        self.selects = str(cfg.kd_selection) != "all"
        self.selection = SELECTIONS[str(cfg.kd_selection)](cfg.kd_select_ratio, cfg.kd_queue_size)
        self.terms: List[Term] = asked_terms(cfg, main)
        self._task = task
        self._plausible = Plausible(getattr(task, "counted_dictionary", getattr(task, "target_dictionary", None)))
        self._check()
        for term in self.terms:
            term.prepare(getattr(task, "student_shape", None), getattr(self.teacher, "shape", None))
        self.signature = run_signature(cfg, self.teacher, self.terms, further)

    @property
    def passes(self) -> int:
        """How often the student must compute a batch in training."""
        return max(term.passes for term in self.terms)

    @property
    def teacher(self) -> Optional[Teacher]:
        return getattr(self._task, "teacher", None)

    @property
    def update(self) -> int:
        """The number of updates made so far."""
        return int(getattr(self._task, "num_updates", 0))

    def alpha_and_temperature(self) -> Tuple[float, float]:
        """Their values at this update."""
        return self.alpha.at(self.update), self.temperature.at(self.update)

    def _check(self) -> None:
        teacher = self.teacher
        provides = frozenset() if teacher is None else teacher.provides
        for term in self.terms:
            missing = sorted(signal.value for signal in term.needs - provides)
            if missing:
                whose = "there is no teacher"
                if teacher is not None:
                    whose = teacher.lacking or f"{type(teacher).__name__} does not provide them"
                raise KDPluginError(
                    f"{term.flag} needs a teacher's {' and '.join(missing)}, but {whose}. Remedy: another kind of "
                    f"teacher, or train without {term.flag}"
                )
            if teacher is not None and isinstance(term, TokensTerm):
                teacher.check([term.objective(self.alpha.start, t) for t in self.temperature.ends()])

    def __call__(
        self,
        passes: Sequence[StudentAnswer],
        sample: Dict[str, Any],
        stock_loss: Callable[[Any], Tuple[Tensor, Tensor]],
        training: bool,
        weights: Optional[Weights] = None,
    ) -> Tuple[Tensor, Dict[str, Any]]:
        """The loss of a batch, and sums for the log.

        Args:
            passes: the student's results, `self.passes` of them in training, otherwise one
            stock_loss: computes fairseq's own (loss, nll_loss) from its own output of a pass
            training: False distils every token
            weights: of cross-entropy and divergence, if not alpha and 1 - alpha
        """
        student = passes[0]
        update, (alpha, temperature) = self.update, self.alpha_and_temperature()
        answer, distilled, covered = None, None, None
        terms = [
            term
            for term in self._active(update)
            if term.passes <= len(passes) and (weights is None or weights.others or isinstance(term, TokensTerm))
        ]
        teacher = self.teacher
        if teacher is not None and teacher.covers(sample):
            covered = distilled = teacher.covered(as_clean(sample), student.rows, training)
            if alpha < 1.0 and self.selects and training:
                distilled = self._select(passes, covered, student.unlabelled)
            answer = self._ask(teacher, student, sample, distilled, training, terms)
        # the sum of both weights is factored out, because a term's weights are alpha and 1 - alpha
        share, of_references = 1.0, alpha
        if weights is not None:
            share = weights.cross_entropy + weights.divergence
            of_references = weights.cross_entropy / share
            covered = None if weights.own else covered
        batch = Batch(sample, update, of_references, temperature, distilled, None, covered, training)
        batch = batch._replace(
            alone_weight=1.0 / share, unlabelled=student.unlabelled
        )  # rows without a teacher keep their whole cross-entropy
        own = [None if one.net_output is None else functools.partial(stock_loss, one.net_output) for one in passes]
        loss, logs = None, {}
        for term in terms:
            if term.passes > 1:
                result = term(student, answer, batch._replace(second_pass=passes[1]))
            else:
                result = _mean([term(one, answer, batch._replace(stock_loss=stock)) for one, stock in zip(passes, own)])
            weight = share if isinstance(term, TokensTerm) else term.weight(update)
            value = result.value if weight == 1.0 else weight * result.value
            loss = value if loss is None else loss + value
            logs.update(result.logs)
        assert loss is not None
        if "kd_alpha" in logs:
            logs["kd_alpha"] = alpha
        if training and (weights is None or not weights.own):
            self._plausible(logs)
        modules = [term.module for term in self.terms if term.module is not None]
        return (loss + untouched(modules) if modules else loss), logs

    def _active(self, update: int) -> List[Term]:
        return [term for term in self.terms if term.weight(update) != 0.0]

    @property
    def student_states(self) -> FrozenSet[StateKey]:
        """The student's inner states that the terms compare at this update."""
        return frozenset().union(*(term.states(self.update)[0] for term in self._active(self.update)))

    def _ask(
        self,
        teacher: Teacher,
        student: StudentAnswer,
        sample: Dict[str, Any],
        distilled: Optional[Tensor],
        training: bool,
        terms: Sequence[Term],
    ) -> Answer:
        """Asks the teacher once, for everything that the terms use."""
        wanted = frozenset().union(*(term.uses for term in terms)) & teacher.provides
        rows = student.rows if distilled is None else student.rows[distilled]
        keys = frozenset().union(*(term.states(self.update)[1] for term in terms))
        inner = Inner(keys, student.rows) if keys else None
        return teacher.answer(as_clean(sample), Request(rows, student.dtype, wanted, training, inner))

    def _select(
        self, passes: Sequence[StudentAnswer], covered: Optional[Tensor], unlabelled: Optional[Tensor] = None
    ) -> Optional[Tensor]:
        """(tokens,) bool, the target tokens to distil, chosen among those that the teacher covers; None: all.

        A token without a label has no cross-entropy to choose by, and is always distilled.
        """
        if unlabelled is not None:
            every = torch.ones_like(unlabelled) if covered is None else covered
            of_labelled = self._select(passes, every & ~unlabelled)
            assert of_labelled is not None
            return of_labelled | (every & unlabelled)
        nll, *others = (student.tokens.token_nll(student.target) for student in passes)
        for other in others:
            nll = nll + other
        nll = nll / len(passes) if others else nll
        nll = nll if covered is None else nll[covered]
        # a rank that has run out of data computes another rank's batch, whose tokens are counted there
        counted = nll[:0] if getattr(self._task, "is_dummy_batch", False) else nll
        group = distributed_utils.get_data_parallel_group()
        world_size = distributed_utils.get_world_size(group)
        chosen: Optional[Tensor] = self.selection(
            nll, gather_from_ranks(counted, world_size, lambda values: distributed_utils.all_gather(values, group))
        )
        if covered is None:
            return chosen
        return covered if chosen is None else covered.masked_scatter(covered, chosen)


def _mean(results: Sequence[TermResult]) -> TermResult:
    """The mean of a term over the student's passes, value and logged sums."""
    if len(results) == 1:
        return results[0]
    share = 1.0 / len(results)
    logs = {key: share * sum(result.logs[key] for result in results) for key in results[0].logs}
    return TermResult(share * torch.stack([result.value for result in results]).sum(), logs)
