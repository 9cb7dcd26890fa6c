"""Translations on disk: what goes in comes out, in order; what is damaged or half there is refused."""

import errno
import json
import pathlib
import tempfile

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kd_plugin.corpus import parallel_text as text_output
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.parallel_text import write_text
from kd_plugin.corpus.translations import Manifest, Translations, TranslationsFolder, Writer
from kd_plugin.errors import KDPluginError
from kd_plugin.files import atomic as files
from kd_plugin.files.sharded_folder import Plan
from tests.unit.translation_folders import record, records_of, write_folder

AWKWARD = "a\u2028b\u2029c\x85d\x00e\x0bf\x0cg\x1ch\ti 🙂👩‍👧 \ufeff \u200b \\n \" '"
RECORDS = [
    record([0, 4, 5], "A dog.", ("Ein Hund.", -0.5), ("Der Hund.", -1.25)),
    record([1, 3], "A cat.", "Eine Katze.", system="X"),
    record(2, "Nothing."),
    record(6, "A house.", ("Ein Haus.", -2.0)),
]


def no_space(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


@given(st.lists(st.integers(0, 6), max_size=25), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_records_and_lines_come_back_in_order_each_once(corpus, shard_records):
    """corpus: the number of each line's source."""
    by_source = {}
    for line, source in enumerate(corpus):
        by_source.setdefault(source, []).append(line)
    records = [
        Record(ids, f"source {source}", [Hypothesis(f"text {source} {i}", -i / 3) for i in range(source)], "system")
        for source, ids in by_source.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_folder(folder, records, shard_records=shard_records)
        assert (manifest.records, manifest.lines) == (len(records), len(corpus))
        assert records_of(folder) == records
        lines = [(line, found.source) for line, found in Translations(folder).lines()]
    assert lines == [(line, f"source {source}") for line, source in enumerate(corpus)]


def test_any_text_comes_back_as_it_was(tmp_path):
    records = [record(0, AWKWARD, (AWKWARD[::-1], -1.0), ""), record(1, "", "x")]
    write_folder(tmp_path / "t", records)
    assert records_of(tmp_path / "t") == records
    write_text(tmp_path / "t", str(tmp_path / "out" / "train"))
    source, target, scores = ((tmp_path / f"out/train.{end}").read_bytes() for end in ("en", "de", "scores"))
    assert source.decode().split("\n") == [AWKWARD, AWKWARD, "", ""]
    assert target.decode().split("\n") == [AWKWARD[::-1], "", "x", ""]
    assert scores == b"0\t-1\n0\t\n1\t\n"


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\ud800b"])
@pytest.mark.parametrize("side", ["source", "hypothesis"])
def test_what_would_not_be_a_line_of_text_is_not_written(text, side, tmp_path):
    bad = record(7, text, "x") if side == "source" else record(7, "x", text)
    with pytest.raises(KDPluginError, match="sentence 7"):
        write_folder(tmp_path, [bad])
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(KDPluginError, match="sentence 0.*NaN"):
        write_folder(tmp_path, [record(0, "a", ("b", float("nan")))])


def test_a_damaged_shard_gives_no_record_away(tmp_path):
    write_folder(tmp_path, RECORDS, shard_records=2)
    path = tmp_path / "shard-00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Haus", b"Hans"))
    records = Translations(tmp_path).records()
    assert [next(records), next(records)] == RECORDS[:2]
    with pytest.raises(KDPluginError, match="shard-00001.jsonl is damaged.*Remedy"):
        next(records)


def test_a_missing_shard_is_named(tmp_path):
    write_folder(tmp_path, RECORDS, shard_records=2)
    (tmp_path / "shard-00000.jsonl").unlink()
    with pytest.raises(KDPluginError, match="shard-00000.jsonl is missing.*Remedy"):
        records_of(tmp_path)


def edit(content):
    content["input_lines"] = 70


def leave_out_a_shard(content):
    del content["shards"][0]


def lose_a_field(content):
    del content["languages"]


@pytest.mark.parametrize(
    "change, message",
    [
        (edit, "was changed"),
        (leave_out_a_shard, "was changed"),
        (lose_a_field, "not a manifest of translations.*languages"),
        (lambda content: content.update(version=99), "format .*99"),
        (lambda content: content.update(format="x"), "format 'x'"),
    ],
)
def test_an_edited_manifest_is_refused(change, message, tmp_path):
    write_folder(tmp_path, RECORDS)
    content = json.loads((tmp_path / "manifest.json").read_bytes())
    change(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(KDPluginError, match=message):
        Translations(tmp_path)


def test_what_is_not_finished_or_not_there_is_refused(tmp_path):
    writer = Writer(tmp_path / "t", {}, ["en", "de"], 7, shard_records=1)
    writer.add(RECORDS[0])
    with pytest.raises(KDPluginError, match="not finished"):
        Translations(tmp_path / "t")
    with pytest.raises(KDPluginError, match="does not exist"):
        Translations(tmp_path / "u")


@pytest.mark.parametrize(
    "ids", [[[1], [0]], [[0], [0]], [[2, 1]], [[0, 0]], [[]], [[0, 9]], [[-1]]], ids=lambda ids: str(ids)
)
def test_ids_that_cannot_be_are_refused(ids, tmp_path):
    write_folder(tmp_path, [record(each, "a", "b") for each in ids], input_lines=9)
    with pytest.raises(KDPluginError, match="ids"):
        records_of(tmp_path)


def test_a_line_that_two_records_claim_is_refused(tmp_path):
    write_folder(tmp_path, [record([0, 2], "a", "b"), record([1, 2], "c", "d")])
    with pytest.raises(KDPluginError, match="two translations of line 2"):
        list(Translations(tmp_path).lines())


def test_a_manifest_that_counts_other_lines_than_there_are_is_refused(tmp_path):
    shard = TranslationsFolder(tmp_path, "identity").write_records("shard-00000", RECORDS)
    Manifest({}, ["en", "de"], 7, [shard._replace(lines=9)]).write(tmp_path)
    with pytest.raises(KDPluginError, match="7 lines instead of 9"):
        records_of(tmp_path)


def test_other_translations_are_not_written_over(tmp_path):
    write_folder(tmp_path, RECORDS, identity={"a": 1})
    with pytest.raises(KDPluginError, match="--output .* already holds other translations"):
        Writer(tmp_path, {"a": 2}, ["en", "de"], 7)
    assert records_of(tmp_path) == RECORDS


def test_neither_are_those_of_a_job_that_is_not_finished(tmp_path):
    another = TranslationsFolder(tmp_path, "another identity")
    another.write_records("shard-00000", RECORDS)
    with pytest.raises(KDPluginError, match="shard-00000.json was written .* with other options"):
        Writer(tmp_path, {"a": 2}, ["en", "de"], 7)
    assert another.finished(Plan(0, 0, 4, 4)).records == 4


def test_the_same_command_writes_the_same_again(tmp_path):
    first = write_folder(tmp_path, RECORDS)
    (tmp_path / ".shard-00000.jsonl.0123abcd.tmp").write_text("of a killed run")
    assert write_folder(tmp_path, RECORDS) == first
    assert not list(tmp_path.glob(".*"))


def test_the_manifest_is_gone_while_it_is_written_again(tmp_path):
    write_folder(tmp_path, RECORDS)
    Writer(tmp_path, {"verb": "test"}, ["en", "de"], 7)
    with pytest.raises(KDPluginError, match="not finished"):
        Manifest.read(tmp_path)


def test_a_full_disk_leaves_neither_shard_nor_manifest(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space)
        with pytest.raises(KDPluginError, match="No space left on device.*Remedy"):
            write_folder(tmp_path, RECORDS)
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path, RECORDS)
    assert records_of(tmp_path) == RECORDS


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_text_is_there_as_a_whole_or_not_at_all(failing, tmp_path, monkeypatch):
    write_folder(tmp_path / "t", RECORDS)
    calls = []

    def fails_once(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            no_space(descriptor)

    monkeypatch.setattr(text_output.os, "fsync", fails_once)
    with pytest.raises(KDPluginError, match="--text .*No space left on device.*Remedy"):
        write_text(tmp_path / "t", str(tmp_path / "out" / "train"))
    assert list((tmp_path / "out").iterdir()) == []


def test_text_is_not_there_when_its_translations_are_damaged(tmp_path):
    write_folder(tmp_path / "t", RECORDS, shard_records=2)
    (tmp_path / "t" / "shard-00001.jsonl").unlink()
    with pytest.raises(KDPluginError, match="missing"):
        write_text(tmp_path / "t", str(tmp_path / "out" / "train"))
    assert list((tmp_path / "out").iterdir()) == []


def test_no_text_where_one_of_its_files_cannot_be_placed(tmp_path):
    write_folder(tmp_path / "t", RECORDS)
    (tmp_path / "out" / "train.de").mkdir(parents=True)
    with pytest.raises(KDPluginError, match="--text"):
        write_text(tmp_path / "t", str(tmp_path / "out" / "train"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.de"]


def test_no_text_of_a_language_into_itself(tmp_path):
    writer = Writer(tmp_path, {}, ["en", "en"], 1)
    writer.add(record(0, "a", "b"))
    writer.finish()
    with pytest.raises(KDPluginError, match="its target language en is also the source language"):
        write_text(tmp_path, str(tmp_path / "train"))


def test_text_has_the_lines_of_repeated_sources_where_they_belong(tmp_path):
    write_folder(tmp_path / "t", RECORDS)
    paths = write_text(tmp_path / "t", str(tmp_path / "train"))
    source, target, scores = (pathlib.Path(path).read_text().splitlines() for path in paths)
    dog, cat = ["Ein Hund.", "Der Hund."], ["Eine Katze."]
    assert target == dog + cat + cat + dog + dog + ["Ein Haus."]
    assert source == ["A dog."] * 2 + ["A cat."] * 2 + ["A dog."] * 4 + ["A house."]
    dogs = ["{}\t-0.5", "{}\t-1.25"]
    expected = [*dogs, "1\t", "3\t", *(d.format(4) for d in dogs), *(d.format(5) for d in dogs), "6\t-2"]
    assert scores == [row.format(0) for row in expected]
