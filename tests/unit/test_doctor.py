import json
import os
import pathlib
import re
import runpy
import shlex
import types

import pytest
import torch
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from kd_plugin import cli, compat, environment
from kd_plugin.environment import FAIL, OK, WARN
from tests.support import ROOT, load, make_checkpoint

TINY = [
    "--arch", "transformer", "--encoder-layers", 2, "--decoder-layers", 1, "--share-decoder-input-output-embed",
    "--encoder-embed-dim", 8, "--decoder-embed-dim", 8, "--encoder-ffn-embed-dim", 16, "--decoder-ffn-embed-dim", 16,
    "--encoder-attention-heads", 2, "--decoder-attention-heads", 2,
]  # fmt: skip


def write_dictionary(path, words):
    path.write_text("".join(f"word{index} 1\n" for index in range(words)))


@pytest.fixture
def teacher(tmp_path):
    """A tiny transformer as fairseq saves it, its two dictionaries beside it."""
    folder = tmp_path / "a teacher"
    folder.mkdir()
    write_dictionary(folder / "dict.en.txt", 30)
    write_dictionary(folder / "dict.de.txt", 40)
    path = folder / "teacher.pt"
    model = make_checkpoint(path, folder, *TINY, "-s", "en", "-t", "de")
    own = (weights for name, weights in model.named_parameters() if not compat.BETTER_TRANSFORMER_COPY.search(name))
    parameters = sum(weights.numel() for weights in own)
    return types.SimpleNamespace(path=path, folder=folder, parameters=parameters)


def report(capsys, *arguments):
    """Exit status and the JSON report, its checks by name (the last of a name wins)."""
    capsys.readouterr()
    status = cli.main(["doctor", "--json", *map(str, arguments)])
    answer = json.loads(capsys.readouterr().out)
    return status, answer, {check["name"]: check for check in answer["checks"]}


def failures(answer):
    return [check for check in answer["checks"] if check["status"] == FAIL]


def test_this_environment_is_healthy(capsys):
    status, answer, checks = report(capsys)
    assert failures(answer) == []
    assert status == 0 and answer["ok"] is True
    assert checks["torch"]["value"].startswith(torch.__version__)
    assert checks["fairseq"]["value"].startswith(compat.fairseq_distribution())
    assert checks["task"]["value"] == "distillation_translation"
    assert checks["criterion"]["value"] == "kd_label_smoothed_cross_entropy"


def test_the_table_says_what_the_json_says(capsys):
    _, answer, _ = report(capsys)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for check in answer["checks"]:
        mark = "-" if check["status"] == OK and check["value"].startswith("not installed") else check["status"]
        assert any(line.split()[:1] == [mark] and check["value"] in line for line in lines), check
        assert check["section"] in lines


@pytest.mark.parametrize("worst, status", [(OK, 0), (WARN, 0), (FAIL, 1)])
def test_the_exit_status_is_1_only_for_a_failure(worst, status, monkeypatch, capsys):
    checks = [environment.Check("section", "fine", "1"), environment.Check("section", "thing", "2", worst, "do this")]
    monkeypatch.setattr(environment, "environment_checks", lambda: checks)
    assert cli.main(["doctor"]) == status
    assert "→ do this" in capsys.readouterr().out


@pytest.mark.parametrize("version, status", [((2, 9), WARN), ((2, 10), OK), ((3, 0), OK)])
def test_weights_only_is_trusted_from_torch_2_10_on(version, status, monkeypatch, capsys):
    monkeypatch.setattr(compat, "TORCH_VERSION", version)
    check = report(capsys)[2]["weights_only"]
    assert check["status"] == status
    assert ("CVE-2025-32434" in check["value"]) == (status == WARN)


def test_a_missing_package_fails_only_where_it_is_needed():
    needed = environment.package_check("packages", "no-such-distribution", required=True)
    assert needed.status == FAIL and needed.remedy == "pip install no-such-distribution"
    optional = environment.package_check("packages", "no-such-distribution", False, "thing")
    assert optional.status == OK and optional.mark == "-" and optional.value == "not installed (extra thing)"


