"""The benchmarks as a user runs them: every contestant has real numbers or a reason why not."""

import importlib.util
import json
import math
import os
import pathlib
import shlex

import pytest

from tests.support import run

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
IN_PLACE, NEW_BUFFER, USUAL = "kd_plugin, in place", "kd_plugin, new buffer", "usual"
OTHERS = {
    "usual, without the teacher's entropy",
    "F.cross_entropy + F.kl_div",
    "torch.compile of usual",
    "Liger-Kernel",
}
CONTESTANTS = {USUAL, NEW_BUFFER, IN_PLACE, *OTHERS}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(folder, the JSON report) of a quick run."""
    folder = tmp_path_factory.mktemp("bench") / "re ports"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_TEST_COLD", "1")  # it measures peaks of memory, which a warm process has had already
        run("python", SCRIPTS / "bench_loss.py", "--quick", "--device", "cpu", "--threads", 1, "--out", folder)
    return folder, json.loads((folder / "bench_loss.json").read_text(encoding="utf-8"))


def rows(report, title):
    """The rows of the table whose title starts so, but for the line about the GPU."""
    (table,) = (table for table in report[1]["tables"] if table["title"].startswith(title))
    *measured, gpu = table["rows"]
    assert gpu["skipped"].startswith("not measured")
    return measured


def test_every_contestant_is_measured_or_says_why_not(report):
    by_case = {}
    for row in rows(report, "Loss"):
        by_case.setdefault(row["case"], {})[row["contestant"]] = row
    assert by_case
    for contestants in by_case.values():
        assert CONTESTANTS <= set(contestants)
        for row in contestants.values():
            if "skipped" in row:
                assert row["skipped"] and "seconds" not in row
            else:
                assert 0 < row["lowest"] <= row["seconds"] <= row["highest"]
                assert row["ratio"] > 0 and math.isfinite(row["ratio"])
        assert contestants[USUAL]["ratio"] == 1.0
        assert not any("skipped" in contestants[name] for name in (USUAL, IN_PLACE, NEW_BUFFER))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read on Linux only")
def test_in_place_saves_the_gradient(report):
    shares = {
        row["contestant"]: row["memory_share"] for row in rows(report, "Loss") if row.get("memory_share") is not None
    }
    assert shares[NEW_BUFFER] - shares[IN_PLACE] == pytest.approx(1.0, abs=0.3)
    assert shares[USUAL] > shares[NEW_BUFFER]


def test_gradients_are_the_usual_ones(report):
    errors = [row["error"] for row in rows(report, "Gradient") if "skipped" not in row]
    # five contestants and ours once more without compiled kernels, two temperatures
    assert len(errors) == (12 if importlib.util.find_spec("numba") else 10)
    assert all(0 <= error < 1e-5 for error in errors)


def test_other_tables_hold_numbers(report):
    for title in ("Every divergence", "Output projections"):
        measured = [row for row in rows(report, title) if "skipped" not in row]
        assert len(measured) >= 4
        assert all(row["ratio"] > 0 for row in measured)


def test_report_names_machine_and_command(report):
    folder, data = report
    text = (folder / "bench_loss.md").read_text(encoding="utf-8")
    assert data["machine"]["name"] in text and f"torch {data['machine']['torch']}" in text
    assert data["command"] in text
    _, script, first, *_ = shlex.split(data["command"])
    assert script.endswith("scripts/bench_loss.py") and first == "--quick"
    if importlib.util.find_spec("matplotlib"):
        assert (folder / "bench_loss.png").stat().st_size > 10_000


def test_decoding_is_timed_side_by_side(workspace, tmp_path):
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    sides = [workspace.folder / f"test.{lang}" for lang in ("en", "de")]
    run(
        "python", SCRIPTS / "bench_decode.py", workspace.teacher, workspace.data, "--quick", "--source", sides[0],
        "--reference", sides[1], "--vocabulary-map-from", *sides, "--out", tmp_path,
    )  # fmt: skip
    (table,) = json.loads((tmp_path / "bench_decode.json").read_text(encoding="utf-8"))["tables"]
    of = {row["contestant"]: row for row in table["rows"]}
    assert list(of) == ["fairseq-generate", "CTranslate2 float32", "CTranslate2 int8", "int8, vocabulary map"]
    assert of["CTranslate2 float32"]["identical"] == 1.0
    assert of["CTranslate2 float32"]["bleu"] == of["fairseq-generate"]["bleu"] > 50
    assert of["CTranslate2 int8"]["bytes"] < of["CTranslate2 float32"]["bytes"]
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in of.values())


@pytest.mark.parametrize("name", ["bench_teacher", "bench_step", "bench_cache"])
def test_the_others_run_to_their_report(name, tmp_path):
    # peaks of memory are bench_loss's: a process that measures them imports everything anew
    flags = ["--quick", "--device", "cpu", "--threads", 1]
    flags += [] if name == "bench_cache" else ["--no-memory"]
    run("python", SCRIPTS / f"{name}.py", *flags, "--out", tmp_path)
    tables = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["tables"]
    measured = [row for table in tables for row in table["rows"] if "skipped" not in row]
    assert measured and all(row["seconds"] > 0 for row in measured if "seconds" in row)
    if name == "bench_step":
        (terms,) = (table["rows"] for table in tables if table["title"] == "Optional terms of the loss")
        found = {row["contestant"]: row for row in terms if "skipped" not in row}
        assert len(found) == 7 and {"distilled", "--kd-on-policy sampled, with both flags"} <= set(found)
        assert all(row["ratio"] > 0 for row in found.values()) and found["distilled"]["ratio"] == 1.0
