"""Evaluations and training logs as one HTML page that needs nothing but itself."""

import functools
from pathlib import Path
from typing import Any, Dict, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.results import JSON_NAME
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import Named, check_outputs, write_output
from kd_plugin.report.charts import score_panels, side_by_side, speed_panels
from kd_plugin.report.evaluation import Evaluation, read_evaluation
from kd_plugin.report.learning import learning_figures, run_facts, run_table
from kd_plugin.report.logs import Run, read_runs
from kd_plugin.report.tables import flattened, score_table, size_table
from kd_plugin.version import __version__


def write_report(
    output: Path, title: str, evaluations: Sequence[str], logs: Sequence[str], inputs: Sequence[Named]
) -> str:
    """Write the page; all input is read before anything is written.

    Args:
        evaluations: folders or JSON files of kd-plugin evaluate
        logs: NAME=FILE of fairseq-train
        inputs: all that is read, by flag: never written over

    Returns:
        what was written, in a line
    """
    if not evaluations and not logs:
        raise KDPluginError("report: nothing to report. Remedy: --evaluation PATH, --log NAME=FILE, or both")
    from kd_plugin.report.page import is_page_of, page  # an extra's libraries

    job = digest_of([title, list(evaluations), list(logs)])
    made = functools.partial(is_page_of, job)
    inside = [str(Path(path) / JSON_NAME) for path in evaluations]
    check_outputs([*inputs, ("--evaluation", inside)], files=[("--output", output)], made=made)
    found, runs = [read_evaluation(argument) for argument in evaluations], read_runs(logs)
    if not output.absolute().parent.is_dir():
        raise KDPluginError(f"--output {output}: in no folder that exists. Remedy: FILE.html in a folder")
    content = page(job, **report(title, found, runs))
    write_output(output, content, "--output", made)
    return f"{output}: {len(found)} evaluations, {len(runs)} runs, {len(content):,} bytes"


def report(title: str, evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> Dict[str, Any]:
    """What the template shows. The same input gives the same content."""
    origin = _origin(evaluations[0]) if len(evaluations) == 1 else {}
    dates = sorted(date for run in runs for date in (run.first_date, run.last_date) if date)
    trained = f"{dates[0]} to {dates[-1]}" if dates else ""
    settings = [(f"Evaluation {evaluation.source}", flattened(evaluation.settings)) for evaluation in evaluations]
    return {
        "title": title,
        "header": {**origin, "trained": trained, "report by": f"kd_plugin {__version__}"},
        "evaluations": [_section(evaluation) for evaluation in evaluations],
        "curves": learning_figures(runs),
        "run_table": run_table(runs),
        "reproduce": settings + [(run.name, run_facts(run)) for run in runs],
    }


def _origin(evaluation: Evaluation) -> Dict[str, str]:
    return {
        "evaluated": evaluation.date.replace("T", " "),
        "machine": _in_a_line(evaluation.machine),
        "versions": _in_a_line(evaluation.versions),
        "baseline": evaluation.baseline or "",
        "file": evaluation.source,
    }


def _in_a_line(values: Dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _section(evaluation: Evaluation) -> Dict[str, Any]:
    """A figure for each device on which speed was measured, one of all scores, and the tables of both."""
    figures, notes = [], []
    for device in evaluation.devices():
        panels = speed_panels(evaluation, device)
        if not panels:
            continue
        name = evaluation.device_name(device)
        caption = (
            f"Quality against speed (one pass, on a machine that other work may have shared): {name}. "
            "Area: size of the stored weights. Dotted line, names in bold: the Pareto front, the models that no other "
            "equals in both. Bars: 95 % confidence."
        )
        figures.append({"caption": caption, "spec": side_by_side(panels, caption, 75, "model")})
        shown = {row["model"] for panel in panels for row in panel["data"]["values"]}
        missing = [model for model in evaluation.names() if model not in shown]
        if missing:
            notes.append(f"Not in the picture of {name}, for want of a speed or a score: {', '.join(missing)}.")
    if not figures:
        notes.append("No model has both a speed and a score: there is no picture of the one against the other.")
    panels = score_panels(evaluation)
    if panels:
        caption = "Scores, with their 95 % confidence intervals."
        figures.append({"caption": caption, "spec": side_by_side(panels, caption, 200)})
    scored = [(test, lines) for test, lines in evaluation.tests if evaluation.metrics(test)]
    empty = [test for test, _ in evaluation.tests if not evaluation.metrics(test)]
    if empty:
        notes.append(f"Without a score: {', '.join(empty)}.")
    tables = [*(score_table(evaluation, test, lines) for test, lines in scored), size_table(evaluation)]
    return {
        "source": evaluation.source,
        "facts": _origin(evaluation),
        "figures": figures,
        "notes": notes,
        "tables": tables,
    }