def test_every_optional_package_is_of_the_extra_that_is_named(monkeypatch):
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **metadata: given.update(metadata))
    runpy.run_path(str(ROOT / "setup.py"))
    extras = {
        extra: {re.split(r"[^\w-]", line)[0] for line in lines} for extra, lines in given["extras_require"].items()
    }
    for name, extra in environment.OPTIONAL_PACKAGES.items():
        assert not extra or name in extras[extra], name
    unnamed = set(extras) - set(environment.OPTIONAL_PACKAGES.values())
    assert unnamed == {"fairseq", "dev", "bench", "docs"}  # required, or of the developers


def test_both_fairseq_distributions_at_once_fail(monkeypatch):
    monkeypatch.setattr(environment, "installed_version", lambda name: "1.0")
    assert environment.fairseq_check().status == FAIL


def test_an_untested_fairseq_is_a_warning(monkeypatch):
    monkeypatch.setattr(compat, "fairseq_distribution", lambda: "fairseq:1.0.0a0")
    check = environment.fairseq_check()
    assert check.status == WARN and "fairseq:1.0.0a0" in check.value


@pytest.mark.parametrize(
    "registry, name",
    [(TASK_REGISTRY, "distillation_translation"), (CRITERION_REGISTRY, "kd_label_smoothed_cross_entropy")],
)
def test_a_name_that_belongs_to_another_package_fails(registry, name, monkeypatch, capsys):
    fork = type("Fork", (), {"__module__": "some_fork.distillation"})
    monkeypatch.setitem(registry, name, fork)
    status, answer, _ = report(capsys)
    (failure,) = failures(answer)
    assert status == 1 and name in failure["value"] and "some_fork.distillation" in failure["value"]


