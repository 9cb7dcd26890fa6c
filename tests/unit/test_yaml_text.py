"""What the users' YAML files may say: all is text, and what YAML would read as something else is refused."""

from pathlib import Path

import pytest

from kd_plugin.errors import KDPluginError
from kd_plugin.files.yaml_text import LONGEST, read_settings, read_yaml, wrong

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


def read(text):
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_yaml("c.yaml", "CONFIG", "such a file")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_value_is_the_text_that_stands_there():
    text = "lang: no\non: yes\n2024-01-02: 2024-01-02\ntrials: 0x10\nname: größe\nnothing: ~\nquoted: '1_0'\n"
    expected = {"lang": "no", "on": "yes", "2024-01-02": "2024-01-02", "trials": "0x10", "name": "größe"}
    expected.update(nothing="~", quoted="1_0")
    for form in (text, "\ufeff" + text, text.replace("\n", "\r\n"), "---\n" + text + "...\n"):
        assert read(form) == expected


def test_aliases_and_merged_keys_are_what_they_stand_for_and_own_keys_go_before():
    content = read(
        "s: &s {train: x, seeds: [1]}\nt:\n  <<: *s\n  seeds: [2]\nu: {<<: [{data: y}, *s]}\nv: *s\n'<<': z\n"
    )
    assert content["t"] == {"train": "x", "seeds": ["2"]} and content["u"] == {
        "data": "y",
        "train": "x",
        "seeds": ["1"],
    }
    assert content["v"] == content["s"] and content["<<"] == "z" and content["t"].lines == {"seeds": 4, "train": 1}


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: 1\nb: 2\na: 3\n", "c.yaml, line 3: not valid YAML (the key 'a' occurs twice, first in line 1)"),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "line 4: not valid YAML (the key 'b' occurs twice, first in line 2)"),
        ("a: 1\n? [b]\n: 2\n", "line 2: not valid YAML (a key is no text)"),
        ("a: 1\nb:\n\t- c\n", "line 3: not valid YAML (while scanning for the next token: found character '\\t'"),
        (
            "a: 1\nb: !!python/object/apply:os.system [touch x]\n",
            "line 2: not valid YAML (the tag !!python/object/apply:",
        ),
        ("a: !include b.yaml\n", "line 1: not valid YAML (the tag !include "),
        ("a: !!set {b}\n", "line 1: not valid YAML (the tag !!set "),
        ("a:\n  <<: b\n", "line 2: not valid YAML (`<<` takes the keys of another mapping)"),
        ("a: &a {<<: *a}\n", "not valid YAML"),
        ("a: &a [*a]\n", "line 1: not valid YAML (found unconstructable recursive node)"),
        ('a: 1\nb: "x\\0"\n', "line 2: not valid YAML (an escape for NUL"),
        ('a: "\\ud800"\n', "line 1: not valid YAML (an escape for NUL or for half a character"),
        ("a: 1\n---\nb: 2\n", "line 2: not valid YAML (expected a single document"),
        ("[" * 1100, "not valid YAML"),
        ("a: größe".encode("latin-1"), "not valid YAML"),
        ("a0: &a0 [x]\n" + LAUGHS + "b: *a11\n", "not valid YAML (more than 100,000 values, with aliases written out)"),
    ],
)
def test_what_yaml_would_read_as_something_else_is_refused_at_its_line(text, said):
    with pytest.raises(KDPluginError, match="^CONFIG c.yaml.*Remedy: ") as refused:
        read(text)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert ("Remedy: spaces" in str(refused.value)) == ("\t" in str(text))


@pytest.mark.parametrize("text, said", [("", "is empty"), ("# x\n", "is empty"), ("- a\n", "is not a mapping")])
def test_settings_are_a_mapping(text, said):
    Path("c.yaml").write_text(text)
    with pytest.raises(KDPluginError, match=f"c.yaml: it {said}. Remedy: such a file"):
        read_settings("c.yaml", ["a"], ["a"], "such a file")


def test_a_complaint_about_a_long_value_is_short():
    said = str(wrong("c.yaml", f"`threads: {'9' * 5000}`", "less"))
    assert len(said) < LONGEST + 50 and said.startswith("c.yaml: `threads: 999") and said.endswith("9`. Remedy: less")
