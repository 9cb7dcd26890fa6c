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
    started = next(number for number, text in enumerate(lines) if re.match(r"\s*(fairseq-|bash |step )", text))
    assert lines.index(line) < started
