"""Several checkpoints in one flag, and colons in their paths."""

import pytest

from kd_plugin.checkpoints.paths import join_model_paths, split_model_paths
from kd_plugin.errors import KDPluginError


@pytest.mark.parametrize(
    "text,paths",
    [
        ("a.pt", ["a.pt"]),
        ("a.pt:b.pt", ["a.pt", "b.pt"]),
        (r"v\:2/a.pt:b.pt", ["v:2/a.pt", "b.pt"]),
        ('["v:2/a.pt", "b.pt"]', ["v:2/a.pt", "b.pt"]),
        (' ["C:\\\\a.pt"]', ["C:\\a.pt"]),
        ("C:b.pt", ["C", "b.pt"]),
    ],
)
def test_colons_separate_unless_they_are_escaped_or_in_a_list(text, paths):
    assert split_model_paths(text) == paths


@pytest.mark.parametrize("paths", [["a.pt"], ["a.pt", "b.pt"], ["v:2/a.pt", "b ü.pt"], ["[a].pt", "b.pt"], ['"[:'] * 2])
def test_what_is_joined_is_split_again(paths):
    assert split_model_paths(join_model_paths(paths)) == paths


def test_a_path_that_is_there_as_it_is_written_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models:v2").mkdir()
    for name in ("models:v2/a.pt", "[a].pt", "a.pt:b.pt"):
        (tmp_path / name).write_text("")
    assert split_model_paths("models:v2/a.pt") == ["models:v2/a.pt"]
    assert split_model_paths("[a].pt") == ["[a].pt"]
    assert split_model_paths("a.pt:b.pt") == ["a.pt:b.pt"]
    (tmp_path / "a.pt").write_text("")
    (tmp_path / "b.pt").write_text("")
    assert split_model_paths("a.pt:b.pt") == ["a.pt", "b.pt"]


def test_an_ensemble_torn_at_a_colon_is_told_how_to_write_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v:2").mkdir()
    for name in ("v:2/a.pt", "b.pt"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        KDPluginError, match=r"v:2/a\.pt has one in its path\. Remedy: write v\\:2/a\.pt, or a JSON list"
    ):
        split_model_paths("b.pt:v:2/a.pt")


@pytest.mark.parametrize(
    "text,named",
    [
        ("s3://bucket/a.pt", "is an address"),
        ("https://host/a.pt", "is an address"),
        ("C:\\models\\a.pt", "is a Windows path"),
        ("d:/models/a.pt", "is a Windows path"),
        ("a.pt:", "an empty path"),
        ("", "an empty path"),
        ("[a.pt]", "not a JSON list"),
        ("[]", "not a JSON list"),
        ('["a.pt", 1]', "not a JSON list"),
        ("[" * 100_000, "not a JSON list"),
    ],
)
def test_what_is_no_path_is_refused(text, named):
    with pytest.raises(KDPluginError, match=named) as refused:
        split_model_paths(text)
    assert "Remedy: " in str(refused.value) and len(str(refused.value)) < 500
