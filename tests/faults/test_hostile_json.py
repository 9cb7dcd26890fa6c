"""JSON that somebody has changed, with the right checksums: named and refused, wherever it is read."""

import hashlib
import json

import pytest

from kd_plugin.cache.manifest import Manifest as CacheManifest
from kd_plugin.checkpoints.exported import read_description
from kd_plugin.checkpoints.overrides import parse_overrides
from kd_plugin.corpus.translations import Manifest, Shard, Translations, TranslationsFolder
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, read_json
from kd_plugin.files.json_text import parse_json
from kd_plugin.files.sharded_folder import MANIFEST, Plan
from tests.unit.translation_folders import record, refusal, write_folder

DEEP = "[" * 100_000
HOSTILE = [
    DEEP,
    DEEP + "]" * 100_000,
    "[" * 500 + "]" * 500,
    "9" * 5000,
    '{"a": 1, "a": 2}',
    '{"a": "\\ud800"}',
    "{",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:9] + str(len(text)))
def test_hostile_json_is_refused_by_every_reader(text, tmp_path, capsys):
    with pytest.raises(ValueError):
        parse_json(text)
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(KDPluginError, match="evaluation.json.*Remedy: again"):
        read_json(path, "Remedy: again")
    assert str(path) in refusal(capsys, "report", "--evaluation", path, "--output", tmp_path / "r.html")
    for reader, name in ((Manifest, MANIFEST), (CacheManifest, "manifest.json")):
        (tmp_path / name).write_text(text)
        with pytest.raises(KDPluginError, match="manifest.json.*Remedy"):
            reader.read(tmp_path)
    (tmp_path / "shard-00000.json").write_text(text)
    assert TranslationsFolder(tmp_path, "x").read_part("shard-00000") is None  # as if a crash had left half of it
    (tmp_path / "kd_plugin.json").write_text(text)
    assert read_description(tmp_path) == {}  # as of a model that something else has made
    if text:  # nothing is no overrides
        with pytest.raises(KDPluginError, match="--model-overrides .*Remedy: ") as refused:
            parse_overrides(text, "--model-overrides")
        assert len(str(refused.value)) < 400
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    command = ["import", tmp_path / "rows.jsonl", "-s", "en", "-t", "de", "--output", tmp_path / "out"]
    assert "rows.jsonl" in refusal(capsys, *command) and not (tmp_path / "out").exists()


GOOD = {"ids": [0], "source": "A dog", "hypotheses": [{"text": "Ein Hund", "score": -0.5}]}


def folder_with(tmp_path, line, **manifest):
    """A folder whose only shard is this line, with the checksums that belong to it."""
    content = line if isinstance(line, bytes) else (line + "\n").encode("utf-8")
    shard = Shard("shard-00000", hashlib.sha256(content).hexdigest(), 1, 1, 1, {})
    shard.path(tmp_path).write_bytes(content)
    Manifest({"verb": "test"}, ["en", "de"], 1, [shard]).write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        {**GOOD, "ids": "0"},
        {**GOOD, "ids": []},
        {**GOOD, "ids": [True]},
        {**GOOD, "ids": [0.0]},
        {**GOOD, "ids": None},
        {**GOOD, "source": 5},
        {**GOOD, "source": "two\nlines"},
        {**GOOD, "source": "half \ud800"},
        {**GOOD, "hypotheses": None},
        {**GOOD, "hypotheses": "Ein Hund"},
        {**GOOD, "hypotheses": {"text": "Ein Hund"}},
        {**GOOD, "hypotheses": [{"text": 7, "score": 0}]},
        {**GOOD, "hypotheses": [{"text": "Ein\rHund", "score": 0}]},
        {**GOOD, "hypotheses": [{"text": "Ein Hund", "score": "x"}]},
        {**GOOD, "hypotheses": [{"text": "Ein Hund", "score": True}]},
        {**GOOD, "hypotheses": [{"text": "Ein Hund", "score": float("nan")}]},
        {**GOOD, "hypotheses": [{"text": "Ein Hund"}]},
        {**GOOD, "system": ["a"]},
        {"ids": [0]},
        [GOOD],
        None,
        DEEP,
        b"\xff\xfe\n",
        "9" * 5000,
        "",
    ],
    ids=lambda line: str(line)[:60],
)
def test_a_shard_with_right_checksums_and_wrong_content_is_named(line, tmp_path, capsys):
    text = line if isinstance(line, (str, bytes)) else json.dumps(line)
    folder = folder_with(tmp_path / "in" if (tmp_path / "in").mkdir() is None else tmp_path, text)
    with pytest.raises(KDPluginError, match="shard-00000.jsonl, line 1: not a record of translations.*Remedy"):
        list(Translations(folder).records())
    assert "shard-00000.jsonl, line 1" in refusal(capsys, "filter", folder, "--output", tmp_path / "out")


