"""Selects the best of a teacher's n-best translations.

Sequence-level interpolation (Kim & Rush 2016, section 3.3) keeps the one most similar to the reference: a translation
that the teacher finds likely and that is close to the corpus.
"""

import functools
import heapq
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from kd_plugin.corpus.destination import Destination
from kd_plugin.corpus.hypotheses import Record, scores_of
from kd_plugin.corpus.languages import bleu_tokenizer
from kd_plugin.corpus.raw_text import TextLines
from kd_plugin.corpus.translations import Translations, Writer
from kd_plugin.curate.criteria import Candidates, Chooser, Settings, best, signature
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.scores import check_tokenizer
from kd_plugin.runners.local import mapped, workers_for
from kd_plugin.runners.progress import progress

CRITERIA = ("reference", "score", "mbr")
SENTENCES_A_WORKER = 10_000

Choice = Tuple[int, ...]


class Selection(NamedTuple):
    """The options of `kd-plugin select`; metric and tokenize: None if not given."""

    input_dir: str
    by: str
    reference: Optional[str]
    metric: Optional[str]
    tokenize: Optional[str]
    top: int
    workers: int
    to: Destination


def select(args: Selection) -> None:
    """Writes a folder with the selected translations."""
    _check(args)
    translations = Translations(Path(args.input_dir))
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
    args.to.check(manifest.languages, identity)
    writer = Writer(Path(args.to.output), identity, manifest.languages, manifest.input_lines)
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
    args.to.finish(writer.finish(counts))


def _check(args: Selection) -> None:
    if args.by == "reference" and args.reference is None:
        raise KDPluginError("--by reference needs references. Remedy: --reference FILE, or --by mbr")
    for name in ("reference", "metric"):
        if args.by != "reference" and getattr(args, name) is not None:
            raise KDPluginError(f"--{name} goes with --by reference, not with --by {args.by}. Remedy: leave one out")
    if args.tokenize is not None and _metric(args) != "bleu":
        raise KDPluginError("--tokenize goes with --metric bleu; chrF needs no tokenizer. Remedy: leave it out")
    check_tokenizer(args.tokenize)


def _metric(args: Selection) -> str:
    return (args.metric or "bleu") if args.by == "reference" else "chrf"


def _references(args: Selection, translations: Translations) -> Optional[TextLines]:
    if args.reference is None:
        return None
    references = TextLines(Path(args.reference), "--reference")
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
    translations: Translations, references: Optional[TextLines], settings: Settings, args: Selection
) -> Iterator[Tuple[Record, List[Choice]]]:
    def sentences() -> Iterator[Tuple[Any, Candidates]]:
        for record in progress(translations.records(), len(translations), "select"):
            # each id's reference, as an index into the distinct ones, since many ids may share a reference
            texts = [] if references is None else [references[line] for line in record.ids]
            number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            which = [number[text] for text in texts] or [0] * len(record.ids)
            yield (record, which), Candidates([h.text for h in record.hypotheses], list(number))

    workers = workers_for(args.workers, len(translations), SENTENCES_A_WORKER)
    for (record, which), choices in mapped(sentences(), functools.partial(Chooser, settings), workers):
        yield record, [choices[i] for i in which]


def in_order(chosen: Iterator[Tuple[Record, List[Choice]]], counts: Dict[str, int]) -> Iterator[Record]:
    """Records with the selected translations, ordered by first id; a record with several choices is split.

    Args:
        chosen: records ordered by first id, each with a choice (positions of translations, best first) per id
        counts: counts to add to
    """
    waiting: List[Tuple[int, Record]] = []  # by first id, which is unique
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
