"""sweep.json and sweep.md: every trial, the retrained ones, what the seeds say, and the best trial's command."""

import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from optuna.trial import FrozenTrial, TrialState

from kd_plugin.files.atomic import write_atomically, write_json
from kd_plugin.sweep.config import Sweep
from kd_plugin.sweep.retrain import DEFAULT, Retrained, mean, verdict
from kd_plugin.sweep.space import Space, written
from kd_plugin.sweep.study import ERROR, GIVEN, SECONDS, training_words

FORMAT, FORMAT_VERSION = "kd_plugin sweep", 1
JSON_NAME, MARKDOWN_NAME = "sweep.json", "sweep.md"
STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def write_results(
    output: Path, sweep: Sweep, space: Space, trials: Sequence[FrozenTrial], retrained: Sequence[Retrained]
) -> str:
    """Writes both files, and returns the text of sweep.md."""
    content = results(sweep, space, trials, retrained)
    write_json(output / JSON_NAME, content)
    text = markdown(content)
    write_atomically(output / MARKDOWN_NAME, text.encode("utf-8"))
    return text


def results(
    sweep: Sweep, space: Space, trials: Sequence[FrozenTrial], retrained: Sequence[Retrained]
) -> Dict[str, Any]:
    """The content of sweep.json; the best trial comes first, then the others, then those without a value."""
    sign = -1 if sweep.direction == "maximize" else 1
    rows = [_row(trial) for trial in trials if trial.state in STATES]
    order = {state: rank for rank, state in enumerate(STATES.values())}
    rows.sort(key=lambda row: (order[row["state"]], sign * (row["value"] or 0.0), row["trial"]))
    top = rows[0] if rows and rows[0]["state"] == STATES[TrialState.COMPLETE] else None
    command: Optional[str] = None
    if top is not None:
        words = training_words(sweep, space, top["values"], Path("BEST"), sweep.seed)
        command = shlex.join(["fairseq-train", *words]).replace("BEST/checkpoints", "checkpoints/best")
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "objective": sweep.objective,
        "direction": sweep.direction,
        "budget": f"{sweep.updates} updates" if sweep.updates is not None else f"{sweep.seconds:g} seconds",
        "logarithmic": [flag for flag, each in space.distributions.items() if getattr(each, "log", False)],
        "parameters": list(sweep.parameters),
        "trials": rows,
        "retrained": [
            {
                "name": one.name,
                "values": one.values,
                "scores": {str(s): v for s, v in one.scores.items()},
                "mean": mean(one),
            }
            for one in retrained
        ],
        "verdict": verdict(sweep, retrained),
        "command": command,
    }


def _row(trial: FrozenTrial) -> Dict[str, Any]:
    values = trial.intermediate_values
    value = trial.value if trial.state == TrialState.COMPLETE else values[max(values)] if values else None
    return {
        "trial": trial.number,
        "given": bool(trial.user_attrs.get(GIVEN)),
        "state": STATES[trial.state],
        "values": dict(trial.params),
        "value": value if value is not None and abs(value) < float("inf") else None,
        "updates": max(values, default=0),
        "seconds": trial.user_attrs.get(SECONDS, 0.0),
        "error": trial.user_attrs.get(ERROR, ""),
    }


def markdown(content: Dict[str, Any]) -> str:
    """The tables of sweep.json, and the command of the best trial."""
    flags, objective = content["parameters"], content["objective"]
    head = ["trial", *(flag.lstrip("-") for flag in flags), objective, "updates", "seconds", "state"]
    lines = [[_name(row), *_cells(row["values"], flags), _number(row["value"]), f"{row['updates']:,}",
              f"{row['seconds']:.0f}", row["error"] or row["state"]] for row in content["trials"]]  # fmt: skip
    total = sum(row["seconds"] for row in content["trials"])
    parts = [
        f"# Sweep: {objective}, {content['direction']}d",
        f"{len(lines)} trials of at most {content['budget']}, {total:,.0f} seconds of training in all.",
        _table(head, lines),
    ]
    if content["retrained"]:
        seeds = list(content["retrained"][0]["scores"])
        rows = [[one["name"], *_cells(one["values"], flags), *(_number(one["scores"][seed]) for seed in seeds),
                 _number(one["mean"])] for one in content["retrained"]]  # fmt: skip
        head = ["", *(flag.lstrip("-") for flag in flags), *(f"seed {seed}" for seed in seeds), "mean"]
        parts += ["## With other seeds", _table(head, rows), content["verdict"]]
    if content["command"]:
        parts += ["## The best trial's command", f"```\n{content['command']}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _name(row: Dict[str, Any]) -> str:
    return f"{row['trial']} ({DEFAULT})" if row["given"] else str(row["trial"])


def _cells(values: Dict[str, Any], flags: Sequence[str]) -> List[str]:
    return [written(values[flag]) if flag in values else "" for flag in flags]


def _number(value: Optional[float]) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
