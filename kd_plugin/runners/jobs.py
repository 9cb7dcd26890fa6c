"""A long job in shards: shared among jobs, processes or machines, and gone on with after a kill."""

import functools
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, TypeVar

from kd_plugin.errors import KDPluginError
from kd_plugin.files.locks import Claim
from kd_plugin.files.sharded_folder import Plan, ShardedFolder, ShardKind
from kd_plugin.runners.local import MakeWorker, Progress, run_here, run_processes
from kd_plugin.runners.progress import progress_bar
from kd_plugin.runners.ray_cluster import run_ray

if TYPE_CHECKING:  # not needed by the verbs without models, and slow to import
    import torch

RUNNERS = ("local", "ray")
Whole = TypeVar("Whole")


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


class Session:
    """What does shards, loaded once a process: called with a shard's plan it writes it, and tells how far it is.

    plans: of all shards of the job
    """

    plans: Sequence[Plan]

    def progress(self, size: int) -> Any:
        """Told of each step; whoever runs the session puts a function of its own here."""

    def prepare(self) -> None:
        """What all workers need, before the first one begins."""

    def __call__(self, plan: Plan) -> Plan:
        raise NotImplementedError


def claim_share(folder: ShardedFolder[ShardKind], flag: str, job: Job, session: Session) -> Claim:
    """A job's claim on its shards of a folder; errors as ShardedFolder.claim's."""
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
    """Do those of this job's shards that are not finished; whoever does the last one concludes the folder.

    Args:
        claim: on the folder, as `claim_share` makes it
        make_session: the session in another process, of the worker's number; can be pickled
        conclude: writes the manifest of all shards
        name, unit: of the progress bar

    Returns:
        what `conclude` does; None: other jobs have not finished yet, which is said
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
        print(f"{folder.path}: this job's {len(mine)} shards are finished, {missing} of other jobs are missing")
        return None
    whole = conclude(shards)
    claim.finish()
    return whole


def run(
    shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, runner: str = "local", workers: int = 1
) -> Iterator[Any]:
    """Results of all shards, in the order in which they are finished.

    Args:
        shards: what workers are called with; they and make_worker can be pickled
        progress: told in this process what workers tell theirs; of those on a Ray cluster nothing is heard
        workers: how many work at the same time
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
    """Where the worker of this number computes: on a machine with several GPUs each takes its own."""
    import torch

    return (
        torch.device("cuda", worker % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )


def _here(session: Any, number: int) -> Any:
    return session
