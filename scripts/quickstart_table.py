#!/usr/bin/env python3
"""Prints one table with the results of kd-plugin evaluate and the cost of the trainings.

quickstart_table.py EVALUATION.json MODEL=LABEL…

The trainings' cost is in MODEL/cpu-seconds; a model that was exported and not trained has none. Models that were not
evaluated are left out.
"""

import argparse
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple


class Row(NamedTuple):
    label: str
    bleu: float
    chrf: float
    parameters: int
    speed: float  # sentences per second
    cpu_seconds: Optional[float]


def row(label: str, model: Dict[str, Any]) -> Row:
    scores = {score["metric"]: score["value"] for score in model["scores"]}
    path = os.path.join(model["name"], "cpu-seconds")
    cpu_seconds = None
    if os.path.isfile(os.path.join(model["name"], "checkpoint_last.pt")):
        with open(path, encoding="utf-8") as file:
            cpu_seconds = sum(float(part) for part in file.read().split())
    speed = model["speed"]["cpu"]["sentences_per_second"]
    return Row(label, scores["BLEU"], scores["chrF2"], model["parameters"], speed, cpu_seconds)


def render(rows: List[Row]) -> str:
    head = ("", "BLEU", "chrF", "parameters", "sentences/s", "CPU seconds")
    cells = [head] + [
        (
            row.label,
            f"{row.bleu:.1f}",
            f"{row.chrf:.1f}",
            f"{row.parameters:,}",
            f"{row.speed:.0f}",
            "" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]

    def line(values: Tuple[str, ...]) -> str:
        return "  ".join([values[0].ljust(widths[0])] + [v.rjust(w) for v, w in zip(values[1:], widths[1:])])

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(cells[0]), rule] + [line(values) for values in cells[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation")
    parser.add_argument("models", nargs="+", metavar="MODEL=LABEL")
    args = parser.parse_args()

    with open(args.evaluation, encoding="utf-8") as file:
        evaluation = json.load(file)
    models = {model["name"]: model for model in evaluation["models"]}
    labels = dict(model.split("=", 1) for model in args.models)
    rows = [row(label, models[name]) for name, label in labels.items() if name in models]
    print(
        f"{evaluation['tests'][0]['lines']} test sentences. sentences/s: translation on one CPU thread. CPU seconds: "
        "the whole training command, user and system, on all cores."
    )
    for score in models["student"]["scores"]:
        if score["metric"] in ("BLEU", "chrF2"):
            print(f"{score['metric']:5} {score['signature']}")
    print("\n" + render(rows))


if __name__ == "__main__":
    main()
