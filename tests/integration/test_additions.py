"""What CONTRIBUTING says of additions: its examples, put into a copy of the package, and trained with."""

import math
import re
import shutil

import pytest

from tests.support import ROOT, USER_DIR, logged, run, training

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
# where a row goes, and what its file defines
TABLES = {
    "confidence": ("distill/terms/__init__.py", "TERMS: Dict[str, TermKind] = {\n", "Confidence, Flags"),
    "unigram": ("teachers/kinds.py", "TEACHERS = {\n", "Flags, UnigramTeacher"),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of kd_plugin with the term and the teacher of CONTRIBUTING.md: a file and a row each."""
    package = tmp_path_factory.mktemp("added") / "kd_plugin"
    shutil.copytree(ROOT / "kd_plugin", package, ignore=shutil.ignore_patterns("*.pyc"))  # with Numba's kernels
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    for name, (table, opening, defined) in TABLES.items():
        (module,) = [block for block in blocks if re.match(rf"# kd_plugin/\S+/{name}\.py\n", block)]
        (row,) = [block for block in blocks if block.startswith(f'    "{name}": ')]
        path = module.splitlines()[0][2:]
        (package.parent / path).write_text(module, encoding="utf-8")
        text = (package / table).read_text(encoding="utf-8")
        assert text.count(opening) == 1
        imported = f"from {path[:-3].replace('/', '.')} import {defined}\n"
        (package / table).write_text(imported + text.replace(opening, opening + row), encoding="utf-8")
    return package


def test_a_term_and_a_teacher_are_a_file_and_a_row_each(package, workspace, tmp_path):
    user_dir = ["--user-dir", package, "--task", "distillation_translation"]
    command = training(
        workspace.data, tmp_path / "save", *user_dir, "--criterion", "kd_label_smoothed_cross_entropy",
        "--teacher-unigram", "--kd-alpha", 0.5, "--kd-confidence", 0.25, "--max-update", 3, "--no-epoch-checkpoints",
    )  # fmt: skip
    output = run(*command, env={"PYTHONPATH": str(package.parent)}).stdout
    assert "|select:all|confidence:0.25|teacher:unigram|" in output
    symbols = len((workspace.data / "dict.de.txt").read_text(encoding="utf-8").splitlines()) + 4
    steps = logged(output, "train_inner")
    assert len(steps) == 3
    for step in steps:
        # of a student that knows nothing yet, the entropy is nearly that of all words alike
        assert -math.log2(symbols) - 1e-3 <= step["confidence_loss"] < -0.7 * math.log2(symbols)
        terms = 0.5 * step["ce_loss"] + 0.5 * step["kd_loss"] + 0.25 * step["confidence_loss"]
        assert step["loss"] == pytest.approx(terms, abs=3e-3)

    # an ordinary checkpoint, with neither
    saved = tmp_path / "save" / "checkpoint_last.pt"
    for private in (b"kd_confidence", b"teacher_unigram", b"distillation_translation"):
        assert private not in saved.read_bytes()
    # the plugin as it is, which only lets torch read fairseq's own types
    assert "Generate test" in run(
        "fairseq-generate", workspace.data, "--path", saved, "--user-dir", USER_DIR, "--cpu", "--gen-subset", "test",
        "--max-tokens", 500,
    ).stdout  # fmt: skip


def test_their_flags_are_refused_as_all_others_are(package, workspace, tmp_path):
    """A term that needs what the teacher does not give: named by its flag, before the first update."""
    needing = package.parent / "needing" / "kd_plugin"
    shutil.copytree(package, needing)
    path = needing / "distill" / "terms" / "confidence.py"
    text = path.read_text(encoding="utf-8")
    text = "from kd_plugin.teachers.base import Signal\n" + text.replace(
        "    logs = (", "    needs = uses = frozenset({Signal.HIDDEN})\n    logs = ("
    )
    path.write_text(text, encoding="utf-8")
    command = training(
        workspace.data, tmp_path / "save", "--user-dir", needing, "--task", "distillation_translation",
        "--criterion", "kd_label_smoothed_cross_entropy", "--teacher-unigram", "--kd-confidence", 0.25,
    )  # fmt: skip
    result = run(*command, check=False, env={"PYTHONPATH": str(needing.parent)})
    assert result.returncode != 0 and "--kd-confidence needs a teacher's hidden states" in result.stdout
    assert not list((tmp_path / "save").glob("*.pt"))
