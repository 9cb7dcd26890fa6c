"""Work in this process or in several of this machine: shards as they are finished, or sentence by sentence in order."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import queue
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Iterable, Iterator, List, Sequence, Set, Tuple

from kd_plugin.errors import KDPluginError
from kd_plugin.quiet import deaf_children, quiet, stop

CHUNK = 128  # sentences that a worker is given at a time
AHEAD = 3  # chunks that wait for each worker

Worker = Any  # does one shard when it is called with it, and tells its `progress(size)` how far it is
Progress = Callable[[int], Any]
MakeWorker = Callable[[int], Worker]  # of the worker's number; what is expensive is loaded there, once a worker


def workers_for(wanted: int, sentences: int, sentences_a_worker: int) -> int:
    """How many processes.

    Args:
        wanted: 0: one a core, and one for `sentences_a_worker`; with fewer for each a process takes longer to start
            than to do its share
    """
    return wanted or max(1, min(_cores(), sentences // sentences_a_worker))


def _cores() -> int:
    """That this process may use: a batch system gives away fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress) -> Iterator[Any]:
    """Results of all shards, in their order."""
    worker = make_worker(0)
    worker.progress = progress
    for shard in shards:
        yield worker(shard)


def run_processes(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, workers: int) -> Iterator[Any]:
    """Results of all shards, in the order in which they are finished."""
    with deaf_children():
        manager = multiprocessing.get_context("spawn").Manager()
    numbers, steps = manager.Queue(), manager.Queue()
    for number in range(workers):
        numbers.put(number)
    died = (
        "a worker died, for want of memory perhaps; what is finished is kept. Remedy: fewer --workers, or a smaller "
        "--max-tokens, and the same command again"
    )
    with _pool(workers, _start_worker, (make_worker, numbers, steps, workers), lambda error: died) as submit:
        waiting = {submit(shard) for shard in shards}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            with contextlib.suppress(queue.Empty):
                while True:
                    progress(steps.get_nowait())
            for future in done:
                yield future.result()


def mapped(
    pairs: Iterable[Tuple[Any, Any]], make: Callable[[], Callable[[Any], Any]], workers: int
) -> Iterator[Tuple[Any, Any]]:
    """(item, what the function says of its work) for each (item, work), in their order, whatever the number of workers.

    No more than workers · AHEAD chunks are in memory. Items stay in this process.

    Args:
        make: gives the function; it is called once a process. It, the works and their answers can be pickled

    Raises:
        KDPluginError: a worker died
    """
    if workers == 1:
        function = make()
        for item, work in pairs:
            yield item, function(work)
        return

    def died(error: BaseException) -> str:
        return f"a worker died ({error}). Remedy: fewer --workers, they may lack memory"

    waiting: Deque[Tuple[List[Any], Any]] = collections.deque()
    pairs = iter(pairs)
    with _pool(workers, _start_function, (make,), died) as submit:
        while True:
            chunk = list(itertools.islice(pairs, CHUNK))
            if chunk:
                waiting.append(([item for item, _ in chunk], submit([work for _, work in chunk])))
            if len(waiting) >= workers * AHEAD or not chunk and waiting:
                items, future = waiting.popleft()
                yield from zip(items, future.result())
            elif not chunk:
                return


@contextlib.contextmanager
def _pool(
    workers: int, start: Callable[..., None], arguments: Tuple[Any, ...], died: Callable[[BaseException], str]
) -> Iterator[Callable[[Any], "Future[Any]"]]:
    """A way to give work to processes, which `start` prepares. A stop ends them at once, an error when theirs is done.

    Args:
        died: what to say where one of them died
    """
    context = multiprocessing.get_context("spawn")  # CUDA and threads survive no fork
    waiting: Set[Future[Any]] = set()

    def submit(work: Any) -> "Future[Any]":
        with deaf_children():
            future = pool.submit(_work, work)
        waiting.add(future)
        future.add_done_callback(waiting.discard)
        return future

    with ProcessPoolExecutor(workers, context, start, arguments) as pool:
        try:
            yield submit
        except (KeyboardInterrupt, GeneratorExit):  # the second: whoever asks for results has stopped
            stop(pool)
            raise
        except BrokenProcessPool as error:
            raise KDPluginError(died(error)) from error
        finally:
            for future in list(waiting):
                future.cancel()


_at_work: List[Callable[[Any], Any]] = []  # a process' own


def _start_worker(make_worker: MakeWorker, numbers: Any, steps: Any, workers: int) -> None:
    import torch

    quiet()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    worker = make_worker(numbers.get())
    worker.progress = steps.put
    _at_work[:] = [worker]


def _start_function(make: Callable[[], Callable[[Any], Any]]) -> None:
    quiet()
    function = make()
    _at_work[:] = [lambda chunk: [function(work) for work in chunk]]


def _work(work: Any) -> Any:
    return _at_work[0](work)
