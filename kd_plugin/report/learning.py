"""Learning curves of several runs: which terms, in which order and groups, and the table of what they ended at."""

import math
from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

from kd_plugin.report.axes import Axis, exact
from kd_plugin.report.curves import Curve, constant_value, curves_chart, is_dense, update_axis
from kd_plugin.report.logs import EPOCH, INTERVAL, Run
from kd_plugin.report.svg import escape, legend, look
from kd_plugin.report.tables import NONE, Cell, table

# What one looks at first; where two runs are compared, their losses come before their speeds.
ORDER = (
    "nll_loss", "bleu", "kd_loss", "agreement", "loss", "ce_loss", "ppl", "rank_loss", "teacher_nll_loss",
    "kd_selected", "kd_alpha", "kd_temperature", "lr", "gnorm", "clip", "loss_scale", "wps", "ups", "wpb", "bsz",
    "gb_free", "train_wall", "wall",
)  # fmt: skip
FOREMOST = ("nll_loss", "bleu", "kd_loss", "agreement")
HIGHER_IS_BETTER = ("bleu", "agreement", "accuracy")
UNITS = {
    **dict.fromkeys(("loss", "nll_loss", "ce_loss", "kd_loss", "teacher_nll_loss", "rank_loss"), "bits per token"),
    **dict.fromkeys(("agreement", "kd_selected", "accuracy"), "% of tokens"),
    "clip": "% of updates clipped",
    "wps": "words per second",
    "ups": "updates per second",
    "wpb": "words per batch",
    "bsz": "sentences per batch",
    "wall": "seconds",
    "train_wall": "seconds",
    "gb_free": "GB",
}

DENSE_REMARK = " Where values lie dense: medians, and all values faint behind them."

Key = Tuple[str, str]


class Group(NamedTuple):
    """Charts under one heading. open: shown without being asked for."""

    heading: str
    keys: List[Key]
    open: bool
    name: str


def groups(runs: Sequence[Run]) -> List[Group]:
    """Every (kind, term) that some run logged a finite value of, in groups, the most telling first."""
    keys = dict.fromkeys(key for run in runs for key in run.series if run.finite(*key))
    validations = sorted({kind for kind, _ in keys} - {INTERVAL, EPOCH}, key=lambda kind: (kind != "valid", kind))
    first = [(kind, term) for kind in validations for term in FOREMOST if (kind, term) in keys]
    if not first:
        kinds = [kind for kind in (INTERVAL, EPOCH) if (kind, "nll_loss") in keys or (kind, "loss") in keys]
        first = [(kind, term) for kind in kinds[:1] for term in FOREMOST if (kind, term) in keys]
    rest = [key for key in keys if key not in first]

    def of(kinds: Iterable[str]) -> List[Key]:
        return sorted((key for key in rest if key[0] in kinds), key=_rank)

    found = [
        Group("Main terms", first, True, "main"),
        Group("Validation, other terms", of(validations), True, ""),
        Group("Training, between two lines of the log", of([INTERVAL]), True, ""),
        Group("Training, averages of epochs", of([EPOCH]), not of([INTERVAL]), ""),
    ]
    return [group for group in found if group.keys]


def _rank(key: Key) -> Tuple[str, int, int, str]:
    kind, term = key
    # best_nll_loss after everything else: it repeats nll_loss
    return kind, int(term.startswith("best_")), ORDER.index(term) if term in ORDER else ORDER.index("lr"), term


def curves_of(runs: Sequence[Run], key: Key) -> List[Curve]:
    return [
        Curve(run.name, look(index), list(run.series[key].items()))
        for index, run in enumerate(runs)
        if key in run.series
    ]


def unit(term: str) -> str:
    name = term[len("best_") :] if term.startswith("best_") else term
    return "BLEU" if name == "bleu" else UNITS.get(name, "")


