"""`kd-plugin decode` as a user runs it: beside fairseq-generate, killed for real, in several processes."""

import pathlib
import random
import re
import shutil
import time

import pytest

from kd_plugin.corpus.translations import Translations
from kd_plugin.files.sharded_folder import MANIFEST
from tests.support import run, run_together, start

SEARCH = ["--beam", 3, "--nbest", 2]


def command(workspace, folder, *flags):
    common = ["--path", workspace.teacher, "--gen-subset", "train", "--remove-bpe", "none", "--shard-sentences", 60]
    return ["kd-plugin", "decode", workspace.data, *common, "--max-tokens", 400, *SEARCH, "--output", folder, *flags]


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".jsonl")}


@pytest.fixture(scope="module")
def decoded(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoded") / "out"
    run(*command(workspace, folder))
    return folder


def test_same_translations_and_scores_as_fairseq_generate(workspace, decoded):
    output = run(
        "fairseq-generate", workspace.data, "--path", workspace.teacher, "--gen-subset", "train", "--cpu",
        "--user-dir", "kd_plugin", "--task", "translation", *SEARCH, "--max-tokens", 400,
        "--required-batch-size-multiple", 1,
        cwd=pathlib.Path(__file__).parents[2],
    ).stdout  # fmt: skip
    theirs = {}
    for line, score, text in re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", output, flags=re.MULTILINE):
        theirs.setdefault(int(line), []).append((text, float(score)))
    ours = dict(Translations(decoded).lines())
    assert sorted(ours) == sorted(theirs) == list(range(300))
    for line, record in ours.items():
        assert [h.text for h in record.hypotheses] == [text for text, _ in theirs[line]]
        # fairseq-generate prints base-2 logarithms
        assert [h.score for h in record.hypotheses] == pytest.approx([s * 0.6931472 for _, s in theirs[line]], abs=1e-4)


def test_score_gives_references_what_fairseq_generate_gives_them(workspace, tmp_path):
    output = run(
        "fairseq-generate", workspace.data, "--path", workspace.teacher, "--gen-subset", "train", "--cpu",
        "--user-dir", "kd_plugin", "--task", "translation", "--score-reference", "--max-tokens", 400,
        "--required-batch-size-multiple", 1,
        cwd=pathlib.Path(__file__).parents[2],
    ).stdout  # fmt: skip
    theirs = dict(re.findall(r"^H-(\d+)\t(\S+)\t", output, flags=re.MULTILINE))
    lines = [(workspace.folder / f"train.{lang}").read_text().splitlines() for lang in ("en", "de")]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{source}\t{target}\n" for source, target in zip(*lines)))
    run("kd-plugin", "import", pairs, "-s", "en", "-t", "de", "--output", tmp_path / "in")
    run(
        "kd-plugin", "score", tmp_path / "in", "--path", workspace.teacher, "--output", tmp_path / "out", "--workers", 2
    )
    # a source that comes again is one record, and has the same target here
    expected = {source: float(theirs[str(line)]) * 0.6931472 for line, source in enumerate(lines[0])}
    ours = {r.source: h.score for r in Translations(tmp_path / "out").records() for h in r.hypotheses}
    assert ours == pytest.approx(expected, abs=1e-4) and len(theirs) == 300


def test_score_of_the_teacher_is_its_search_s(workspace, tmp_path, decoded):
    run("kd-plugin", "score", decoded, "--path", workspace.teacher, "--output", tmp_path / "out")
    found, scored = (list(Translations(folder).records()) for folder in (decoded, tmp_path / "out"))
    for one, other in zip(found, scored):
        assert one.ids == other.ids and [h.text for h in one.hypotheses] == [h.text for h in other.hypotheses]
        assert [h.score for h in other.hypotheses] == pytest.approx([h.score for h in one.hypotheses], abs=1e-4)


def test_killed_and_restarted_no_shard_is_decoded_twice(workspace, tmp_path, decoded):
    draw = random.Random(11)
    folder = tmp_path / "out"
    kept = {}
    for _ in range(2):
        process = start(*command(workspace, folder))
        before = len(kept)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(folder.glob("shard-*.json"))) > before:
                time.sleep(draw.random() * 0.3)
                break
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=60)
        now = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.json")}
        assert {name: now[name] for name in kept} == kept, "a finished shard was written again"
        assert len(now) > before or (folder / MANIFEST).exists()
        kept = now
    run(*command(workspace, folder))
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert tree(folder) == tree(decoded) and not list(folder.glob(".*.tmp"))


def test_jobs_of_an_array_and_processes_make_the_same(workspace, tmp_path, decoded):
    run_together(
        command(workspace, tmp_path / "array", "--num-shards", 2, "--shard-id", 0),
        command(workspace, tmp_path / "array", "--num-shards", 2, "--shard-id", 1),
    )
    run(*command(workspace, tmp_path / "processes", "--workers", 2))
    assert tree(tmp_path / "array") == tree(tmp_path / "processes") == tree(decoded)


def test_ctranslate2_translates_as_fairseq_does(workspace, tmp_path, decoded):
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    run(*command(workspace, tmp_path / "out", "--engine", "ctranslate2"))
    ours, theirs = (dict(Translations(folder).lines()) for folder in (tmp_path / "out", decoded))
    same = [ours[line].hypotheses[0].text == theirs[line].hypotheses[0].text for line in theirs]
    assert sum(same) >= 0.98 * len(same)


def test_data_of_another_dictionary_is_refused(workspace, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in workspace.data.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    words = (data / "dict.en.txt").read_text().splitlines(keepends=True)
    (data / "dict.en.txt").write_text("".join(words[1::-1] + words[2:]))
    # the teacher's own dictionary, beside it
    teacher = tmp_path / "teacher" / workspace.teacher.name
    shutil.copytree(workspace.teacher.parent, teacher.parent)
    for lang in ("en", "de"):
        shutil.copy(workspace.data / f"dict.{lang}.txt", teacher.parent)
    instead = {workspace.data: data, workspace.teacher: teacher}
    arguments = [instead.get(argument, argument) for argument in command(workspace, tmp_path / "out")]
    result = run(*arguments, check=False)
    assert result.returncode == 1 and "first difference: index 4" in result.stdout
    assert not list((tmp_path / "out").glob("shard-*"))
