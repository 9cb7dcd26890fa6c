"""Folders of translations for tests."""

from typing import Dict, List, Sequence

import pytest

from kd_plugin.cli import main
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.translations import Manifest, Translations, Writer


def record(ids, source, *hypotheses, system=None) -> Record:
    """Hypotheses: texts, or (text, score)."""
    pairs = [Hypothesis(h) if isinstance(h, str) else Hypothesis(*h) for h in hypotheses]
    return Record(ids if isinstance(ids, list) else [ids], source, pairs, system)


def write_folder(folder, records: Sequence[Record], input_lines=None, identity=None, shard_records=3) -> Manifest:
    if input_lines is None:
        input_lines = 1 + max((line for r in records for line in r.ids), default=-1)
    writer = Writer(folder, identity or {"verb": "test"}, ["en", "de"], input_lines, shard_records=shard_records)
    for each in records:
        writer.add(each)
    return writer.finish()


def records_of(folder) -> List[Record]:
    return list(Translations(folder).records())


def counts_of(folder) -> Dict[str, int]:
    """Those that are not 0."""
    return {name: count for name, count in Translations(folder).manifest.counts.items() if count}


def texts_by_line(folder) -> Dict[int, List[str]]:
    return {line: [h.text for h in record.hypotheses] for line, record in Translations(folder).lines()}


def run_verb(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def refusal(capsys: "pytest.CaptureFixture[str]", *arguments) -> str:
    """The error of a command that must be refused."""
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert "kd-plugin: error: " in error and "Remedy: " in error and "Traceback" not in error
    return error
