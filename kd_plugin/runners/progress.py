"""Progress bars on standard error; in a log, one line every half minute. Worker processes show none."""

import multiprocessing
import sys
import threading
from typing import Any, Iterable, Iterator, Optional

from tqdm import tqdm


def progress_bar(name: str, total: Optional[int], unit: str = "sent", items: Any = None, **more: Any) -> Any:
    """A tqdm bar with rate and remaining time. more: further arguments of tqdm."""
    if multiprocessing.parent_process() is not None:
        tqdm.set_lock(threading.RLock())  # tqdm's own is a system semaphore, which a stopped worker would leak
        more["disable"] = True
    often = 0.5 if sys.stderr.isatty() else 30.0  # seconds; in a log, every update is a line
    return tqdm(items, desc=name, total=total, unit=unit, mininterval=often, **more)


def progress(items: Iterable[Any], total: Optional[int], name: str, unit: str = "sent") -> Iterator[Any]:
    """The items, with a progress bar."""
    return iter(progress_bar(name, total, unit, items))
