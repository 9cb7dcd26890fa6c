"""`kd-plugin select`: of a teacher's n-best translations keep those that teach best.

Sequence-level interpolation (Kim & Rush 2016, section 3.3) keeps the one nearest to the reference: what the teacher can
say and the corpus wants to hear.
"""

import argparse
import functools
import heapq
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from sacrebleu.metrics import BLEU

from kd_plugin.cli.translations_folder import add_output_arguments, check_output, finish_output
from kd_plugin.corpus.languages import bleu_tokenizer
from kd_plugin.corpus.raw_text import TextLines
from kd_plugin.corpus.translations import Record, Translations, Writer, scores_of
from kd_plugin.curate.criteria import METRICS, Candidates, Chooser, Settings, best, signature
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.scores import check_tokenizer
from kd_plugin.runners.processes import add_workers_argument, mapped, workers_for
from kd_plugin.runners.progress import progress

CRITERIA = ("reference", "score", "mbr")

Choice = Tuple[int, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input_dir", metavar="INPUT_DIR", help="translations: kd-plugin decode or import")
    parser.add_argument(
        "--by",
        required=True,
        choices=CRITERIA,
        help="reference: nearest to --reference (sequence-level interpolation); score: the model's own; mbr: highest "
        "mean chrF with the other translations of the sentence (minimum Bayes risk)",
    )
    parser.add_argument("--reference", metavar="FILE", help="raw text, a line for each line of the corpus")
    parser.add_argument("--metric", choices=list(METRICS), help="nearness to the reference (default: bleu)")
    parser.add_argument(
        "--tokenize",
        choices=BLEU.TOKENIZERS,
        help="sacreBLEU's tokenizer for --metric bleu (default: the target language's, as kd-plugin evaluate has it)",
    )
    parser.add_argument("--top", type=int, default=1, metavar="N", help="keep the N best (default: %(default)s)")
    add_workers_argument(parser, 10_000)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; nothing else than errors ends it early."""
    _check(args)
    translations = Translations(args.input_dir)
    translations.check_any()
    manifest = translations.manifest
    references = _references(args, translations)
    settings = Settings(_metric(args), manifest.languages[1], args.top, args.tokenize)
    if references is not None and settings.metric == "bleu" and args.tokenize is None:
        tokenizer = bleu_tokenizer(settings.language, (references[line] for line in range(len(references))))
        if tokenizer.note:
            print(f"kd-plugin select: {'warning: ' * tokenizer.doubtful}{tokenizer.note}", file=sys.stderr)
    identity: Dict[str, Any] = {"verb": "select", "by": args.by, "top": args.top, "input": manifest.digest()}
    if args.by != "score":
        identity["metric"] = signature(settings)
    if references is not None:
        identity["reference_sha256"] = references.sha256
    check_output(args, manifest.languages, identity)
    writer = Writer(Path(args.output), identity, manifest.languages, manifest.input_lines)
    counts = {"lines_without_translation": 0, "lines_with_another_than_the_first": 0, "records_split": 0}
    chosen = (
        _by_score(translations, args.top)
        if args.by == "score"
        else _by_metric(translations, references, settings, args)
    )
    for record in in_order(chosen, counts):
        writer.add(record)
    if references is not None:
        references.close()
    finish_output(writer.finish(counts), args)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.by == "reference" and args.reference is None:
        raise KDPluginError("--by reference needs references. Remedy: --reference FILE, or --by mbr")
    for name in ("reference", "metric"):
        if args.by != "reference" and getattr(args, name) is not None:
            raise KDPluginError(f"--{name} goes with --by reference, not with --by {args.by}. Remedy: leave one out")
    if args.tokenize is not None and _metric(args) != "bleu":
        raise KDPluginError("--tokenize goes with --metric bleu, chrF needs none. Remedy: leave it out")
    check_tokenizer(args.tokenize)


def _metric(args: argparse.Namespace) -> str:
    return (args.metric or "bleu") if args.by == "reference" else "chrf"


def _references(args: argparse.Namespace, translations: Translations) -> Optional[TextLines]:
    if args.reference is None:
        return None
    references = TextLines(args.reference, "--reference")
    expected = translations.manifest.input_lines
    if len(references) != expected:
        raise KDPluginError(
            f"--reference {args.reference}: {len(references):,} lines, but the translated corpus has {expected:,}. "
            "Remedy: the target side of the same corpus, line by line"
        )
    return references


def _by_score(translations: Translations, top: int) -> Iterator[Tuple[Record, List[Choice]]]:
    for record in progress(translations.records(), len(translations), "select"):
        scores = scores_of(record, translations.folder, "--by mbr or --by reference")
        yield record, [best(scores, top)] * len(record.ids)


def _by_metric(
    translations: Translations, references: Optional[TextLines], settings: Settings, args: argparse.Namespace
) -> Iterator[Tuple[Record, List[Choice]]]:
    def sentences() -> Iterator[Tuple[Any, Candidates]]:
        for record in progress(translations.records(), len(translations), "select"):
            # of each id, and a line's number among the different ones: many ids may share a reference
            texts = [] if references is None else [references[line] for line in record.ids]
            number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            which = [number[text] for text in texts] or [0] * len(record.ids)
            yield (record, which), Candidates([h.text for h in record.hypotheses], list(number))

    workers = workers_for(args, len(translations))
    for (record, which), choices in mapped(sentences(), functools.partial(Chooser, settings), workers):
        yield record, [choices[i] for i in which]


def in_order(chosen: Iterator[Tuple[Record, List[Choice]]], counts: Dict[str, int]) -> Iterator[Record]:
    """Records with the translations chosen, by their first id; one with several choices becomes several.

    Args:
        chosen: records by their first id, each with a choice (positions of translations, best first) for each id
        counts: is added to
    """
    waiting: List[Tuple[int, Record]] = []  # by their first id, which no two share
    for record, choices in chosen:
        while waiting and waiting[0][0] < record.ids[0]:
            yield heapq.heappop(waiting)[1]
        lines: Dict[Choice, List[int]] = {}
        for line, choice in zip(record.ids, choices):
            lines.setdefault(choice, []).append(line)
            if not choice:
                counts["lines_without_translation"] += 1
            elif choice[0] != 0:
                counts["lines_with_another_than_the_first"] += 1
        counts["records_split"] += len(lines) > 1
        for choice, ids in lines.items():
            hypotheses = [record.hypotheses[i] for i in choice]
            heapq.heappush(waiting, (ids[0], record._replace(ids=ids, hypotheses=hypotheses)))
    while waiting:
        yield heapq.heappop(waiting)[1]
