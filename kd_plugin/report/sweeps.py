"""The results of `kd-plugin sweep` as pictures and tables of the report."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.evaluation.table import NONE, Best, Cells, Table
from kd_plugin.report.charts import TOLD, Row, Spec, layer, name, number, panel, side_by_side
from kd_plugin.report.reading import finite, read_result, texts


class Trial(NamedTuple):
    name: str
    state: str
    values: Dict[str, Any]
    value: Optional[float]
    updates: int
    seconds: float


class SweepResults(NamedTuple):
    """What sweep.json says. parameters: flags; logarithmic: those with a logarithmic range"""

    source: str
    objective: str
    direction: str
    budget: str
    parameters: List[str]
    logarithmic: List[str]
    trials: List[Trial]
    retrained: List[Tuple[str, Dict[str, Any], Dict[str, Optional[float]], Optional[float]]]
    verdict: str
    command: str


def read_sweep_results(argument: str) -> SweepResults:
    """The sweep in a folder or file, as read_result."""
    return read_result(argument, "sweep", _converted)


def _converted(path: Path, content: Dict[str, Any]) -> SweepResults:
    trials = [
        Trial(
            f"{trial['trial']}{' (as given)' if trial['given'] else ''}",
            str(trial["state"]),
            dict(trial["values"]),
            finite(trial["value"]),
            int(trial["updates"]),
            float(trial["seconds"]),
        )
        for trial in content["trials"]
    ]
    retrained = [
        (
            str(one["name"]),
            dict(one["values"]),
            {seed: finite(score) for seed, score in one["scores"].items()},
            finite(one["mean"]),
        )
        for one in content["retrained"]
    ]
    parameters, logarithmic = ([str(flag) for flag in content[key]] for key in ("parameters", "logarithmic"))
    objective, direction, budget, verdict, command = texts(
        content, "objective", "direction", "budget", "verdict", "command"
    )
    return SweepResults(
        str(path), objective, direction, budget, parameters, logarithmic, trials, retrained, verdict, command
    )


def sweep_figures(sweep: SweepResults) -> Iterator[Tuple[str, Spec]]:
    """Captions and pictures: each parameter against the objective; two against each other; all at once."""
    rows = [_row(sweep, trial) for trial in sweep.trials if trial.value is not None]
    if len(rows) < 2:
        return
    panels = [
        panel(
            flag,
            "",
            rows,
            [layer("point", {"filled": True, "size": 60, **TOLD})],
            x=_axis(sweep, rows, flag),
            y=number(sweep.objective, sweep.objective, scale={"zero": False, "padding": 10}),
            color=name("state"),
            shape=name("state"),
        )
        for flag in sweep.parameters
    ]
    yield (
        f"{sweep.objective} by parameter. Trials that were stopped early have their last value.",
        side_by_side(panels, ""),
    )
    numeric = [flag for flag in sweep.parameters if _is_numeric(rows, flag)]
    if len(numeric) > 1:
        first, second = numeric[:2]
        place = {"x": _axis(sweep, rows, first), "y": _axis(sweep, rows, second)}
        marks = layer("point", {"filled": True, "size": 140, **TOLD}, color=_shade(sweep))
        yield (
            f"{first} and {second}, coloured by {sweep.objective}.",
            side_by_side([panel("", "", rows, [marks], **place)], ""),
        )
    if len(sweep.parameters) > 2:
        lines = layer("line", {**TOLD, "opacity": 0.7}, detail=name("trial"), color=_shade(sweep))
        axes = {"x": name("parameter", sort=None), "y": number("position", "low to high", scale={"domain": [0, 1]})}
        yield (
            "All parameters at once: a line for each trial, each parameter from its lowest to its highest value.",
            side_by_side([panel("", "", list(_positions(sweep, rows)), [lines], **axes)], ""),
        )


def _row(sweep: SweepResults, trial: Trial) -> Row:
    return {"trial": trial.name, "state": trial.state, sweep.objective: trial.value, **trial.values}


def _shade(sweep: SweepResults) -> Spec:
    scale = {"scheme": "viridis", "reverse": sweep.direction == "minimize"}
    return number(sweep.objective, sweep.objective, scale=scale, legend={"tickCount": 4})


def _is_numeric(rows: List[Row], flag: str) -> bool:
    return all(isinstance(row.get(flag), (int, float)) for row in rows)


def _axis(sweep: SweepResults, rows: List[Row], flag: str) -> Spec:
    field = flag.replace(".", "\\.")
    if not _is_numeric(rows, flag):
        # values of several flags may differ in the last one; the panel has the name, which would cross such labels
        return name(field, axis={"labelLimit": 400})
    kind = {"type": "log"} if flag in sweep.logarithmic else {"zero": False}
    return number(field, flag, scale={**kind, "padding": 10})


def _positions(sweep: SweepResults, rows: List[Row]) -> Iterator[Row]:
    """A row per trial and parameter, with the parameter's rank among its values from 0 to 1."""
    for flag in sweep.parameters:
        values = [row[flag] for row in rows if flag in row]
        known = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        for row in rows:
            if flag in row:
                position = known.index(row[flag]) / max(len(known) - 1, 1)
                told = {"trial": row["trial"], sweep.objective: row[sweep.objective], flag: row[flag]}
                yield {**told, "parameter": flag, "position": position}


def sweep_table(sweep: SweepResults) -> Table:
    """Each trial's values, the best first."""
    number_of = {"": [{"trial": trial.name} for trial in sweep.trials]}
    values = [{flag: _shown(trial.values.get(flag)) for flag in sweep.parameters} for trial in sweep.trials]
    ends: List[Cells] = [
        {
            sweep.objective: Best(_shown(trial.value)) if rank == 0 else _shown(trial.value),
            "updates": f"{trial.updates:,}",
            "seconds": f"{trial.seconds:,.0f}",
            "state": trial.state,
        }
        for rank, trial in enumerate(sweep.trials)
    ]
    return Table("Trials", f"Each of at most {sweep.budget}.", {**number_of, "values": values, " ": ends})


def seeds_table(sweep: SweepResults) -> Table:
    """The best trials and the command as given, with several seeds."""
    rows: List[Cells] = [
        {**{f"seed {seed}": _shown(score) for seed, score in scores.items()}, "mean": _shown(mean)}
        for _, _, scores, mean in sweep.retrained
    ]
    names: List[Cells] = [{"": one[0]} for one in sweep.retrained]
    return Table("With other seeds", sweep.objective, {"": names, " ": rows}, [sweep.verdict])


def _shown(value: Any) -> str:
    return NONE if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
