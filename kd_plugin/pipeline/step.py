"""One step, as Snakemake starts it: `python -m kd_plugin.pipeline.step NAME THREADS` in the output folder.

done/NAME.json says which job the step's product belongs to: the commands, the user's files, and the steps before. The
same job goes on with what an interrupted run has left, if its commands can; any other starts anew. Commands hold
done/NAME.lock too: a step whose commands outlived their run is waited for, and not done twice.
"""

import contextlib
import csv
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, read_json, write_atomically, write_json
from kd_plugin.pipeline.checkpoints import reached_its_end
from kd_plugin.runners.fairseq_train import executable

PLAN = "plan.json"
POWERCAP = "/sys/class/powercap/intel-rapl:[0-9]/energy_uj"
SHAPE = re.compile(r"\{shape:(.+)\}$")
TAIL = 20  # lines of a failed command's log to show


def state_of(name: str, folder: Path = Path()) -> Dict[str, Any]:
    """job, finished, error, ended (see _write_state); empty if the step has never begun."""
    path = folder / "done" / f"{name}.json"
    return read_json(path, "Remedy: remove the file") if path.exists() else {}


def job_of(step: Dict[str, Any], before: Sequence[str]) -> str:
    """Of the commands, the files that they read, and the jobs of the steps before."""
    files = [[path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in step["reads"]]
    return digest_of([step["commands"], files, before])


def run(step: Dict[str, Any], threads: int, workers: int) -> int:
    """The exit status of the first command that fails, else 0."""
    name = step["name"]
    Path("done").mkdir(exist_ok=True)
    Path("logs").mkdir(exist_ok=True)
    product, log, done = Path(step["product"]), Path("logs", f"{name}.log"), Path("done", name)
    with open(f"done/{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = [Path("done", other).read_text(encoding="utf-8") for other in step["after"]]
        job, state = job_of(step, before), state_of(name)
        if state.get("job") == job and state["finished"] and product.exists():
            print(f"{step['what']}: done before", flush=True)
            _keep_times(name)
            write_atomically(done, job.encode())
            return 0
        resumes = state.get("job") == job and step["resumes"] and product.exists()
        if not resumes:
            # of no job, if it is stopped while it removes what another has left
            _write_state(name, "")
            # without its old times, which the report would show as its own
            for old in (product, log, Path("times", f"{name}.json"), Path("times", f"{name}.tsv")):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        else:
            for old in list(product.rglob(".*.tmp")):  # half-written when it was killed; nobody else writes there
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        ended = state.get("ended", 0) if resumes else 0
        _write_state(name, job, ended=ended)
        print(f"{step['what']} (log: {log.absolute()})", flush=True)
        started, joules = time.monotonic(), _joules()
        for number, words in enumerate(step["commands"], 1):
            if number <= ended or (resumes and words[0] == "fairseq-train" and reached_its_end(words)):
                continue
            last = number == len(step["commands"])
            more = ["--workers", str(workers)] if step["workers"] and last and workers else []
            status = _execute([*words, *more], log, lock.fileno(), threads)
            if status:
                return _failed(step, words, status, log, job, number - 1)
            if not last:
                _write_state(name, job, ended=number)
        used = None if joules is None else (_joules() or 0) - joules
        seconds = time.monotonic() - started
        Path("times").mkdir(exist_ok=True)
        # the counters start again from zero at times
        joules = used if used is not None and used >= 0 else None
        write_json(Path("times", f"{name}.json"), {"step": name, "joules": joules, "seconds": seconds})
        _write_state(name, job, finished=True)
        write_atomically(done, job.encode())
        print(f"    {seconds:.0f} s", flush=True)
    return 0


def _write_state(name: str, job: str, ended: int = 0, finished: bool = False, error: str = "") -> None:
    """ended: how many of the step's commands have ended well"""
    state = {"job": job, "finished": finished, "error": error, "ended": ended}
    write_json(Path("done", f"{name}.json"), state)


def _keep_times(name: str) -> None:
    """Snakemake is about to write how long it took to find that the step is done."""
    path = Path("times", f"{name}.json")
    kept = read_json(path, "Remedy: remove the file") if path.exists() else {}
    if "seconds" in kept and "row" not in kept:
        try:
            with open(path.with_suffix(".tsv"), encoding="utf-8", newline="") as file:
                row = next(csv.DictReader(file, delimiter="\t"))
        except (OSError, StopIteration):  # it was killed before it wrote
            row = {"s": str(kept["seconds"]), "cpu_time": "", "max_rss": ""}
        write_json(path, {**kept, "row": row})


def _execute(words: List[str], log: Path, lock: int, threads: int) -> int:
    words = [each for word in words for each in _shape(word)]
    words[0] = sys.executable if words[0] == "python" else executable(words[0])
    # OpenMP's threads sleep while they wait for each other; busy waiting would slow down other work and themselves
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with open(log, "ab") as output:
        return subprocess.run(
            words, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, pass_fds=[lock]
        ).returncode


def _shape(word: str) -> List[str]:
    """The word, or the flags that `kd-plugin init` has written down."""
    found = SHAPE.match(word)
    return read_json(Path(found.group(1)), "Remedy: remove its folder")["fairseq_train"] if found else [word]


def _failed(step: Dict[str, Any], words: List[str], status: int, log: Path, job: str, ended: int) -> int:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    said = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
    said = re.sub("^kd-plugin: error: ", "", said)
    if status < 0:
        said = f"{signal.Signals(-status).name} ended {words[0]}, as happens when memory is short"
    print(f"{step['what']} failed: {shlex.join(words)}\nThe end of {log.absolute()}:", *lines, sep="\n", flush=True)
    _write_state(step["name"], job, ended=ended, error=said)
    return status if 0 < status < 128 else 1


def _joules() -> Optional[float]:
    """What the processor packages have used since some point of time; None: this machine does not count it for us."""
    with contextlib.suppress(OSError, ValueError):
        counted = [int(Path(path).read_text()) for path in glob.glob(POWERCAP)]
        return sum(counted) / 1e6 if counted else None
    return None


def main() -> int:
    name, threads = sys.argv[1:]
    plan = json.loads(Path(PLAN).read_text(encoding="utf-8"))
    try:
        return run(plan["steps"][name], int(threads), plan["workers"])
    except (KDPluginError, OSError) as error:  # a full disk, or a file that was removed meanwhile
        print(f"{name}: {error}", flush=True)
        with contextlib.suppress(KDPluginError, OSError):
            state = {"job": "", "finished": False, "ended": 0, **state_of(name)}
            write_json(Path("done", f"{name}.json"), {**state, "error": str(error)})
        return 1


if __name__ == "__main__":
    sys.exit(main())
