"""multiprocessing's spawned processes without their seconds of imports: forked off tests/warm_start.py as well.

They get what they would get from a new interpreter: the pickled work through the same pipes, the environment, folder,
descriptors and blocked signals of whoever starts them, and nothing of its memory. KD_TEST_COLD=1 in the environment
starts interpreters.
"""

import multiprocessing.util
import os
import threading
from multiprocessing import popen_spawn_posix
from typing import Any, Callable, Dict, List, Optional

from tests import warm_client

_requests: Dict[int, warm_client.Request] = {}
_status_lock = threading.Lock()  # threads of a pool's may ask at the same time
_start_interpreter = multiprocessing.util.spawnv_passfds


def install(server: Callable[[], str]) -> None:
    """For this process's spawned processes.

    Args:
        server: returns the address of a running tests/warm_start.py
    """

    def start(path: bytes, arguments: List[Any], descriptors: List[int]) -> int:
        program = [word for word in arguments if isinstance(word, str) and "spawn_main(" in word]
        if not program or os.environ.get("KD_TEST_COLD"):  # the tracker of resources is quick to start
            return _start_interpreter(path, arguments, descriptors)
        line = ["-c", program[0], "--multiprocessing-fork"]
        request = warm_client.Request(
            server(), line, dict(os.environ), os.getcwd(), sorted({0, 1, 2, *descriptors}), same_numbers=True
        )
        _requests[request.pid] = request
        return request.pid

    multiprocessing.util.spawnv_passfds = start
    popen_spawn_posix.Popen.poll = _poll


def _poll(self: popen_spawn_posix.Popen, flag: int = os.WNOHANG) -> Optional[int]:
    """As Popen.poll, for processes that are not this one's children as well."""
    request = _requests.get(self.pid)
    if request is None:
        return super(popen_spawn_posix.Popen, self).poll(flag)
    with _status_lock:
        if self.returncode is None:
            status = request.status(0 if flag == os.WNOHANG else None)
            if status is not None:
                self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                request.close()
                del _requests[self.pid]
    return self.returncode
