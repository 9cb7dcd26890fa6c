"""Long work in shards, shared among jobs, processes or machines, and resumable after a kill."""

import abc
import functools
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, TypeVar

from kd_plugin.errors import KDPluginError
from kd_plugin.files.locks import Claim
from kd_plugin.files.sharded_folder import Plan, ShardedFolder, ShardKind
from kd_plugin.runners.local import MakeWorker, Progress, run_here, run_processes
from kd_plugin.runners.progress import progress_bar
from kd_plugin.runners.ray_cluster import run_ray

if TYPE_CHECKING:  # slow to import, and verbs without models do not need it
    import torch

RUNNERS = ("local", "ray")
Whole = TypeVar("Whole")


class Job(NamedTuple):
    """A job's share of the work and where it runs: --num-shards, --shard-id, --workers (0: one per GPU), --runner."""

    num_shards: int = 1
    shard_id: int = 0
    workers: int = 0
    runner: str = "local"

    def check(self) -> None:
        """Refuses a --shard-id that does not exist."""
        if self.shard_id >= self.num_shards:
            raise KDPluginError(
                f"--shard-id {self.shard_id}: with --num-shards {self.num_shards}, the shards are 0 … "
                f"{self.num_shards - 1}. Remedy: one of these, or a larger --num-shards"
            )

    @property
    def processes(self) -> int:
        import torch

        return self.workers or max(1, torch.cuda.device_count())

    @property
    def is_here(self) -> bool:
        """Whether the shards are processed in this process rather than in child processes."""
        return self.runner == "local" and self.processes == 1

    def mine(self, shards: int) -> range:
        """The numbers of this job's shards."""
        return range(self.shard_id, shards, self.num_shards)


class Session(abc.ABC):
    """Writes shards: called with a shard's plan, it writes the shard and reports progress. Loaded once per process.

    plans: of all shards of the job
    """

    plans: Sequence[Plan]

    def progress(self, size: int) -> Any:
        """Reports a step; the runner replaces it with its own function."""
        return None

    def prepare(self) -> None:
        """Prepares what all workers need, before the first one starts."""
        return None

    @abc.abstractmethod
    def __call__(self, plan: Plan) -> Plan:
        """Writes a shard."""


def claim_share(folder: ShardedFolder[ShardKind], flag: str, job: Job, session: Session) -> Claim:
    """A job's claim on its shards of a folder; raises as ShardedFolder.claim."""
    return folder.claim(flag, job.mine(len(session.plans)))


def fill(
    folder: ShardedFolder[ShardKind],
    claim: Claim,
    job: Job,
    session: Session,
    make_session: Callable[[int], Session],
    conclude: Callable[[List[ShardKind]], Whole],
    name: str,
    unit: str,
) -> Optional[Whole]:
    """Writes this job's unfinished shards; the job that finishes the last shard also concludes the folder.

    Args:
        claim: on the folder, from `claim_share`
        make_session: creates the session in another process, given the worker's number; must be picklable
        conclude: writes the manifest of all shards
        name, unit: of the progress bar

    Returns:
        the result of `conclude`; None, with a message, if other jobs are unfinished
    """
    plans = session.plans
    mine = [plans[number] for number in job.mine(len(plans))]
    session.prepare()
    folder.remove_leftovers(plan.name for plan in mine)
    todo = [plan for plan in mine if folder.finished(plan) is None]
    total, left = (sum(plan.size for plan in some) for some in (mine, todo))
    with progress_bar(name, total, unit, initial=total - left, unit_scale=True) as bar:
        start = functools.partial(_here, session) if job.is_here else make_session
        for plan in run(todo, start, bar.update, job.runner, job.processes):
            if job.runner == "ray":
                bar.update(plan.size)
    shards = folder.all_finished(plans)
    missing = len(plans) - len(shards)
    if missing:
        print(f"{folder.path}: this job's {len(mine)} shards are finished; {missing} from other jobs are missing")
        return None
    whole = conclude(shards)
    claim.finish()
    return whole


def run(
    shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, runner: str = "local", workers: int = 1
) -> Iterator[Any]:
    """The results of all shards, in the order of completion.

    Args:
        shards: arguments for the workers; they and make_worker must be picklable
        progress: called in this process with the progress that workers report; never called with Ray
        workers: how many run at the same time
    """
    workers = max(1, min(workers, len(shards)))
    if not shards:
        return iter(())
    if runner == "ray":
        return run_ray(shards, make_worker, workers)
    if workers == 1:
        return run_here(shards, make_worker, progress)
    return run_processes(shards, make_worker, progress, workers)


def device_of(worker: int) -> "torch.device":
    """The device for a worker: on a machine with several GPUs, each worker takes its own."""
    import torch

    return (
        torch.device("cuda", worker % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def _here(session: Any, number: int) -> Any:
    return session
