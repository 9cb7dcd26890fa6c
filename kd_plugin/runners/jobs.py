"""A long job in shards: shared among jobs, processes or machines, and gone on with after a kill."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, List, NamedTuple, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.shards import remove_leftovers
from kd_plugin.runners.progress import progress_bar
from kd_plugin.runners.shards import run

if TYPE_CHECKING:  # not needed by the verbs without models, and slow to import
    import torch


class Job(NamedTuple):
    """This job's share of the work, and where it runs: --num-shards, --shard-id, --workers (0: one a GPU), --runner."""

    num_shards: int = 1
    shard_id: int = 0
    workers: int = 0
    runner: str = "local"

    def check(self) -> None:
        """Refuse a shard that is none of the job's."""
        if self.shard_id >= self.num_shards:
            raise KDPluginError(
                f"--shard-id {self.shard_id}: --num-shards {self.num_shards} has the shards 0 … {self.num_shards - 1}. "
                "Remedy: one of these, or a larger --num-shards"
            )

    @property
    def processes(self) -> int:
        import torch

        return self.workers or max(1, torch.cuda.device_count())

    @property
    def is_here(self) -> bool:
        """Whether `work` does the shards in this process, and not in others that it starts."""
        return self.runner == "local" and self.processes == 1

    def mine(self, shards: int) -> range:
        """The numbers of this job's shards."""
        return range(self.shard_id, shards, self.num_shards)


def work(
    job: Job,
    folder: Path,
    plans: Sequence[Any],
    finished: Callable[[Any], bool],
    size: Callable[[Any], int],
    session: Any,
    make_session: Callable[[int], Any],
    name: str,
    unit: str,
) -> List[Any]:
    """Do those of this job's shards that are not finished.

    Args:
        plans: of all shards, each with a `name`
        size: of a shard, in the progress bar's unit
        session: does a shard when called with its plan, in this process; tells its `progress(size)` how far it is
        make_session: the same in another process, of the worker's number; can be pickled

    Returns:
        the plans of this job's shards
    """
    mine = [plans[number] for number in job.mine(len(plans))]
    remove_leftovers(folder, [plan.name for plan in mine])
    todo = [plan for plan in mine if not finished(plan)]
    total, left = sum(map(size, mine)), sum(map(size, todo))
    with progress_bar(name, total, unit, initial=total - left, unit_scale=True) as bar:
        start = functools.partial(_here, session) if job.is_here else make_session
        for plan in run(todo, start, bar.update, job.runner, job.processes):
            if job.runner == "ray":
                bar.update(size(plan))
    return mine


def device_of(worker: int) -> "torch.device":
    """Where the worker of this number computes: on a machine with several GPUs each takes its own."""
    import torch

    return (
        torch.device("cuda", worker % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def missing(folder: Path, mine: Sequence[Any], plans: Sequence[Any], finished: Callable[[Any], bool]) -> str:
    """What to say where other jobs have not finished yet."""
    left = sum(not finished(plan) for plan in plans)
    return f"{folder}: this job's {len(mine)} shards are finished, {left} of other jobs are missing"


def _here(session: Any, number: int) -> Any:
    return session
