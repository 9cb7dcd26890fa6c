"""What a cache says of symbols that its teacher has and its student lacks."""

import json

import pytest
import torch

from kd_plugin.cache.store import open_stores
from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from tests.support import MODEL
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_architectures import SOURCES, TARGETS, data, log_probabilities, make  # noqa: F401  data: a fixture

KEYS_OF_ALL_VERSIONS = {"name", "tokens", "sha256", "checksums_sha256", "histogram", "captured"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Of twenty words more than the student."""
    folder = write_dictionaries(tmp_path_factory.mktemp("teacher"), [*WORDS, *(f"more{i}" for i in range(20))])
    made = make(folder / "teacher.pt", folder, *MODEL)
    return made.path, made.model.double()


def cache(data, path, folder, *more):  # noqa: F811
    flags = ["--k", 5, "--subset", "valid", "--shard-tokens", 30, "--max-tokens", 25, *more]
    return main(list(map(str, ["cache", data, "--teacher-path", path, "--cache-dir", folder, *flags])))


def test_the_mean_of_all_tokens_is_in_the_manifest_and_shown(teacher, data, tmp_path, capsys):  # noqa: F811
    path, model = teacher
    assert cache(data, path, tmp_path / "cache") == 0
    lprobs = torch.cat([log_probabilities(model, *pair) for pair in zip(SOURCES, TARGETS)]).double()
    expected = float(lprobs[:, len(WORDS) + 4 :].exp().sum(dim=-1).mean())
    assert 0.05 < expected < 0.95
    (store,) = open_stores(tmp_path / "cache")
    assert store.manifest.teacher_dropped == pytest.approx(expected, abs=1e-5)
    assert f"(without {expected:.1%} of it on symbols that the student lacks)" in capsys.readouterr().out
    assert main(["cache-info", str(tmp_path / "cache")]) == 0
    assert (
        f"  dropped      {expected:.2%} of the teacher's mass, on symbols that the student lacks"
        in capsys.readouterr().out
    )
    content = json.loads((store.folder / "manifest.json").read_text())
    assert len(content["shards"]) > 1 and all(shard.keys() == KEYS_OF_ALL_VERSIONS for shard in content["shards"])


def test_jobs_and_a_second_run_say_the_same(teacher, data, tmp_path):  # noqa: F811
    """Shards that an earlier process wrote count too."""
    path, _ = teacher
    assert cache(data, path, tmp_path / "whole") == 0
    for job in (1, 0):
        assert cache(data, path, tmp_path / "jobs", "--num-shards", 2, "--shard-id", job) == 0
    contents = [(next((tmp_path / name).iterdir()) / "manifest.json").read_bytes() for name in ("whole", "jobs")]
    assert contents[0] == contents[1] and b"teacher_dropped" in contents[0]


def test_nothing_is_said_where_nothing_is_dropped(data, tmp_path, capsys):  # noqa: F811
    made = make(data / "equal.pt", data, *MODEL)
    assert cache(data, made.path, tmp_path / "cache") == 0
    assert main(["cache-info", str(tmp_path / "cache")]) == 0
    assert "lacks" not in capsys.readouterr().out
    (store,) = open_stores(tmp_path / "cache")
    assert store.manifest.teacher_dropped is None
    assert "teacher_dropped" not in json.loads((store.folder / "manifest.json").read_text())


@pytest.mark.parametrize("value", ["0.3", -0.1, 1.5, True, float("nan"), [0.1]])
def test_what_is_no_share_is_refused(teacher, data, tmp_path, value):  # noqa: F811
    assert cache(data, teacher[0], tmp_path / "cache") == 0
    (manifest,) = (tmp_path / "cache").glob("*/manifest.json")
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "teacher_dropped": value}))
    with pytest.raises(KDPluginError, match="manifest.json"):
        open_stores(tmp_path / "cache")
