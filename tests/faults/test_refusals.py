"""Bad input given to the real fairseq-train: exit status not 0, the cause named, before the first update."""

import random

import pytest
import torch

from tests.support import (
    MODEL,
    PLUGIN,
    STOCK,
    USER_DIR,
    load,
    logged,
    make_checkpoint,
    preprocess,
    run,
    run_together,
    train,
    training,
    write_corpus,
)


def refused(command, save_dir):
    """The one-line message of a refusal, after checking that nothing was trained or written."""
    result = run(*command, check=False)
    assert result.returncode != 0, result.stdout[-3000:]
    assert "| train_inner |" not in result.stdout and not list(save_dir.glob("*.pt"))
    messages = [line for line in result.stdout.splitlines() if line.startswith("kd_plugin.errors.KDPluginError: ")]
    assert len(messages) == 1, result.stdout[-3000:]
    return messages[0]


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.marker),)


def test_bad_teachers(workspace, tmp_path):
    """Missing, truncated, of another hash, with a pickle payload."""
    content = workspace.teacher.read_bytes()
    (tmp_path / "truncated.pt").write_bytes(content[: len(content) // 2])
    state = load(workspace.teacher)
    marker = tmp_path / "payload was run"
    torch.save({**state, "extra_state": {"payload": Payload(marker)}}, str(tmp_path / "payload.pt"))
    save = tmp_path / "save"

    def message(*flags):
        return refused(training(workspace.data, save, *PLUGIN, *flags), save)

    assert "missing.pt: no such checkpoint" in message("--teacher-path", tmp_path / "missing.pt")
    assert "truncated.pt" in message("--teacher-path", tmp_path / "truncated.pt")
    wrong = message("--teacher-path", workspace.teacher, "--teacher-sha256", "0" * 64)
    assert f"{workspace.teacher}: sha256 is" in wrong and "0" * 64 in wrong
    assert "payload.pt: contains posix.mkdir" in message("--teacher-path", tmp_path / "payload.pt")
    assert not marker.exists()


def test_right_hash_is_accepted(workspace, tmp_path):
    from kd_plugin.files.atomic import sha256_of

    pin = ["--teacher-sha256", sha256_of(str(workspace.teacher))]
    output = train(workspace.data, tmp_path, *workspace.distil(*pin), "--max-update", 1, "--no-save").stdout
    assert f"teacher:sha256:{pin[1][:8]}(" in output


def test_dictionary_of_other_symbols(workspace, tmp_path):
    write_corpus(tmp_path)
    text = (tmp_path / "train.en").read_text(encoding="utf-8").replace("dog", "wolf")
    (tmp_path / "train.en").write_text(text, encoding="utf-8")
    other = preprocess(tmp_path, "other-bin")
    make_checkpoint(tmp_path / "teacher.pt", other, *MODEL)
    save = tmp_path / "save"
    message = refused(training(workspace.data, save, *PLUGIN, "--teacher-path", tmp_path / "teacher.pt"), save)
    assert "teacher.pt: its source" in message and "First difference at index" in message
    assert "Only the teacher has 'wolf', only the student " in message


def test_flags_that_would_train_nothing(workspace, tmp_path):
    """Without this fairseq exits 0 here, having trained nothing."""
    ranks = ["--distributed-world-size", 2, "--distributed-init-method", "tcp://localhost:29876"]
    message = refused(training(workspace.data, tmp_path, *workspace.distil(), *ranks), tmp_path)
    assert "--distributed-init-method without --distributed-no-spawn" in message


@pytest.mark.parametrize(
    "flags,named",
    [
        (["--kd-alpha", "0.5"], "--kd-alpha 0.5 distils, but there is no teacher"),
        (["--teacher-sha256", "0" * 64, "--kd-alpha", "1"], "--teacher-sha256 has no effect without --teacher-path"),
    ],
)
def test_no_teacher(workspace, tmp_path, flags, named):
    assert named in refused(training(workspace.data, tmp_path, *PLUGIN, *flags), tmp_path)


def test_teacher_that_nobody_would_ask(workspace, tmp_path):
    flags = ["--user-dir", USER_DIR, "--task", "distillation_translation", *STOCK[2:]]
    message = refused(training(workspace.data, tmp_path, *flags, "--teacher-path", workspace.teacher), tmp_path)
    assert "--criterion kd_label_smoothed_cross_entropy" in message


def test_not_finite_teacher_stops_the_run(workspace, tmp_path):
    """Term, side, update and sample ids are named, and no weight was changed or saved."""
    state = load(workspace.teacher)
    state["model"]["decoder.layers.0.fc2.weight"].fill_(1e30)  # finite, as no layer norm is after it
    torch.save(state, str(tmp_path / "teacher.pt"))
    command = training(workspace.data, tmp_path / "save", *PLUGIN, "--teacher-path", tmp_path / "teacher.pt")
    message = refused(command, tmp_path / "save")
    assert "kd_loss" in message and "at update 1" in message and "teacher logits" in message
    ids = [int(number) for number in message.split("sample ids [")[1].split("]")[0].split(",")]
    assert ids and set(ids) <= set(range(300))


def test_not_finite_student_stops_the_run(workspace, tmp_path):
    command = training(workspace.data, tmp_path, *workspace.distil(), "--lr", "1e30", "--clip-norm", 0)
    result = run(*command, check=False)
    assert result.returncode != 0
    message = result.stdout.split("KDPluginError: ")[-1].splitlines()[0]
    updates = len(logged(result.stdout, "train_inner"))
    assert "ce_loss" in message and f"at update {updates + 1}:" in message and "student logits" in message
    assert not list(tmp_path.glob("*.pt"))


def test_unusual_sentences_train(workspace, tmp_path):
    """Empty lines, a target of eos only, one word, 1,000 words, unknown words: finite, and every token counted."""
    draw = random.Random(0)
    words = ["one", "red", "car", "and"]
    long = " ".join(draw.choice(words) for _ in range(1000))
    pairs = [
        ("", "rot"),
        ("red", ""),
        ("", ""),
        ("red", "rot"),
        (long, long),
        ("qqq zzz", "qqq"),
        ("red car", "auto rot"),
    ]
    for split in ("train", "valid", "test"):
        for index, lang in enumerate(("en", "de")):
            (tmp_path / f"{split}.{lang}").write_text("".join(pair[index] + "\n" for pair in pairs), encoding="utf-8")
    dictionary = workspace.data / "dict.en.txt"
    data = preprocess(tmp_path, "data-bin", "--srcdict", dictionary)
    flags = workspace.distil("--kd-alpha", 0.5, "--kd-temperature", 2)
    output = train(
        data, tmp_path / "save", *flags, "--max-update", 3, "--batch-size", 7, "--max-tokens", 20000, "--no-save"
    ).stdout
    tokens = sum(len(pair[1].split()) + 1 for pair in pairs)
    steps = logged(output, "train_inner")
    assert len(steps) == 3
    for step in steps:
        assert step["wpb"] == tokens
        assert all(torch.isfinite(torch.tensor(value)) for value in step.values())


def test_sentences_too_long_for_the_teacher_are_counted_out(workspace, tmp_path):
    make_checkpoint(
        tmp_path / "teacher.pt", workspace.data, *MODEL, "--max-source-positions", 9, "--max-target-positions", 9
    )
    flags = [*PLUGIN, "--teacher-path", tmp_path / "teacher.pt"]
    short = ["--max-update", 2, "--no-save"]
    skipped, refused_valid = tmp_path / "skipped", tmp_path / "refused"
    (output,) = (
        result.stdout
        for result in run_together(training(workspace.data, skipped, *flags, *short, "--disable-validation"))
    )
    assert "have invalid sizes and will be skipped" in output and len(logged(output, "train_inner")) == 2
    result = run(*training(workspace.data, refused_valid, *flags, *short), check=False)
    assert result.returncode != 0 and "--skip-invalid-size-inputs-valid-test" in result.stdout
