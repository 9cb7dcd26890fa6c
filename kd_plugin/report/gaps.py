"""The results of `kd-plugin gap` as a picture and tables of the report."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from kd_plugin.evaluation.table import NONE, Cells, Table
from kd_plugin.report.charts import TOLD, Row, Spec, layer, name, number, panel, side_by_side
from kd_plugin.report.reading import finite, read_result, texts

SIDES = ("source", "reference", "teacher", "student")


class GapResults(NamedTuple):
    """What gap.json says. slices: kind, name, sentences and a score's numbers by metric"""

    source: str
    teacher: str
    student: str
    signatures: Dict[str, str]
    slices: List[Dict[str, Any]]
    worst: List[Dict[str, Any]]


NUMBERS = ("teacher", "student", "gap", "low", "high")


def read_gap_results(argument: str) -> GapResults:
    """The comparison in a folder or file, as read_result."""
    return read_result(argument, "gap", _converted)


def _converted(path: Path, content: Dict[str, Any]) -> GapResults:
    signatures = {str(metric): str(text) for metric, text in content["signatures"].items()}
    slices: List[Dict[str, Any]] = []
    if not content["slices"]:
        raise ValueError("no slices")
    for part in content["slices"]:
        scores = {metric: {key: finite(part["scores"][metric][key]) for key in NUMBERS} for metric in signatures}
        kind, name_of = texts(part, "kind", "name")
        slices.append({"kind": kind, "name": name_of, "sentences": int(part["sentences"]), "scores": scores})
    worst = [
        {"line": int(row["line"]), "gap": float(row["gap"]), **dict(zip(SIDES, texts(row, *SIDES)))}
        for row in content["worst"]
    ]
    teacher, student = texts(content, "teacher", "student")
    return GapResults(str(path), teacher, student, signatures, slices, worst)


def gap_figure(gap: GapResults) -> Spec:
    """For each metric, the student's distance from the teacher on each slice, with its interval."""
    panels = []
    for metric in gap.signatures:
        rows: List[Row] = []
        for part in gap.slices:
            label = part["name"] if part["kind"] == part["name"] else f"{part['kind']}: {part['name']}"
            score = {key: value for key, value in part["scores"][metric].items() if value is not None}
            rows.append({"slice": label, "sentences": part["sentences"], **score})
        layers = [
            layer("rule", {}, x=number("low"), x2={"field": "high"}),
            layer("point", {"filled": True, "size": 60, **TOLD}, x=number("gap", f"{metric}, student − teacher")),
        ]
        drawn = panel(
            metric, "", rows, layers, y=name("slice", sort=[row["slice"] for row in rows], axis={"labelLimit": 260})
        )
        panels.append({**drawn, "height": {"step": 18}})
    return side_by_side(panels, "The student's distance from its teacher on slices of the test set")


def gap_table(gap: GapResults) -> Table:
    """Both systems' scores on each slice."""
    groups: Dict[str, List[Cells]] = {
        "": [{"slice": f"{part['kind']}: {part['name']}", "sentences": f"{part['sentences']:,}"} for part in gap.slices]
    }
    for metric in gap.signatures:
        groups[metric] = [_cells(gap, part["scores"][metric]) for part in gap.slices]
    caption = f"{gap.student} against {gap.teacher}. 95 %: of the difference, by paired bootstrap."
    notes = [f"{metric}: {signature}" for metric, signature in gap.signatures.items()]
    return Table("Slices", caption, groups, notes)


def _cells(gap: GapResults, score: Dict[str, Optional[float]]) -> Cells:
    low, high = score["low"], score["high"]
    ends = NONE if low is None or high is None else f"{low:+.1f} to {high:+.1f}"
    values = {gap.teacher: score["teacher"], gap.student: score["student"], "gap": score["gap"]}
    return {**{key: NONE if value is None else f"{value:.1f}" for key, value in values.items()}, "95 %": ends}
