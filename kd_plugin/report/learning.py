"""Learning curves of several runs: which terms, in which groups, how much of each, and where they ended."""

import math
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.report.charts import Row, Spec, curves_panel, side_by_side
from kd_plugin.report.logs import EPOCH, INTERVAL, Run, is_finite
from kd_plugin.report.tables import NONE, Table, exact

MAIN = "Main terms"
FOREMOST = ("nll_loss", "bleu", "kd_loss", "agreement")
ORDER = (*FOREMOST, "loss", "ce_loss", "ppl", "rank_loss", "teacher_nll_loss", "kd_selected")
# what one asks for when something is wrong: folded away
MACHINERY = (
    "kd_alpha", "kd_temperature", "lr", "gnorm", "clip", "loss_scale", "wps", "ups", "wpb", "bsz", "gb_free",
    "train_wall", "wall",
)  # fmt: skip
HIGHER_IS_BETTER = ("bleu", "agreement", "accuracy")
UNITS = {
    **dict.fromkeys(("loss", "nll_loss", "ce_loss", "kd_loss", "teacher_nll_loss", "rank_loss"), "bits per token"),
    **dict.fromkeys(("agreement", "kd_selected", "accuracy"), "% of tokens"),
    **dict.fromkeys(("wall", "train_wall"), "seconds"),
    "bleu": "BLEU", "clip": "% of updates clipped", "wps": "words per second", "ups": "updates per second",
    "wpb": "words per batch", "bsz": "sentences per batch", "gb_free": "GB",
}  # fmt: skip
# Points a curve may have, the first with which the page stays small: beyond, each stands for several.
LIMITS, POINTS_OF_A_PAGE = (300, 200, 100, 50, 20, 10, 5), 8000

Key = Tuple[str, str]


class Group(NamedTuple):
    """Terms under one heading. open: shown without being asked for."""

    heading: str
    keys: List[Key]
    open: bool


class Figure(NamedTuple):
    """spec: None where no curve has two points. values: by (kind, term) and update, a text for each run."""

    heading: str
    open: bool
    spec: Optional[Spec]
    constants: List[str]
    runs: List[str]
    values: Dict[str, Dict[int, Dict[str, str]]]


def groups(runs: Sequence[Run]) -> List[Group]:
    """Every (kind, term) that some run logged a finite value of, in groups, the most telling first."""
    keys = dict.fromkeys(key for run in runs for key in run.series if run.finite(*key))
    validations = sorted({kind for kind, _ in keys} - {INTERVAL, EPOCH}, key=lambda kind: (kind != "valid", kind))
    first = [(kind, term) for kind in validations for term in FOREMOST if (kind, term) in keys]
    if not first:
        kinds = [kind for kind in (INTERVAL, EPOCH) if (kind, "nll_loss") in keys or (kind, "loss") in keys]
        first = [(kind, term) for kind in kinds[:1] for term in FOREMOST if (kind, term) in keys]
    rest = sorted((key for key in keys if key not in first), key=_rank)

    def of(kinds: Iterable[str]) -> List[Key]:
        return [(kind, term) for kind, term in rest if kind in kinds and not _is_machinery(term)]

    found = [
        Group(MAIN, first, True),
        Group("Validation, other terms", of(validations), True),
        Group("Training, between two lines of the log", of([INTERVAL]), True),
        Group("Training, averages of epochs", of([EPOCH]), not of([INTERVAL])),
        Group("Schedules, gradients, speed", [key for key in rest if _is_machinery(key[1])], False),
    ]
    return [group for group in found if group.keys]


def _is_machinery(term: str) -> bool:
    return term in MACHINERY or term.startswith("best_")  # best_nll_loss repeats nll_loss


def _rank(key: Key) -> Tuple[str, int, str]:
    order = ORDER + MACHINERY
    return key[0], order.index(key[1]) if key[1] in order else len(ORDER), key[1]


