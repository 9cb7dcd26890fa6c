"""Scores what fairseq-generate wrote: hypotheses by sentence id, their number checked, sacreBLEU with its signature."""

import argparse
import os

import sacrebleu
from corpus import read_lines, write_lines

HEADER = "| model | test set | BLEU | chrF | signature |\n|---|---|---|---|---|\n"


def hypotheses_by_id(generated, count):
    """The detokenised best hypotheses (D lines), in the order of the test set; fairseq writes them by length."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generated", help="generate-TEST.txt")
    parser.add_argument("--reference", required=True, help="raw text, one sentence a line")
    parser.add_argument("--hypotheses", required=True, help="file to write the translations to")
    parser.add_argument("--name", required=True)
    parser.add_argument("--test-set", required=True)
    parser.add_argument("--results", required=True, help="Markdown table to append to")
    args = parser.parse_args()

    references = read_lines(args.reference)
    hypotheses = hypotheses_by_id(args.generated, len(references))
    write_lines(args.hypotheses, hypotheses)
    scores, signatures = [], []
    for metric in (sacrebleu.BLEU(), sacrebleu.CHRF()):
        scores.append(f"{metric.corpus_score(hypotheses, [references]).score:.1f}")
        signatures.append(f"`{metric.get_signature()}`")
    cells = [args.name, args.test_set] + scores + [" ".join(signatures)]
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    new = not os.path.exists(args.results)
    with open(args.results, "a", encoding="utf-8") as file:
        file.write(HEADER * new + row)
    print(row, end="")


if __name__ == "__main__":
    main()