def test_gpus_are_listed_with_memory_and_capability(monkeypatch):
    gpu = types.SimpleNamespace(name="NVIDIA Test", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    values = [(check.name, check.value) for check in environment.device_checks()]
    assert values == [
        ("GPU 0", "NVIDIA Test, 80 GiB, capability 9.0"),
        ("GPU 1", "NVIDIA Test, 80 GiB, capability 9.0"),
        ("bf16", "supported"),
    ]


def test_a_teacher_is_described(teacher, capsys):
    status, answer, checks = report(capsys, "--teacher", teacher.path)
    assert failures(answer) == [] and status == 0
    assert checks["size"]["value"] == f"{os.path.getsize(str(teacher.path)):,} bytes"
    assert len(checks["sha256"]["value"]) == 64
    assert checks["architecture"]["value"].startswith("transformer; encoder: layers 2, embed dim 8, ffn embed dim 16")
    assert "decoder: layers 1" in checks["architecture"]["value"]
    assert checks["parameters"]["value"] == f"{teacher.parameters:,}"
    assert checks["languages"]["value"] == "en-de"
    assert (checks["source vocabulary"]["value"], checks["target vocabulary"]["value"]) == ("34", "44")
    assert checks["target dictionary"]["value"] == f"{teacher.folder / 'dict.de.txt'} (44 symbols)"


def test_the_command_it_prints_is_one_that_fairseq_train_parses(teacher, capsys):
    moved = teacher.folder / "dictionaries"
    moved.mkdir()
    for lang in ("en", "de"):
        (teacher.folder / f"dict.{lang}.txt").rename(moved / f"dict.{lang}.txt")
    _, answer, checks = report(capsys, "--teacher", f"{teacher.path}:{teacher.path}", "--dict", moved)
    words = shlex.split(answer["command"].replace("\\\n", " "))
    assert words[:2] == ["fairseq-train", "DATA_BIN"]
    words[words.index("$(kd-plugin path)")] = os.path.dirname(cli.__file__)
    args = options.parse_args_and_arch(options.get_training_parser(), words[1:])
    assert args.teacher_path == f"{teacher.path}:{teacher.path}"
    assert args.teacher_sha256 == ":".join([checks["sha256"]["value"]] * 2)
    assert json.loads(args.teacher_overrides) == {"data": str(moved)}
    assert args.criterion == "kd_label_smoothed_cross_entropy"


def test_its_values_are_those_of_the_readme(teacher, capsys):
    """One set of starting values: the sharing of embeddings alone depends on the student's dictionaries."""
    block = re.search(r"^fairseq-train .*?[^\\]$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL).group(0)
    words = shlex.split(report(capsys, "--teacher", teacher.path)[1]["command"].replace("\\\n", " "))
    ours, readmes = (dict(zip(text, text[1:])) for text in (words, shlex.split(block.replace("\\\n", " "))))
    flags = {word for word in words if word.startswith("--")} - {"--teacher-path", "--teacher-sha256"}
    assert {"--lr", "--warmup-updates", "--max-update", "--kd-alpha"} <= flags
    assert {flag: ours[flag] for flag in flags} == {flag: readmes.get(flag) for flag in flags}


def test_a_teacher_without_dictionary_fails_and_says_where_it_looked(teacher, capsys):
    (teacher.folder / "dict.de.txt").unlink()
    status, answer, _ = report(capsys, "--teacher", teacher.path)
    (failure,) = failures(answer)
    assert status == 1 and failure["name"] == "target dictionary"
    assert str(teacher.folder / "dict.de.txt") in failure["remedy"]
    assert answer["command"] is None


def test_a_dictionary_of_another_training_fails(teacher, capsys):
    write_dictionary(teacher.folder / "dict.de.txt", 41)
    status, answer, _ = report(capsys, "--teacher", teacher.path)
    (failure,) = failures(answer)
    assert status == 1 and failure["name"] == "target dictionary" and "(45 symbols)" in failure["value"]


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_a_teacher_with_code_in_it_fails_and_the_code_is_not_run(teacher, capsys, tmp_path):
    trace = tmp_path / "the payload ran"
    torch.save({**load(teacher.path), "extra_state": Payload(str(trace))}, str(teacher.path))
    status, answer, _ = report(capsys, "--teacher", teacher.path)
    (failure,) = failures(answer)
    assert status == 1 and failure["name"] == "safe to read" and str(teacher.path) in failure["remedy"]
    assert "mkdir" in failure["remedy"]
    assert not trace.exists()


def test_a_teacher_trained_on_a_relative_path_is_found_its_dictionaries(tmp_path, monkeypatch, capsys):
    """Of the folders above the checkpoint, the nearest with that path is where fairseq-train was run."""
    for folder, words in (("run/data", 30), ("data", 50)):
        (tmp_path / folder).mkdir(parents=True)
        for lang in ("en", "de"):
            write_dictionary(tmp_path / folder / f"dict.{lang}.txt", words)
    monkeypatch.chdir(tmp_path / "run")
    path = tmp_path / "run" / "saved" / "teacher" / "best.pt"
    make_checkpoint(path, pathlib.Path("data"), *TINY, "-s", "en", "-t", "de")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, _, checks = report(capsys, "--teacher", path)
    assert status == 0 and str(tmp_path / "run" / "data" / "dict.de.txt") in checks["target dictionary"]["value"]


def test_what_is_no_file_is_called_so(teacher, capsys):
    status, answer, _ = report(capsys, "--teacher", teacher.folder)
    (failure,) = failures(answer)
    assert status == 1 and failure["name"] == "file"
    assert "is a folder" in failure["remedy"] and failure["remedy"].endswith(f"Remedy: {teacher.path}")


def test_one_bad_teacher_of_two_fails_and_the_good_one_is_still_described(teacher, capsys):
    missing = teacher.folder / "missing.pt"
    status, answer, checks = report(capsys, "--teacher", f"{missing}:{teacher.path}")
    (failure,) = failures(answer)
    assert status == 1 and failure["section"] == f"teacher {missing}"
    assert checks["languages"]["section"] == f"teacher {teacher.path}"
