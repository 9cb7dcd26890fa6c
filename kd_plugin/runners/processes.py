"""Work on one sentence after the other, shared among processes of this machine, answered in order."""

import argparse
import collections
import concurrent.futures
import multiprocessing
import os
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Iterable, Iterator, List, Tuple

from kd_plugin.errors import KDPluginError
from kd_plugin.quiet import deaf_children, quiet, stop

CHUNK = 128  # sentences that a worker is given at a time
AHEAD = 3  # chunks that wait for each worker


def add_workers_argument(parser: argparse.ArgumentParser, sentences: int) -> None:
    """sentences: with fewer for each a process takes longer to start than to do its share"""
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help=f"processes (default: one a core, and one for {sentences:,} sentences)",
    )
    parser.set_defaults(sentences_a_worker=sentences)


def workers_for(args: argparse.Namespace, sentences: int) -> int:
    return args.workers or max(1, min(_cores(), sentences // args.sentences_a_worker))


def _cores() -> int:
    """That this process may use: a batch system gives away fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    waiting: Deque[Tuple[List[Any], Any]] = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start, (make,)) as pool:
        try:
            for items, chunk in _chunks(pairs):
                with deaf_children():
                    waiting.append((items, pool.submit(_work, chunk)))
                if len(waiting) >= workers * AHEAD:
                    yield from _answer(waiting)
            while waiting:
                yield from _answer(waiting)
        except (KeyboardInterrupt, GeneratorExit):  # the second: whoever asks for answers has stopped
            stop(pool)
            raise
        except BrokenProcessPool as error:
            raise KDPluginError(f"a worker died ({error}). Remedy: fewer --workers, they may lack memory") from error
        finally:
            for _, future in waiting:
                future.cancel()


def _answer(waiting: Deque[Tuple[List[Any], Any]]) -> Iterator[Tuple[Any, Any]]:
    items, future = waiting.popleft()
    return zip(items, future.result())


def _chunks(pairs: Iterable[Tuple[Any, Any]]) -> Iterator[Tuple[List[Any], List[Any]]]:
    items: List[Any] = []
    chunk: List[Any] = []
    for item, work in pairs:
        items.append(item)
        chunk.append(work)
        if len(chunk) == CHUNK:
            yield items, chunk
            items, chunk = [], []
    if chunk:
        yield items, chunk


_functions: List[Callable[[Any], Any]] = []  # a worker's own


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    quiet()
    _functions[:] = [make()]


def _work(chunk: List[Any]) -> List[Any]:
    return [_functions[0](work) for work in chunk]
