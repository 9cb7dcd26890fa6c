"""Drops translations that would mislead a student, and counts them by rule."""

import functools
import itertools
import math
import sys
from array import array
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from kd_plugin.corpus.destination import Destination
from kd_plugin.corpus.hypotheses import Hypothesis, Record, scores_of
from kd_plugin.corpus.languages import has_spaces
from kd_plugin.corpus.raw_text import checked_sha256, numbered_lines
from kd_plugin.corpus.scripts import check_scripts
from kd_plugin.corpus.translations import Translations, Writer
from kd_plugin.curate.rules import RULES, Flag
from kd_plugin.curate.sentences import Pair, Side
from kd_plugin.errors import KDPluginError, shown
from kd_plugin.runners.local import mapped, workers_for
from kd_plugin.runners.progress import progress

SENTENCES_A_WORKER = 100_000
LOW_SCORE, OTHER_SCORE = "low_score", "low_other_score"  # after all RULES
# shares of all translations in the input, independent of other rules
SCORE_FLAGS = (
    Flag("--min-score", None, "drop translations with a lower score", low=-math.inf),
    Flag(
        "--keep-best",
        None,
        "keep this share of all translations, those with the best own scores: 0.9 drops a tenth",
        1e-6,
        1,
        old="--best-score-share",
    ),
    Flag(
        "--keep-best-by-scores",
        None,
        "keep this share of all translations, those with the best scores in --scores",
        1e-6,
        1,
        old="--best-scores-share",
    ),
)


def rule_flags() -> List[Flag]:
    """The flags of all RULES."""
    return [flag for rule in RULES.values() for flag in rule.flags]


class Thresholds(NamedTuple):
    """own: for the translations' scores; other: for --scores; other_scores: these, by number of the translation"""

    own: float
    other: float
    other_scores: Optional[np.ndarray]


def filter_translations(input_dir: str, options: Any, workers: int, to: Destination) -> None:
    """Writes a folder with the remaining translations, and prints a table of the dropped ones.

    Args:
        options: the flags of RULES and SCORE_FLAGS and --scores, each an attribute
        workers: 0: as many as are worthwhile
    """
    check(options)
    translations = Translations(Path(input_dir))
    translations.check_any()
    manifest = translations.manifest
    chosen = {flag.dest: getattr(options, flag.dest) for flag in (*rule_flags(), *SCORE_FLAGS)}
    identity = {"verb": "filter", "options": chosen, "input": manifest.digest()}
    if options.scores:
        identity["scores_sha256"] = checked_sha256(options.scores, "--scores")
    to.check(manifest.languages, identity)
    thresholds = _thresholds(translations, options)
    dropped = dict.fromkeys((*RULES, LOW_SCORE, OTHER_SCORE), 0)
    lost = {"lines_untranslated_before": 0, "lines_without_translation": 0}
    records = kept(translations, thresholds, options, workers, dropped, lost)
    first = next(records, None)  # before the folder is created
    if first is None:
        raise _nothing_left(dropped, manifest.hypotheses, input_dir)
    writer = Writer(Path(to.output), identity, manifest.languages, manifest.input_lines)
    for record in itertools.chain([first], records):
        writer.add(record)
    result = writer.finish({**{f"dropped_{name}": count for name, count in dropped.items()}, **lost})
    of = manifest.hypotheses
    assert result.hypotheses + sum(dropped.values()) == of, "a translation was neither kept nor dropped"
    assert result.lines + sum(lost.values()) == manifest.lines, "a line was neither kept nor dropped"
    print(_table(dropped, result.hypotheses, of))
    _warn(dropped, of)
    to.finish(result)


def kept(
    translations: Translations,
    thresholds: Thresholds,
    options: Any,
    workers: int,
    dropped: Dict[str, int],
    lost: Dict[str, int],
) -> Iterator[Record]:
    """Records with their remaining translations, without records that have none. dropped, lost: counts to add to"""
    number, languages = 0, translations.manifest.languages
    records = progress(translations.records(), len(translations), "filter")
    works = ((record, (record.source, [h.text for h in record.hypotheses])) for record in records)
    workers = workers_for(workers, len(translations), SENTENCES_A_WORKER)
    for record, rules in mapped(works, functools.partial(Judge, options, languages), workers):
        left = []
        for hypothesis, rule in zip(record.hypotheses, rules):
            rule = rule or _low_score(hypothesis, number, thresholds)
            if rule:
                dropped[rule] += 1
            else:
                left.append(hypothesis)
            number += 1
        if left:
            yield record._replace(hypotheses=left)
        else:
            name = "lines_without_translation" if record.hypotheses else "lines_untranslated_before"
            lost[name] += len(record.ids)


class Judge:
    """For each translation of a sentence, returns the first of RULES that drops it, or None."""

    def __init__(self, options: Any, languages: Sequence[str]):
        self._options = options
        self._spaced = [has_spaces(language) for language in languages]

    def __call__(self, sentence: Tuple[str, List[str]]) -> List[Optional[str]]:
        source, texts = Side(sentence[0], self._spaced[0]), sentence[1]
        pairs = (Pair(source, Side(text, self._spaced[1])) for text in texts)
        return [next((name for name, rule in RULES.items() if rule.drops(pair, self._options)), None) for pair in pairs]


