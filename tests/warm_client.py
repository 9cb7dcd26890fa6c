"""Asks a running tests/warm_start.py to run one of its commands, and stands for it: `warm_client.py ADDRESS SCRIPT …`.

The command gets this process's folder, environment and descriptors 0, 1 and 2, and its exit status becomes ours.
Python's standard library alone: it has to start at once.
"""

import array
import json
import os
import signal
import socket
import sys

WITH_PLUGIN = "-with-plugin"


class Request:
    """A command that a server runs, with the signals blocked that are blocked here.

    Args:
        line: the installed script, or -c and a program, or -m and a module of ours, and its arguments
        descriptors: its standard input, output and errors
        same_numbers: they are any others of this process instead, which the command has by the same numbers
    """

    def __init__(self, address, line, env, folder, descriptors, same_numbers=False):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        numbers = descriptors if same_numbers else [0, 1, 2]
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        content = json.dumps([line, env, folder, numbers, blocked]).encode("utf-8", "surrogateescape")
        rights = array.array("i", descriptors).tobytes()
        self._socket.sendmsg([b"%16d" % len(content)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        self._socket.sendall(content)
        self.pid = self._number(None)

    def status(self, timeout=None):
        """As os.wait has it, once the command has ended; None: it has not within `timeout` seconds."""
        return self._number(timeout)

    def close(self):
        self._socket.close()

    def _number(self, timeout):
        self._socket.settimeout(timeout)
        try:
            text = self._socket.recv(16, socket.MSG_WAITALL)
        except (socket.timeout, BlockingIOError):
            return None
        return int(text) if text else signal.SIGKILL  # the server is gone, and with it the command


def address_for(address, line, env, folder):
    """Where this command starts sooner: at the server that has loaded the plugin, if it loads this checkout's.

    What loads another copy of it, or none, must not find it loaded.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [os.path.join(folder, entry) for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if any(os.path.abspath(path) != root and os.path.isdir(os.path.join(path, "kd_plugin")) for path in paths):
        return address
    ours = os.path.join(root, "kd_plugin")
    named = [after for flag, after in zip(line, line[1:]) if flag == "--user-dir"]
    loads_ours = [os.path.abspath(os.path.join(folder, name)) for name in named] == [ours]
    is_ours = os.path.basename(line[0]) == "kd-plugin" or line[0] == "-m"  # one of our modules
    return address + WITH_PLUGIN if loads_ours or is_ours else address


def receive(connection):
    """What a Request has sent: its line, environment, folder, descriptors, their numbers there, blocked signals."""
    rights = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(16, socket.CMSG_LEN(253 * rights.itemsize))  # as many as Linux takes
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            rights.frombytes(content)
    content = connection.recv(int(head), socket.MSG_WAITALL)
    line, env, folder, numbers, blocked = json.loads(content.decode("utf-8", "surrogateescape"))
    return line, env, folder, list(rights), numbers, blocked


def main():
    address, *line = sys.argv[1:]
    env, folder = dict(os.environ), os.getcwd()
    request = Request(address_for(address, line, env, folder), line, env, folder, [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os.kill(request.pid, number))
    status = request.status()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