def test_what_is_right_is_read_as_before(tmp_path):
    (found,) = Translations(folder_with(tmp_path, json.dumps(GOOD))).records()
    assert found == record(0, "A dog", ("Ein Hund", -0.5))
    (found,) = Translations(folder_with(tmp_path, json.dumps({**GOOD, "system": "x"}))).records()
    assert found.system == "x"


@pytest.mark.parametrize(
    "change",
    [
        {"input_lines": "5"},
        {"input_lines": True},
        {"input_lines": 10**30},
        {"languages": ["en"]},
        {"languages": ["en", 5]},
        {"languages": "en"},
        {"identity": []},
        {"shards": {"a": 1}},
        {"shards": ["shard-00000"]},
        {"shards": [{"name": "../../x", "sha256": "", "records": 0, "lines": 0, "hypotheses": 0, "counts": {}}]},
        {"shards": [{"name": "shard-00000", "sha256": "", "records": "1", "lines": 0, "hypotheses": 0, "counts": {}}]},
        {"shards": [{"name": "shard-00000", "sha256": "", "records": 1, "lines": 0, "hypotheses": 0, "counts": 5}]},
        {"shards": [{"name": "shard-00000", "more": 1}]},
    ],
    ids=str,
)
def test_a_manifest_with_the_right_digest_and_wrong_types_is_refused(change, tmp_path):
    write_folder(tmp_path, [record(0, "A dog", "Ein Hund")])
    content = {**json.loads((tmp_path / MANIFEST).read_text()), **change}
    content.pop("sha256")
    content["sha256"] = digest_of(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(KDPluginError, match="manifest.json.*Remedy"):
        Manifest.read(tmp_path)


def test_a_changed_part_is_as_good_as_none(tmp_path):
    folder, plan = TranslationsFolder(tmp_path, "id"), Plan(0, 0, 1, 1)
    shard = folder.write_records(plan.name, [record(0, "A dog", "Ein Hund")])
    assert folder.finished(plan) == shard
    for change in ({"records": "1"}, {"counts": None}, {"name": 5}, {"more": 1}):
        folder.write_part(plan.name, {**shard._asdict(), **change})
        assert folder.finished(plan) is None


def test_a_description_with_wrong_types_is_refused_by_name(tmp_path):
    for value in ("63", 0, -1, True, 10**30, [63]):
        (tmp_path / "kd_plugin.json").write_text(json.dumps({"max_source_tokens": value}))
        with pytest.raises(KDPluginError, match="kd_plugin.json: max_source_tokens is .*Remedy"):
            read_description(tmp_path)


def test_what_verbs_share_names_a_flag_of_all_of_them_or_says_whose_it_is(tmp_path):
    from kd_plugin.cache.data import Split
    from kd_plugin.checkpoints.read import check_file

    with pytest.raises(KDPluginError) as refused:
        Split(str(tmp_path), "train", "en", "de").prefixes()
    assert "--" not in str(refused.value)
    with pytest.raises(KDPluginError) as refused:
        check_file(str(tmp_path / "none.pt"))
    assert "--" not in str(refused.value)
