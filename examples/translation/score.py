"""Scores what fairseq-generate wrote: hypotheses by sentence id, their number checked, sacreBLEU with its signature."""

import argparse
import os

import sacrebleu
from corpus import read_lines, write_lines

INPUTS = ("generated", "reference")

HEADER = "| model | test set | BLEU | chrF | signature |\n|---|---|---|---|---|\n"


def hypotheses_by_id(generated, count):
    """The detokenised best hypotheses (D lines), in test-set order; fairseq writes them sorted by length."""
    found = {}
    with open(generated, encoding="utf-8", newline="\n") as file:
        for line in file:
            if line.startswith("D-"):
                number, _, text = (line.rstrip("\n").split("\t") + [""])[:3]
                if int(number[2:]) in found:
                    raise SystemExit(f"{generated}: two hypotheses for sentence {number[2:]}; run it with --nbest 1")
                found[int(number[2:])] = text
    if sorted(found) != list(range(count)):
        raise SystemExit(f"{generated}: {len(found)} hypotheses for {count} references; nothing was scored")
    return [" ".join(found[number].split()) for number in range(count)]


def same(one, other):
    there = os.path.exists(one) and os.path.exists(other)
    return os.path.samefile(one, other) if there else os.path.realpath(one) == os.path.realpath(other)


def check_outputs(args, hypotheses):
    """Only the same translations may be overwritten, and rows are added only to a table of such rows."""
    for flag, others in (("hypotheses", INPUTS), ("results", (*INPUTS, "hypotheses"))):
        for other in others:
            if same(getattr(args, flag), getattr(args, other)):
                raise SystemExit(f"--{flag} {getattr(args, flag)} is also the file of {other}; give another name")
    if os.path.lexists(args.hypotheses) and read_lines(args.hypotheses) != hypotheses:
        raise SystemExit(f"--hypotheses {args.hypotheses} already contains other text; remove it, or give another name")
    if os.path.lexists(args.results):
        with open(args.results, encoding="utf-8", errors="replace") as file:
            content = file.read()
        if content and HEADER not in content:
            raise SystemExit(f"--results {args.results} is not a table of this script; give another name")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generated", help="generate-TEST.txt")
    parser.add_argument("--reference", required=True, help="raw text, one sentence per line")
    parser.add_argument("--hypotheses", required=True, help="file to write the translations to")
    parser.add_argument("--name", required=True)
    parser.add_argument("--test-set", required=True)
    parser.add_argument("--results", required=True, help="Markdown table to append to")
    args = parser.parse_args()

    references = read_lines(args.reference)
    hypotheses = hypotheses_by_id(args.generated, len(references))
    check_outputs(args, hypotheses)
    if not os.path.lexists(args.hypotheses):
        write_lines(args.hypotheses, hypotheses)
    scores, signatures = [], []
    for metric in (sacrebleu.BLEU(), sacrebleu.CHRF()):
        scores.append(f"{metric.corpus_score(hypotheses, [references]).score:.1f}")
        signatures.append(f"`{metric.get_signature()}`")
    cells = [args.name, args.test_set] + scores + [" ".join(signatures)]
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    new = not os.path.exists(args.results) or not os.path.getsize(args.results)
    with open(args.results, "a", encoding="utf-8") as file:
        file.write(HEADER * new + row)
    print(row, end="")


if __name__ == "__main__":
    main()