def learning_figures(runs: Sequence[Run]) -> List[Figure]:
    """One a group: a chart for each term that moves, a remark on those that never do, and all values."""
    found = groups(runs)
    lengths = [len(run.series[key]) for group in found for key in group.keys for run in runs if key in run.series]
    fitting = (limit for limit in LIMITS if sum(min(limit, length) for length in lengths) <= POINTS_OF_A_PAGE)
    limit = next(fitting, LIMITS[-1])
    return [_figure(group, runs, limit) for group in found]


def _figure(group: Group, runs: Sequence[Run], limit: int) -> Figure:
    names = [run.name for run in runs]
    panels, constants = [], []
    values: Dict[str, Dict[int, Dict[str, str]]] = {}
    for key in group.keys:
        of = [run for run in runs if key in run.series]
        logged = [value for run in of for value in run.series[key].values()]
        if len(set(map(str, logged))) == 1 and len(logged) > 1:
            whose = f" ({', '.join(run.name for run in of)})" if len(of) < len(runs) else ""
            constants.append(f"{' '.join(key)}{whose} {exact(logged[0])}")
            continue
        rows = [{"run": run.name, **row} for run in of for row in thinned(list(run.series[key].items()), limit)]
        table = values.setdefault(" ".join(key), {})
        for row in sorted(rows, key=lambda row: row["update"]):
            table.setdefault(row["update"], {})[row["run"]] = _in_words(row)
        if any(len(run.finite(*key)) > 1 for run in of):
            gaps = sum(not is_finite(value) for value in logged)
            remark = ", ".join(filter(None, [UNITS.get(key[1], ""), f"{gaps} not finite" if gaps else ""]))
            panels.append(curves_panel(" ".join(key), remark, rows, names))
    spec = side_by_side(panels, f"{group.heading}, by number of update", 75, "run") if panels else None
    return Figure(group.heading, group.open, spec, constants, names, values)


def thinned(points: Sequence[Tuple[int, float]], limit: int) -> List[Row]:
    """All (update, value) where they are at most `limit`, else so many medians, with the low and high that they hide.

    A value that is not finite is None.
    """
    size = math.ceil(len(points) / limit)
    rows: List[Row] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [point for point in part if is_finite(point[1])]
        middle, values = (len(finite) - 1) // 2, sorted(value for _, value in finite)
        if finite:
            ends = {"low": values[0], "high": values[-1]} if size > 1 else {}
            rows.append({"update": finite[middle][0], "value": values[middle], **ends})
        if len(finite) < len(part):
            rows.append({"update": next(update for update, value in part if not is_finite(value)), "value": None})
    return rows


def _in_words(row: Row) -> str:
    if row["value"] is None:
        return "not finite"
    ends = f" ({exact(row['low'])}–{exact(row['high'])})" if "low" in row else ""
    return exact(row["value"]) + ends


def run_table(runs: Sequence[Run]) -> Table:
    """How far each run got, and the last and best value of what counts."""
    keys = next((group.keys for group in groups(runs) if group.heading == MAIN), [])
    top = [("", 2), *((" ".join(key), 3) for key in keys)]
    head = ["run", "updates", *("last", "best", "at update") * len(keys)]
    rows = [[(run.name, ""), (f"{run.updates:,}", ""), *(c for key in keys for c in _ends(run, key))] for run in runs]
    return Table("Runs", "and where their curves end.", top, head, rows)


def _ends(run: Run, key: Key) -> List[Tuple[str, str]]:
    points = run.finite(*key)
    if not points:
        return [(NONE, "")] * 3
    pick = max if key[1] in HIGHER_IS_BETTER else min
    update, best = pick(points, key=lambda point: point[1])
    return [(exact(points[-1][1]), "first"), (exact(best), ""), (f"{update:,}", "muted")]


def run_facts(run: Run) -> Dict[str, Any]:
    """What reproduces a run, and what is odd about its log."""
    resumed = f"{run.resumed} times at an earlier update; what it had logged from there is replaced"
    return {
        "log": ", ".join(run.files),
        "from, to": f"{run.first_date}, {run.last_date}" if run.first_date else "",
        "resumed": resumed if run.resumed else "",
        "not read": f"{run.malformed} garbled lines" if run.malformed else "",
        "signature": " ; ".join(run.signatures),
    }
