"""docs/recipes/multi30k.md: its commands, with smaller models, on a tiny corpus in the place of Multi30k."""

import importlib.util
import os
import shutil
import subprocess

import pytest

from tests import warm_start
from tests.integration.test_examples import REPO, multi30k, prepared  # noqa: F401
from tests.unit.test_docs import blocks

PAGE = REPO / "docs" / "recipes" / "multi30k.md"
TINY = {
    "MAX_EPOCH": "1", "AVERAGE": "1", "WARMUP": "2", "ENCODER_LAYERS": "1", "DECODER_LAYERS": "1", "DIM": "16",
    "FFN": "16", "HEADS": "2", "BEAM": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
# the sweep's student, as small as those of TINY, and few trainings
SHORT = {
    "layers 2": "layers 1", "dim 64": "dim 16", "dim 128": "dim 16", "heads 4": "heads 2",
    "trials: 16": "trials: 1", "updates: 400": "updates: 2", "validate: 100": "validate: 1",
    "halving: {first: 100, factor: 2}\n": "", "best: 2, seeds: [1, 2, 3]": "best: 1, seeds: [1]",
    "cache-64": "cache-32",  # its dictionary is smaller
}  # fmt: skip
# these have tests of their own (test_examples.py, test_pipeline.py)
ELSEWHERE = ("prepare-multi30k.sh", "distill_pipeline.sh", "kd-plugin")


@pytest.mark.slow
def test_the_commands_of_the_page_run_one_after_the_other(prepared, tmp_path):  # noqa: F811
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(str(REPO / "examples"), str(work / "examples"))
    (work / "kd_plugin").symlink_to(REPO / "kd_plugin")
    swept = work / "examples" / "translation" / "sweep-multi30k.yaml"
    text = swept.read_text(encoding="utf-8")
    for old, new in SHORT.items():
        assert old in text
        text = text.replace(old, new)
    swept.write_text(text, encoding="utf-8")
    shutil.copytree(str(prepared), str(work / "multi30k.en-de"))
    env = {**os.environ, **TINY, "PATH": warm_start.path_of_commands() + os.pathsep + os.environ["PATH"]}
    chosen = [
        block
        for _, block in blocks(PAGE)
        if "kd-plugin sweep" in block or not any(command in block for command in ELSEWHERE)
    ]
    assert len(chosen) == 6
    swept_too = importlib.util.find_spec("optuna") is not None  # an extra
    for block in chosen:
        if "sweep" in block and not swept_too:
            continue
        block = block.replace("cache-64 --k 64", "cache-32 --k 32")
        if "hydra" in block:
            shutil.rmtree(str(work / "student-kd"))  # another way to the same student
            # a process that reads, for each epoch anew, takes longer than the epoch
            shorter = "optimization.max_epoch=8 dataset.num_workers=0"
            block = block.replace("checkpoint.save_dir=student-kd", f"checkpoint.save_dir=student-kd {shorter}")
        with open(tmp_path / "log", "w+", encoding="utf-8") as log:
            command = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(command, cwd=str(work), env=env, stdout=log, stderr=log, timeout=600)
            log.seek(0)
            said = log.read()
        assert done.returncode == 0, block + said
        if "interactive" in block:
            assert "\nD-0\t" in said
    assert all((work / student / "averaged.pt").is_file() for student in ("student-plain", "student-kd"))
    if swept_too:
        table = (work / "sweep" / "sweep.md").read_text(encoding="utf-8")
        assert "| 0 (as given) | 0.5 | --teacher-cache cache-16 | 0.1 |" in table
    rows = (work / "results.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in rows for name in ("teacher", "student, plain", "student, distilled")), rows
