"""Learning curves of several runs: the choice and grouping of terms, thinning of points, and final values."""

import math
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from kd_plugin.evaluation.table import NONE, Cells, Table
from kd_plugin.evaluation.training_logs import EPOCH, INTERVAL, Key, Run, is_finite
from kd_plugin.report.charts import Row, Spec, curves_panel, side_by_side

BITS, SHARE = "bits per token", "% of tokens"
FOREMOST = {"nll_loss": BITS, "bleu": "BLEU", "kd_loss": BITS, "agreement": SHARE}
# only of interest when something is wrong, so folded away
MACHINERY = {
    "kd_alpha": "", "kd_temperature": "", "lr": "", "gnorm": "", "clip": "% of updates clipped", "loss_scale": "",
    "wps": "words per second", "ups": "updates per second", "wpb": "words per batch", "bsz": "sentences per batch",
    "gb_free": "GB", "train_wall": "seconds", "wall": "seconds",
}  # fmt: skip
UNITS = {  # in the order of their charts
    **FOREMOST, "loss": BITS, "ce_loss": BITS, "ppl": "", "rank_loss": BITS, "teacher_nll_loss": BITS,
    "kd_selected": SHARE, "accuracy": SHARE, **MACHINERY,
}  # fmt: skip
HIGHER_IS_BETTER = ("bleu", "agreement", "accuracy")
# possible maximum numbers of points per curve: the first that keeps the page small is used; longer curves are thinned
LIMITS, POINTS_OF_A_PAGE = (300, 200, 100, 50, 20, 10, 5), 8000

exact = "{:,.7g}".format  # a logged value, with up to seven digits
MAIN, VALIDATION, TRAINING = "Main terms", "Validation, other terms", "Training, between two lines of the log"
EPOCHS, FOLDED = "Training, averages of epochs", "Schedules, gradients, speed"


class Figure(NamedTuple):
    """A figure. spec: None if no curve has two points. tables: of all values, one per term."""

    heading: str
    open: bool
    spec: Optional[Spec]
    constants: List[str]
    tables: List[Table]


def groups(runs: Sequence[Run]) -> Dict[str, List[Key]]:
    """Every (kind, term) for which some run logged a finite value, by heading, the most informative first."""
    keys = dict.fromkeys(key for run in runs for key in run.series if run.finite(key))
    validations = sorted({kind for kind, _ in keys} - {INTERVAL, EPOCH}, key=lambda kind: (kind != "valid", kind))
    kinds = [validations, [INTERVAL], [EPOCH]]
    telling = ([(kind, term) for kind in some for term in FOREMOST if (kind, term) in keys] for some in kinds)
    first = next(filter(None, telling), [])
    found: Dict[str, List[Key]] = {MAIN: first, VALIDATION: [], TRAINING: [], EPOCHS: [], FOLDED: []}
    ranks = {term: rank for rank, term in enumerate(UNITS)}
    for kind, term in sorted(keys.keys() - first, key=lambda key: (key[0], ranks.get(key[1], len(ranks)), key[1])):
        heading = {INTERVAL: TRAINING, EPOCH: EPOCHS}.get(kind, VALIDATION)
        is_machinery = term in MACHINERY or term.startswith("best_")  # best_nll_loss repeats nll_loss
        found[FOLDED if is_machinery else heading].append((kind, term))
    return {heading: keys for heading, keys in found.items() if keys}


def learning_figures(runs: Sequence[Run]) -> List[Figure]:
    """One figure per group: a chart for each term that varies, a remark on the constant ones, and all values."""
    found = groups(runs)
    lengths = [len(run.series[key]) for keys in found.values() for key in keys for run in runs if key in run.series]
    fitting = (limit for limit in LIMITS if sum(min(limit, length) for length in lengths) <= POINTS_OF_A_PAGE)
    limit = next(fitting, LIMITS[-1])
    folded = {FOLDED, EPOCHS} if TRAINING in found else {FOLDED}
    return [_figure(heading, heading not in folded, keys, runs, limit) for heading, keys in found.items()]


def _figure(heading: str, is_open: bool, keys: Sequence[Key], runs: Sequence[Run], limit: int) -> Figure:
    names = [run.name for run in runs]
    panels, constants, tables = [], [], []
    for key in keys:
        of, name = [run for run in runs if key in run.series], " ".join(key)
        logged = [value for run in of for value in run.series[key].values()]
        if len(set(map(str, logged))) == 1 and len(logged) > 1:
            whose = f" ({', '.join(run.name for run in of)})" if len(of) < len(runs) else ""
            constants.append(f"{name}{whose} {exact(logged[0])}")
            continue
        rows = [{"run": run.name, **row} for run in of for row in thinned(list(run.series[key].items()), limit)]
        tables.append(values_table(name, rows, names))
        if any(len(run.finite(key)) > 1 for run in of):
            gaps = sum(not is_finite(value) for value in logged)
            remark = ", ".join(filter(None, [UNITS.get(key[1], ""), f"{gaps} not finite" if gaps else ""]))
            panels.append(curves_panel(name, remark, rows, names))
    spec = side_by_side(panels, f"{heading}, by number of update", "run") if panels else None
    return Figure(heading, is_open, spec, constants, tables)


def thinned(points: Sequence[Tuple[int, float]], limit: int) -> List[Row]:
    """Rows for (update, value) points: all if there are at most `limit`, else `limit` medians with their low and high.

    A non-finite value becomes None.
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


def values_table(name: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    """A chart's data, with a row per update and a column per run."""
    lines: Dict[int, Cells] = {}
    for row in sorted(rows, key=lambda row: row["update"]):
        text = "not finite" if row["value"] is None else exact(row["value"])
        ends = f" ({exact(row['low'])}–{exact(row['high'])})" if "low" in row else ""
        lines.setdefault(row["update"], dict.fromkeys(names, ""))[row["run"]] = text + ends
    return Table(name, "", {"": [{"update": str(update)} for update in lines], " ": list(lines.values())})


def run_table(runs: Sequence[Run]) -> Table:
    """Each run's number of updates, and the last and best values of its main terms."""
    columns = {"": [{"run": run.name, "updates": f"{run.updates:,}"} for run in runs]}
    for key in groups(runs).get(MAIN, []):
        columns[" ".join(key)] = [_ends(run.finite(key), key[1]) for run in runs]
    return Table("Runs", "The length of each run, and its final and best values.", columns)


def _ends(points: Sequence[Tuple[int, float]], term: str) -> Cells:
    if not points:
        return dict.fromkeys(("last", "best", "at update"), NONE)
    update, best = (max if term in HIGHER_IS_BETTER else min)(points, key=lambda point: point[1])
    return {"last": exact(points[-1][1]), "best": exact(best), "at update": f"{update:,}"}