def learning_figures(runs: Sequence[Run], first_number: int) -> str:
    """One figure a group: a legend, a chart for each term that moves, and a line for those that never do."""
    updates = update_axis(max(run.updates for run in runs))
    looks = legend([(run.name, look(index)) for index, run in enumerate(runs)])
    drawn = []
    for number, group in enumerate(groups(runs), start=first_number):
        several = len({kind for kind, _ in group.keys}) > 1
        panels: List[str] = []
        dense = any(is_dense(curve.points) for key in group.keys for curve in curves_of(runs, key))
        remark = DENSE_REMARK if dense else ""
        constants = []
        for key in group.keys:
            curves = curves_of(runs, key)
            value = constant_value(curves)
            name = " ".join(key) if several or group.name else key[1]
            if value:
                of = [curve.name for curve in curves]
                whose = f" ({', '.join(f'<bdi>{escape(run)}</bdi>' for run in of)})" if len(of) < len(runs) else ""
                constants.append(f"<b>{escape(name)}</b>{whose} {value}")
                continue
            panels.append(_panel(f"figure-{number}-{len(panels)}", " ".join(key), name, curves, updates))
        same = f'<p class="notes">The same at all times: {", ".join(constants)}.</p>' if constants else ""
        body = (looks + f'<div class="panels {group.name}">{"".join(panels)}</div>' if panels else "") + same
        summary = f"<summary><b>Figure {number}.</b> {escape(group.heading)}, by number of update.{remark}</summary>"
        drawn.append(f'<details class="figure"{" open" if group.open else ""}>{summary}{body}</details>')
    return "".join(drawn)


def _panel(identity: str, full_name: str, name: str, curves: Sequence[Curve], updates: Axis) -> str:
    term = name.rpartition(" ")[2]
    gaps = sum(not math.isfinite(value) for curve in curves for _, value in curve.points)
    remark = ", ".join(filter(None, [unit(term), f"{gaps} not finite" if gaps else ""]))
    caption = f'<figcaption><b>{escape(name)}</b> <span class="muted">{escape(remark)}</span></figcaption>'
    return f'<figure class="panel">{caption}{curves_chart(identity, full_name, curves, updates)}</figure>'


def run_table(runs: Sequence[Run], number: int) -> str:
    """How far each run got, and the last and best value of what counts."""
    keys = next((group.keys for group in groups(runs) if group.name == "main"), [])
    top = [("", 1), ("", 1)] + [(" ".join(key), 3) for key in keys]
    head = [("run", 1), ("updates", 1)] + [(name, 1) for _ in keys for name in ("last", "best", "at update")]
    rows = []
    for run in runs:
        row: List[Cell] = [(f"<bdi>{escape(run.name)}</bdi>", ""), (f"{run.updates:,}", "number")]
        for key in keys:
            row += _last_and_best(run, key)
        rows.append(row)
    caption = "Runs, and where their curves end."
    return table(number, caption, [top, head] if keys else [head], rows)


def _last_and_best(run: Run, key: Key) -> List[Cell]:
    points = run.finite(*key)
    if not points:
        return [(NONE, "number first"), (NONE, "number"), (NONE, "number")]
    pick = max if key[1] in HIGHER_IS_BETTER else min
    update, best = pick(points, key=lambda point: point[1])
    return [(exact(points[-1][1]), "number first"), (exact(best), "number"), (f"{update:,}", "number muted")]


def run_remarks(runs: Sequence[Run]) -> str:
    """What reproduces each run and what is odd about its log."""
    items = []
    for run in runs:
        facts: Dict[str, str] = {"log": ", ".join(run.files)}
        if run.first_date:
            facts["from, to"] = f"{run.first_date}, {run.last_date}"
        if run.resumed:
            facts["resumed"] = f"{run.resumed} times at an earlier update; what it had logged from there is replaced"
        if run.malformed:
            facts["not read"] = f"{run.malformed} garbled lines"
        if run.signatures:
            facts["signature"] = " ; ".join(run.signatures)
        inner = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
        items.append(f'<h3><bdi>{escape(run.name)}</bdi></h3><dl class="settings">{inner}</dl>')
    return "".join(items)
