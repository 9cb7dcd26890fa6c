"""Runs work in this process or in several local ones: shards in order of completion, or sentences in their order."""

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

CHUNK = 128  # sentences to give to a worker at a time
AHEAD = 3  # chunks queued per worker

Worker = Any  # a callable that processes one shard and reports to its `progress(size)`
Progress = Callable[[int], Any]
MakeWorker = Callable[[int], Worker]  # takes the worker's number; loads expensive things, once per worker


def workers_for(wanted: int, sentences: int, sentences_a_worker: int) -> int:
    """The number of processes to use.

    Args:
        wanted: 0: one per core, but at most one per `sentences_a_worker` sentences; with fewer, starting a process
            takes longer than its share of the work
    """
    return wanted or max(1, min(_cores(), sentences // sentences_a_worker))


def _cores() -> int:
    """The number of cores that this process may use; a batch system may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_here(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress) -> Iterator[Any]:
    """The results of all shards, in their order."""
    worker = make_worker(0)
    worker.progress = progress
    for shard in shards:
        yield worker(shard)


def run_processes(shards: Sequence[Any], make_worker: MakeWorker, progress: Progress, workers: int) -> Iterator[Any]:
    """The results of all shards, in the order of completion."""
    with deaf_children():
        manager = multiprocessing.get_context("spawn").Manager()
    numbers, steps = manager.Queue(), manager.Queue()
    for number in range(workers):
        numbers.put(number)
    died = (
        "a worker died, perhaps for lack of memory; finished work is kept. Remedy: run the same command again with "
        "fewer --workers or a smaller --max-tokens"
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
    """(item, function(work)) for each (item, work), in their order for any number of workers.

    At most workers · AHEAD chunks are in memory. Items stay in this process.

    Args:
        make: creates the function, once per process; `make`, the work and its results must be picklable

    Raises:
        KDPluginError: a worker died
    """
    if workers == 1:
        function = make()
        for item, work in pairs:
            yield item, function(work)
        return

    def died(error: BaseException) -> str:
        return f"a worker died ({error}), perhaps for lack of memory. Remedy: fewer --workers"

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
    """Yields a function that submits work to processes, each initialised by `start`.

    An interrupt stops the processes at once; after an error they finish their current work first.

    Args:
        died: makes the message for a dead process
    """
    context = multiprocessing.get_context("spawn")  # CUDA and threads do not survive a fork
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
        except (KeyboardInterrupt, GeneratorExit):  # GeneratorExit: the consumer of the results has stopped
            stop(pool)
            raise
        except BrokenProcessPool as error:
            raise KDPluginError(died(error)) from error
        finally:
            for future in list(waiting):
                future.cancel()


_at_work: List[Callable[[Any], Any]] = []  # one per process


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
