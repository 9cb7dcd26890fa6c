"""What the recipes set for the programs that they start."""

import os
import re
import subprocess

import pytest

from tests.support import ROOT

SCRIPTS = [f"examples/translation/{name}" for name in ("distill.sh", "train-teacher.sh", "evaluate.sh")]
SCRIPTS += ["scripts/quickstart.sh", "scripts/distill_pipeline.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("given, expected", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_s_threads_do_not_spin_beside_other_work_unless_the_user_says_so(script, given, expected):
    lines = (ROOT / script).read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if re.match("export OMP_WAIT_POLICY=", line))
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env.update({"OMP_WAIT_POLICY": given} if given else {})
    command = ["bash", "-euc", f'{line}\nprintf %s "$OMP_WAIT_POLICY"']
    assert subprocess.check_output(command, env=env, text=True) == expected
    started = next(
        number for number, text in enumerate(lines) if re.match(r"\s*(fairseq-|bash |step |\"\$\{distill)", text)
    )
    assert lines.index(line) < started


def check_gpu(folder, *arguments):
    """scripts/check_gpu.sh with a stand-in for Python: no CUDA, and benchmarks that end as their name says."""
    python = folder / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *is_available*sys.exit*|*sys.exit*) exit 1;; *bench_cache*) echo broken; exit 3;; '
        "*bench_step*) sleep 60;; *) echo fine;; esac\n"
    )
    python.chmod(0o755)
    script = (ROOT / "scripts/check_gpu.sh").read_text(encoding="utf-8")
    short = folder / "scripts" / "check_gpu.sh"
    short.parent.mkdir(exist_ok=True)
    short.write_text(script.replace("step update 75", "step update 0.2").replace("$(($2 * slack))", "$2"))
    env = {**os.environ, "PYTHON": str(python)}
    command = ["bash", short, *arguments]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)


def test_the_gpu_check_goes_on_after_a_failure_and_says_so(tmp_path):
    done = check_gpu(tmp_path, "--dry-run", "--out", tmp_path / "out")
    assert done.returncode == 1
    rows = re.findall(r"\| (\w+) \| \d+ \| (.*) \|", (tmp_path / "out/summary.md").read_text())
    assert rows == [
        ("tests", "ok"), ("loss", "ok"), ("update", "ran out of its 0.2 s"), ("cache", "failed (exit 3)"),
        ("teacher", "ok"), ("text", "ok"), ("corpus", "ok"), ("model", "ok"), ("decode", "ok"),
    ]  # fmt: skip
    again = check_gpu(tmp_path, "--dry-run", "--out", tmp_path / "out")
    assert again.returncode == 1 and "already holds a check" in again.stdout


def test_the_gpu_check_is_refused_without_a_gpu(tmp_path):
    done = check_gpu(tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1 and "no CUDA device" in done.stdout and not (tmp_path / "out").exists()
    assert check_gpu(tmp_path, "--what").returncode == 2
