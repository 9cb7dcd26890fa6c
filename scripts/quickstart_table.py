#!/usr/bin/env python3
"""Score what fairseq-generate wrote against the raw references and print one table.

quickstart_table.py REFERENCES RUN=LABEL…

For every RUN it reads logs/RUN.log and RUN/cpu-seconds of the training and RUN-test/generate-test.txt.
"""

import argparse
import os
import re
from typing import Dict, List, NamedTuple, Tuple

from sacrebleu.metrics import BLEU, CHRF


class Row(NamedTuple):
    label: str
    bleu: float
    chrf: float
    parameters: int
    cpu_seconds: float


def read(*parts: str) -> str:
    with open(os.path.join(*parts), encoding="utf-8") as file:
        return file.read()


def hypotheses(generated: str, expected: int) -> List[str]:
    """The H- lines in the order of the test set. Raises SystemExit where fairseq-generate left a sentence out."""
    found: Dict[int, str] = {}
    for number, text in re.findall(r"^H-(\d+)\t[^\t\n]*\t(.*)$", generated, flags=re.MULTILINE):
        found[int(number)] = text
    if sorted(found) != list(range(expected)):
        raise SystemExit(f"{len(found)} hypotheses for {expected} references: fairseq-generate left sentences out")
    return [found[number] for number in range(expected)]


def parameters(log: str) -> int:
    found = re.search(r"num\. shared model params: ([\d,]+)", log)
    if found is None:
        raise SystemExit("the training log names no number of parameters")
    return int(found.group(1).replace(",", ""))


def render(rows: List[Row]) -> str:
    head = ("", "BLEU", "chrF", "parameters", "CPU seconds")
    cells = [head] + [
        (row.label, f"{row.bleu:.1f}", f"{row.chrf:.1f}", f"{row.parameters:,}", f"{row.cpu_seconds:.0f}")
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]

    def line(values: Tuple[str, ...]) -> str:
        return "  ".join([values[0].ljust(widths[0])] + [v.rjust(w) for v, w in zip(values[1:], widths[1:])])

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(cells[0]), rule] + [line(values) for values in cells[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references")
    parser.add_argument("runs", nargs="+", metavar="RUN=LABEL")
    args = parser.parse_args()

    references = read(args.references).splitlines()
    bleu, chrf = BLEU(), CHRF()
    rows = []
    for run in args.runs:
        name, label = run.split("=", 1)
        lines = hypotheses(read(f"{name}-test", "generate-test.txt"), len(references))
        rows.append(
            Row(
                label,
                bleu.corpus_score(lines, [references]).score,
                chrf.corpus_score(lines, [references]).score,
                parameters(read("logs", f"{name}.log")),
                sum(float(part) for part in read(name, "cpu-seconds").split()),
            )
        )
    print(f"{len(references)} test sentences. CPU seconds: the whole training command, user and system, on all cores.")
    print(f"BLEU  {bleu.get_signature()}\nchrF  {chrf.get_signature()}\n")
    print(render(rows))


if __name__ == "__main__":
    main()
