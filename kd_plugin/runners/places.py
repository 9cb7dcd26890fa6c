"""Where shards of offline work run: in this process, in several, or on a Ray cluster."""

import contextlib
import multiprocessing
import pickle
import queue
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Iterator, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.quiet import deaf_children, quiet, stop

RUNNERS = ("local", "ray")
Worker = Any  # does one shard when it is called with it, and tells its `progress(size)` how far it is
Progress = Callable[[int], Any]
MakeWorker = Callable[[int], Worker]  # of the worker's number; what is expensive is loaded there, once a worker


def run(
    shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, runner: str = "local", workers: int = 1
) -> Iterator[Any]:
    """Results of all shards, in the order in which they are finished.

    Args:
        shards: what workers are called with; they and make_worker can be pickled
        progress: told in this process what workers tell theirs; of those on a Ray cluster nothing is heard
        workers: how many work at the same time
    """
    if not shards:
        return iter(())
    workers = max(1, min(workers, len(shards)))
    if runner == "ray":
        return _run_ray(shards, make_worker, workers)
    if workers == 1:
        return _run_here(shards, make_worker, progress)
    return _run_processes(shards, make_worker, progress, workers)


def _run_here(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress) -> Iterator[Any]:
    worker = make_worker(0)
    worker.progress = progress
    for shard in shards:
        yield worker(shard)


_worker: Worker  # of a process of the pool


def _start_worker(make_worker: MakeWorker, numbers: Any, steps: Any, workers: int) -> None:
    global _worker
    import torch

    quiet()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker = make_worker(numbers.get())
    _worker.progress = steps.put


def _work(shard: Any) -> Any:
    return _worker(shard)


def _run_processes(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, workers: int) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")  # CUDA and threads survive no fork
    with deaf_children():
        manager = context.Manager()
    numbers, steps = manager.Queue(), manager.Queue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, _start_worker, (make_worker, numbers, steps, workers)) as pool:
        with deaf_children():
            futures = waiting = {pool.submit(_work, shard) for shard in shards}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                _tell(steps, progress)
                for future in done:
                    yield future.result()
        except (KeyboardInterrupt, GeneratorExit):  # the second: whoever asks for results has stopped
            stop(pool)
            raise
        except BrokenProcessPool as error:
            raise KDPluginError(
                "a worker died, for want of memory perhaps; what is finished is kept. Remedy: fewer --workers, or a "
                "smaller --max-tokens, and the same command again"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def _tell(steps: Any, progress: Progress) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            progress(steps.get_nowait())


def _run_ray(shards: Sequence[Any], make_worker: MakeWorker, workers: int) -> Iterator[Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise KDPluginError(f"--runner ray: {error}. Remedy: pip install 'kd-plugin[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # the cluster that RAY_ADDRESS names, else one of this machine's own
    # as bytes: Ray Data would make columns of them
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _RayWorker,
        fn_constructor_args=(make_worker,),
        concurrency=workers,
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
    )
    for row in dataset.iter_rows():
        if row["error"]:
            raise KDPluginError(row["error"])
        yield pickle.loads(row["result"])


class _RayWorker:
    """An actor: it loads the teacher once, and does one shard after the other."""

    def __init__(self, make_worker: MakeWorker):
        self._worker = make_worker(0)  # Ray shows each actor its own GPU only, which is then number 0

    def __call__(self, row: Any) -> Any:
        try:
            return {"result": pickle.dumps(self._worker(pickle.loads(row["shard"]))), "error": ""}
        except KDPluginError as error:  # an exception would come out wrapped in Ray's own
            return {"result": b"", "error": str(error)}
