"""scripts/quickstart.sh from its first to its last step, on a corpus so small that the scores mean nothing."""

import os
import pathlib
import subprocess

import pytest

from tests.support import ROOT


def test_smoke(tmp_path):
    venv = ROOT / os.environ.get("KD_VENV", ".venv")
    if not (venv / "kd_plugin_setup.sha256").is_file():
        pytest.skip("needs the environment of scripts/setup.sh, as scripts/test.sh has it")
    pytest.importorskip("num2words", reason="the corpus needs num2words and Babel")
    pytest.importorskip("babel", reason="the corpus needs num2words and Babel")
    out = tmp_path / "with a space"
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--smoke"]
    environment = {**os.environ, "KD_QUICKSTART_DIR": str(out)}

    def quickstart():
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=900
        )

    first = quickstart()
    assert first.returncode == 0, first.stdout[-3000:]
    table = first.stdout[first.stdout.index("BLEU  chrF") :]
    assert [line.split("  ")[0] for line in table.splitlines()[2:5]] == ["teacher", "student", "student, distilled"]
    assert table.splitlines()[3].split()[-2] == table.splitlines()[4].split()[-2]  # the same student twice

    again = quickstart()
    assert again.returncode == 0 and "done before" in again.stdout and " log: " not in again.stdout
    assert again.stdout[again.stdout.index("BLEU  chrF") :] == table
    assert len(list(pathlib.Path(out).rglob("*.new"))) == 0
