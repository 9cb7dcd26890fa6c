"""Where shards of offline work run: in this process, in several, or on a Ray cluster."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Callable, Iterator, Sequence

import torch

from kd_plugin.errors import KDPluginError

RUNNERS = ("local", "ray")
Worker = Callable[[Any], Any]  # does one shard
MakeWorker = Callable[[int], Worker]  # of the worker's number; what is expensive is loaded there, once a worker


def run(shards: Sequence[Any], make_worker: MakeWorker, runner: str = "local", workers: int = 1) -> Iterator[Any]:
    """Results of all shards, in the order in which they are finished.

    Args:
        shards: what workers are called with; they and make_worker can be pickled
        workers: how many work at the same time
    """
    if not shards:
        return iter(())
    workers = max(1, min(workers, len(shards)))
    if runner == "ray":
        return _run_ray(shards, make_worker, workers)
    return _run_here(shards, make_worker) if workers == 1 else _run_processes(shards, make_worker, workers)


def _run_here(shards: Sequence[Any], make_worker: MakeWorker) -> Iterator[Any]:
    worker = make_worker(0)
    for shard in shards:
        yield worker(shard)


_worker: Worker  # of a process of the pool


def _start_worker(make_worker: MakeWorker, numbers: Any, workers: int) -> None:
    global _worker
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker = make_worker(numbers.get())


def _work(shard: Any) -> Any:
    return _worker(shard)


def _run_processes(shards: Sequence[Any], make_worker: MakeWorker, workers: int) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")  # CUDA and threads survive no fork
    numbers = context.Manager().Queue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, _start_worker, (make_worker, numbers, workers)) as pool:
        futures = [pool.submit(_work, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _run_ray(shards: Sequence[Any], make_worker: MakeWorker, workers: int) -> Iterator[Any]:
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise KDPluginError(f"--runner ray: {error}. Remedy: pip install 'kd-plugin[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster that RAY_ADDRESS names, else one of this machine's own
    gpus = ray.cluster_resources().get("GPU", 0)

    class Actor:
        def __init__(self, number: int):
            # Ray shows each actor its own GPU only, which is then number 0
            self._worker = make_worker(0 if gpus else number)

        def work(self, shard: Any) -> Any:
            return self._worker(shard)

    remote = ray.remote(num_gpus=1 if gpus else 0)(Actor)
    pool = ActorPool([remote.remote(number) for number in range(workers)])
    try:
        yield from pool.map_unordered(lambda actor, shard: actor.work.remote(shard), list(shards))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, KDPluginError) else KDPluginError(f"--runner ray: {cause}") from error
