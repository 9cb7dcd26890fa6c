"""`kd-plugin report`: evaluations and training logs as one HTML page that needs nothing but itself."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import check_outputs, inputs_of, write_output
from kd_plugin.report.evaluation import FILE_NAME, LOWER_IS_BETTER, Evaluation, Model, read_evaluation
from kd_plugin.report.learning import learning_figures, run_remarks, run_table
from kd_plugin.report.logs import Run, read_runs
from kd_plugin.report.page import facts, is_page_of, page
from kd_plugin.report.scatter import Point, scatter_chart, size_key
from kd_plugin.report.svg import escape, legend, look
from kd_plugin.report.tables import score_table, settings_list, size_table
from kd_plugin.version import __version__

TITLE = "Distillation report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", help="the page to write, report.html say")
    parser.add_argument(
        "--evaluation",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="folders or JSON files of kd-plugin evaluate",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="logs of fairseq-train (--log-format simple or json), each with the name of its run; a name that comes "
        "again continues its run",
    )
    parser.add_argument("--title", default=TITLE, help=f"of the page (default: {TITLE})")


def run(args: argparse.Namespace) -> int:
    """Exit status 0. All input is read before anything is written."""
    if not args.evaluation and not args.log:
        raise KDPluginError("report: nothing to report. Remedy: --evaluation PATH, --log NAME=FILE, or both")
    output = Path(args.output)
    job = digest_of([args.title, args.evaluation, args.log])
    made = functools.partial(is_page_of, job)
    inside = [str(Path(path) / FILE_NAME) for path in args.evaluation]
    check_outputs([*inputs_of(args), ("--evaluation", inside)], files=[("--output", args.output)], made=made)
    evaluations = [read_evaluation(argument) for argument in args.evaluation]
    runs = read_runs(args.log)
    if not output.absolute().parent.is_dir():
        raise KDPluginError(f"--output {output}: in no folder that exists. Remedy: FILE.html in a folder")
    content = page(args.title, report(args.title, evaluations, runs), job)
    write_output(output, content, "--output", made)
    print(
        f"{output}: {len(evaluations)} evaluations, {len(runs)} runs, {len(content):,} bytes",
        file=sys.stderr,
    )
    return 0


class Counter:
    """Numbers of figures and tables, from 1."""

    def __init__(self) -> None:
        self.figures = 0
        self.tables = 0

    def figure(self) -> int:
        self.figures += 1
        return self.figures

    def table(self) -> int:
        self.tables += 1
        return self.tables


def report(title: str, evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> str:
    """The body of the page, as HTML. The same input gives the same text."""
    counter = Counter()
    parts = [f"<header><h1>{escape(title)}</h1>", _header(evaluations, runs), "</header>"]
    for evaluation in evaluations:
        place = f": <bdi>{escape(evaluation.source)}</bdi>" if len(evaluations) > 1 else ""
        parts.append(f"<section><h2>Quality, speed and size{place}</h2>")
        if place:
            parts.append(facts(_origin(evaluation)))
        parts += [_pictures(evaluation, counter), _tables(evaluation, counter), "</section>"]
    if runs:
        parts.append("<section><h2>Learning curves</h2>")
        parts.append(learning_figures(runs, counter.figures + 1))
        parts += [run_table(runs, counter.table()), "</section>"]
    parts.append("<section><h2>To reproduce</h2>")
    for evaluation in evaluations:
        parts.append(f"<h3>Evaluation <bdi>{escape(evaluation.source)}</bdi></h3>")
        parts.append(
            settings_list(evaluation.settings) if evaluation.settings else "<p>Its file holds no settings.</p>"
        )
    parts += [run_remarks(runs), "</section>"]
    return "\n".join(filter(None, parts))


def _header(evaluations: Sequence[Evaluation], runs: Sequence[Run]) -> str:
    rows = _origin(evaluations[0]) if len(evaluations) == 1 else {}
    dates = sorted(date for run in runs for date in (run.first_date, run.last_date) if date)
    trained = f"{dates[0]} to {dates[-1]}" if dates else ""
    return facts({**rows, "trained": trained, "report by": f"kd_plugin {__version__}"})


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


def _pictures(evaluation: Evaluation, counter: Counter) -> str:
    """A figure for each device on which speed was measured, a panel for each test set."""
    drawn = [_picture(evaluation, device, counter) for device in evaluation.devices()]
    if not any(drawn):
        return "<p>No model has both a speed and a score: there is no picture of the one against the other.</p>"
    return "".join(drawn)


def _metric(evaluation: Evaluation, test: str) -> Optional[str]:
    metrics = evaluation.metrics(test)
    return "BLEU" if "BLEU" in metrics else next(iter(metrics), None)


def _picture(evaluation: Evaluation, device: str, counter: Counter) -> str:
    engines = list(dict.fromkeys(model.engine for model in evaluation.models))
    panels: Dict[str, List[Point]] = {}
    for test, _ in evaluation.tests:
        found = (_point(model, device, test, _metric(evaluation, test), engines) for model in evaluation.models)
        points = [point for point in found if point]
        if points:
            panels[test] = points
    shown = [point for points in panels.values() for point in points]
    if not shown:
        return ""
    number = counter.figure()
    speeds = min(point.speed for point in shown), max(point.speed for point in shown)
    largest = max(point.bytes or 0 for point in shown)
    drawn, remarks = [], []
    for index, (test, points) in enumerate(panels.items()):
        metric = _metric(evaluation, test) or ""
        heading = f"{metric} on {test} against speed, {evaluation.device_name(device)}"
        identity, lower = f"figure-{number}-{index}", metric in LOWER_IS_BETTER
        picture, unlabelled = scatter_chart(identity, metric, points, speeds, largest, lower, heading)
        drawn.append(f'<figure class="panel"><figcaption><b>{escape(test)}</b></figcaption>{picture}</figure>')
        if unlabelled:
            remarks.append(f"{test}: no room for the names of {', '.join(unlabelled)}")
    missing = [model.name for model in evaluation.models if model.name not in {point.name for point in shown}]
    if missing:
        remarks.append(f"Not in the picture, for want of a speed or a score: {', '.join(missing)}")
    notes = "".join(f'<p class="notes">{escape(remark)}.</p>' for remark in remarks)
    looks = legend([(name or "engine not named", look(index)) for index, name in enumerate(engines)], with_line=False)
    keys = f'<div class="legends">{looks}{size_key(largest) if largest else ""}</div>'
    whiskers = " Bars: 95 % confidence." if any(point.interval for point in shown) else ""
    caption = (
        f'<p class="caption"><b>Figure {number}.</b> Quality against speed: {escape(evaluation.device_name(device))}. '
        "Area: size of the stored weights. Dotted line, names in bold: the Pareto front, the models that no other "
        "equals in both."
        f"{whiskers}</p>"
    )
    return f'<div class="figure">{caption}{keys}<div class="panels wide">{"".join(drawn)}</div>{notes}</div>'


def _point(model: Model, device: str, test: str, metric: Optional[str], engines: List[str]) -> Optional[Point]:
    speed, score = model.speeds.get(device), model.score(test, metric or "")
    if speed is None or not speed.tokens or speed.tokens <= 0 or score is None or score.value is None:
        return None
    return Point(model.name, speed.tokens, score.value, model.bytes, score.ends(), look(engines.index(model.engine)))


def _tables(evaluation: Evaluation, counter: Counter) -> str:
    drawn = [
        score_table(evaluation, test, lines, counter.table())
        for test, lines in evaluation.tests
        if evaluation.metrics(test)
    ]
    empty = [test for test, _ in evaluation.tests if not evaluation.metrics(test)]
    if empty:
        drawn.append(f'<p class="notes">Without a score: {escape(", ".join(empty))}.</p>')
    return "".join([*drawn, size_table(evaluation, counter.table())])
