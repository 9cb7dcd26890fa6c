"""scripts/quickstart.sh from its first to its last step, on a corpus so small that the scores mean nothing."""

import importlib.util
import os
import pathlib
import subprocess

import pytest

from tests import warm_start
from tests.support import ROOT


def test_smoke(tmp_path):
    venv = ROOT / os.environ.get("KD_VENV", ".venv")
    if not (venv / "kd_plugin_setup.sha256").is_file():
        pytest.skip("needs the environment of scripts/setup.sh, as scripts/test.sh has it")
    pytest.importorskip("num2words", reason="the corpus needs num2words and Babel")
    pytest.importorskip("babel", reason="the corpus needs num2words and Babel")
    out = tmp_path / "with a space"
    command = ["bash", str(ROOT / "scripts" / "quickstart.sh"), "--smoke"]
    warm = warm_start.environment(venv, tmp_path / "venv")
    environment = {**os.environ, "KD_QUICKSTART_DIR": str(out), "KD_VENV": str(warm)}

    def quickstart():
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=900
        )

    first = quickstart()
    assert first.returncode == 0, first.stdout[-3000:]
    table = first.stdout[first.stdout.index("BLEU  chrF") :]
    rows = table.splitlines()[2:]
    assert [line.split("  ")[0] for line in rows[:3]] == ["teacher", "student", "student, distilled"]
    assert rows[1].split()[-3] == rows[2].split()[-3]  # the same student twice
    assert (rows[3].startswith("the same, exported")) == (importlib.util.find_spec("ctranslate2") is not None)
    page = (out / "smoke" / "report" / "report.html").read_text(encoding="utf-8")
    assert "distilled" in page and "kd_loss" in page

    again = quickstart()
    assert again.returncode == 0 and "done before" in again.stdout and " log: " not in again.stdout
    assert again.stdout[again.stdout.index("BLEU  chrF") :] == table
    assert len(list(pathlib.Path(out).rglob("*.new"))) == 0
