"""Where shards of offline work run: in this process, in several, or on a Ray cluster."""

from typing import Any, Iterator, Sequence

from kd_plugin.runners.local import MakeWorker, Progress, run_here, run_processes
from kd_plugin.runners.ray_cluster import run_ray

RUNNERS = ("local", "ray")


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
