"""Caches that do not fit, or are damaged: refused before the first update, the file or flag named."""

import re
import shutil

import pytest

from tests.faults.test_refusals import refused
from tests.support import PLUGIN, STOCK, USER_DIR, preprocess, run, training, write_corpus


@pytest.fixture(scope="module")
def cache(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    run(
        "kd-plugin", "cache", workspace.data, "--teacher-path", workspace.teacher, "--cache-dir", folder,
        "--k", 4, "--temperature", 2, "--shard-tokens", 800,
    )  # fmt: skip
    return folder


def test_flags_that_do_not_fit_the_cache(workspace, cache, tmp_path):
    save = tmp_path / "save"

    def message(*flags, data=workspace.data):
        return refused(training(data, save, *PLUGIN, "--teacher-cache", cache, *flags), save)

    assert "written at temperature 2.0, but this run has --kd-temperature 1." in message()
    two = ["--kd-temperature", 2]
    assert "--kd-divergence skew_forward_kl" in message(*two, "--kd-divergence", "skew_forward_kl")
    assert "--teacher-path excludes --teacher-cache" in message(*two, "--teacher-path", workspace.teacher)
    assert "the answers in" in message(*two, "--teacher-sha256", "0" * 64)
    assert "--teacher-overrides: has no effect on the answers in --teacher-cache" in message(
        *two, "--teacher-overrides", '{"dropout": 0}'
    )
    truncated = message(*two, "--truncate-source", "--max-source-positions", 7)
    assert (
        "or for sources truncated differently" in truncated
        and "--truncate-source --max-source-positions 7" in truncated
    )


def test_other_data_and_other_dictionaries(workspace, cache, tmp_path):
    """One more word in the corpus: another dictionary. The same dictionary, one sentence less: other data."""
    save = tmp_path / "save"
    flags = [*PLUGIN, "--teacher-cache", cache, "--kd-temperature", 2]
    write_corpus(tmp_path)
    for lang in ("en", "de"):
        path = tmp_path / f"train.{lang}"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    same_words = preprocess(tmp_path, "fewer", "--srcdict", str(workspace.data / "dict.en.txt"))
    message = refused(training(same_words, save, *flags), save)
    assert "is for other data" in message and "train.en-de.de.bin" in message
    for lang in ("en", "de"):
        with open(tmp_path / f"train.{lang}", "a", encoding="utf-8") as file:
            file.write("newcomer\n")
    other_words = preprocess(tmp_path, "other")
    assert "another target dictionary" in refused(training(other_words, save, *flags), save)


def test_same_targets_of_other_sources(workspace, cache, tmp_path):
    write_corpus(tmp_path)
    first, second, *others = (tmp_path / "train.en").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.en").write_text("".join([second, first, *others]), encoding="utf-8")
    data = preprocess(tmp_path, "swapped", "--srcdict", str(workspace.data / "dict.en.txt"))
    name = "train.en-de.de.bin"
    assert (data / name).read_bytes() == (workspace.data / name).read_bytes()
    flags = [*PLUGIN, "--teacher-cache", cache, "--kd-temperature", 2]
    assert "is for other data" in refused(training(data, tmp_path / "save", *flags), tmp_path / "save")


@pytest.mark.parametrize("damage", ["truncated", "swapped"])
def test_damaged_cache_is_refused_before_training(workspace, cache, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    first, second = sorted(copy.glob("*/shard-*.bin"))[:2]
    content = first.read_bytes()
    if damage == "truncated":
        first.write_bytes(content[:-1])
    else:
        for suffix in (".bin", ".crc"):
            a, b = first.with_suffix(suffix), second.with_suffix(suffix)
            a_content = a.read_bytes()
            a.write_bytes(b.read_bytes())
            b.write_bytes(a_content)
    save = tmp_path / "save"
    message = refused(training(workspace.data, save, *PLUGIN, "--teacher-cache", copy, "--kd-temperature", 2), save)
    assert re.search(r"shard-0000[01]\.(bin|crc)", message)


def test_flipped_bit_stops_the_training_that_meets_it(workspace, cache, tmp_path):
    """In the data-loading workers too; nothing was learned from it."""
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    for shard in copy.glob("*/shard-*.bin"):
        content = bytearray(shard.read_bytes())
        content[100] ^= 4
        shard.write_bytes(bytes(content))
    for workers in (0, 1):
        save = tmp_path / f"save{workers}"
        flags = ["--teacher-cache", copy, "--kd-temperature", 2, "--num-workers", workers]
        result = run(*training(workspace.data, save, *PLUGIN, *flags), check=False)
        assert result.returncode != 0 and "| train_inner |" not in result.stdout
        assert "wrong checksum at byte 0" in result.stdout and "shard-0000" in result.stdout


def test_another_criterion_with_a_cache(workspace, cache, tmp_path):
    flags = ["--user-dir", USER_DIR, "--task", "distillation_translation", "--teacher-cache", cache, *STOCK[2:]]
    assert "there is a teacher, but the criterion" in refused(training(workspace.data, tmp_path, *flags), tmp_path)


def contents(folder):
    """Names, and of files the time of writing; a folder's changes with the lock that is there for a moment."""
    return {path: path.is_file() and path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "flags,named",
    [
        (["--k", 10_000], "--k 10000: the target dictionary has"),
        (["--subset", "nothing"], "no binarised split 'nothing'"),
        (["--teacher-sha256", "0" * 64], "sha256 is"),
        (["--k", 5], "already holds other answers, from other data or with other options"),
    ],
)
def test_writing_is_refused(workspace, cache, flags, named):
    before = contents(cache)
    command = ["kd-plugin", "cache", workspace.data, "--teacher-path", workspace.teacher, "--cache-dir", cache]
    result = run(*command, "--temperature", 2, "--shard-tokens", 800, *flags, check=False)
    assert result.returncode == 1 and "kd-plugin: error: " in result.stdout and named in result.stdout
    assert contents(cache) == before


def test_all_splits_folders_are_looked_at_before_the_first_is_written(workspace, tmp_path):
    command = ["kd-plugin", "cache", workspace.data, "--teacher-path", workspace.teacher, "--cache-dir", tmp_path]
    run(*command, "--subset", "valid", "--k", 5)
    (other,) = tmp_path.iterdir()
    before = contents(other)
    result = run(*command, "--subset", "train,valid", "--k", 4, check=False)
    assert result.returncode == 1 and f"{other} already holds other answers" in result.stdout
    assert contents(other) == before and not list(tmp_path.glob("train-*/*"))
    # a split that is named twice is one store
    assert run(*command, "--subset", "valid,valid", "--k", 5).stdout.count("captures") == 1