def _low_score(hypothesis: Hypothesis, number: int, thresholds: Thresholds) -> Optional[str]:
    """The threshold that the translation with this number falls below, or None."""
    if hypothesis.score is not None and hypothesis.score < thresholds.own:
        return LOW_SCORE
    if thresholds.other_scores is not None and thresholds.other_scores[number] < thresholds.other:
        return OTHER_SCORE
    return None


def _thresholds(translations: Translations, options: Any) -> Thresholds:
    """Makes a first pass over the translations if a flag needs one; keeps 8 bytes per translation in memory."""
    own, other, other_scores = -math.inf, -math.inf, None
    if options.min_score is not None or options.best_score_share is not None:
        scores = _own_scores(translations)
        own = max(
            -math.inf if options.min_score is None else options.min_score,
            -math.inf if options.best_score_share is None else threshold(scores, options.best_score_share),
        )
    if options.scores:
        other_scores = _other_scores(translations, Path(options.scores))
        other = threshold(other_scores, options.best_scores_share)
    return Thresholds(own, other, other_scores)


def threshold(scores: np.ndarray, share: float) -> float:
    """The lowest score in the best `share`, rounded up to whole scores; ties are all kept.

    Args:
        scores: (translations,) float64
    """
    wanted = math.ceil(share * len(scores) - 1e-9)
    return float(np.partition(scores, len(scores) - wanted)[len(scores) - wanted]) if wanted else math.inf


def _own_scores(translations: Translations) -> np.ndarray:
    scores = array("d")
    for record in progress(translations.records(), len(translations), "scores"):
        scores.extend(scores_of(record, translations.folder, "no --min-score and --keep-best"))
    return np.array(scores)


def _other_scores(translations: Translations, path: Path) -> np.ndarray:
    """The score of every translation in the records' order; in --scores, lines with a repeated source repeat theirs."""
    scores = array("d")
    rows = numbered_lines(path, "--scores", table=True)
    lines = progress(translations.lines(), translations.manifest.lines, "scores")
    expected = ((line, line == record.ids[0]) for line, record in lines for _ in record.hypotheses)
    remedy = "Remedy: the same rows and line numbers as in the PREFIX.scores of kd-plugin … --text PREFIX"
    count = 0
    for line, is_first in expected:
        row = next(rows, None)
        if row is None:
            raise KDPluginError(f"--scores {path}: ends after {count} rows; line {line} has none. {remedy}")
        count, text = row
        try:
            number, score = text.split("\t")
            same, value = int(number) == line, float(score)
        except ValueError as error:
            raise KDPluginError(f"--scores {path}, line {count}: {text!r} is not number TAB score. {remedy}") from error
        if not same or not math.isfinite(value):
            what = f"score {score} is not finite" if same else f"is for line {number} instead of {line}"
            raise KDPluginError(f"--scores {path}, line {count}: {what}. {remedy}")
        if is_first:
            scores.append(value)
    if next(rows, None) is not None:
        raise KDPluginError(f"--scores {path}: more than {count} rows, one per translation. {remedy}")
    return np.array(scores)


def check(options: Any) -> None:
    """Refuses numbers out of range and inconsistent flags; converts script names to upper case."""
    for flag in (*rule_flags(), *SCORE_FLAGS):
        value = getattr(options, flag.dest)
        if isinstance(value, (int, float)) and not flag.low <= value <= flag.high:
            limits = f"{flag.low:g} … {flag.high:g}" if flag.high < math.inf else f"{flag.low:g} or more"
            if math.isinf(flag.low):
                limits = "a number"
            raise KDPluginError(f"{flag.name} {shown(value)}: out of range. Remedy: {limits}")
    if (options.scores is None) != (options.best_scores_share is None):
        raise KDPluginError("--scores and --keep-best-by-scores go together. Remedy: give both or neither")
    options.script = options.script.upper()
    check_scripts("--script", options.script.split(",") if options.script else ())


def _remedy(name: str) -> str:
    """The remedy if dropped_{name} is too high."""
    return RULES[name].remedy() if name in RULES else "a lower --min-score, or a larger share"


def _nothing_left(dropped: Dict[str, int], all_of_them: int, input_dir: str) -> KDPluginError:
    """Prints the table and returns the error."""
    print(_table(dropped, 0, all_of_them))
    worst = max(dropped, key=lambda name: dropped[name])
    return KDPluginError(
        f"{input_dir}: no translation is left, and nothing was written: {worst} dropped {dropped[worst]:,} of "
        f"{all_of_them:,}. Remedy: {_remedy(worst)}"
    )


def _warn(dropped: Dict[str, int], all_of_them: int) -> None:
    """Warns about rules that drop more than half, but not about --min-score and shares, which ask for it."""
    for name in RULES:
        count = dropped[name]
        if 2 * count > all_of_them:
            print(
                f"kd-plugin filter: warning: {name} dropped {count:,} of {all_of_them:,} translations "
                f"({count / all_of_them:.1%}). Remedy, if they are good: {_remedy(name)}",
                file=sys.stderr,
            )


def _table(dropped: Dict[str, int], left: int, all_of_them: int) -> str:
    return "\n".join(
        f"{name.replace('_', ' '):18} {count:12,} {count / max(1, all_of_them):8.2%}"
        for name, count in {**dropped, "kept": left}.items()
    )
