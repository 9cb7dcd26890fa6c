"""NaN and infinite weights: refused by every verb before any work, the file and the tensor named."""

import pathlib
import re
import shutil

import numpy as np
import pytest
import torch

from kd_plugin import cli
from kd_plugin.checkpoints.ctranslate2_weights import check_weights
from kd_plugin.checkpoints.finite import check_finite, check_range
from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import load_teacher
from kd_plugin.teachers.online import OnlineTeacher
from tests.support import MODEL, asked, load, make_checkpoint, run, training
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import LANGS, ROWS, batch, student_task
from tests.unit.translation_folders import record, write_folder

NAN, INF = float("nan"), float("inf")


def with_weight(source, path, name, value, at=0):
    """The checkpoint `source` with one other weight, at `path`."""
    state = load(source)
    state["model"] = {key: tensor.clone() for key, tensor in state["model"].items()}
    state["model"][name].view(-1)[at] = value
    torch.save(state, str(path))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_dictionaries(tmp_path_factory.mktemp("sound"), WORDS)
    make_checkpoint(folder / "sound.pt", folder, *MODEL, *LANGS)
    return folder


@pytest.fixture
def sound(made, tmp_path):
    """A checkpoint beside its dictionaries, in a folder of the test's own."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "data")) / "sound.pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_is_found_in_any_dtype(value, dtype):
    state = {f"layers.{number}.weight": torch.ones(30, 50, dtype=dtype) for number in range(3)}
    check_finite(state, "a.pt")
    state["layers.1.weight"][29, 49] = value
    with pytest.raises(KDPluginError, match=r"a\.pt: 1 of its 3 tensors .* is layers\.1\.weight \(1 of 1,500 values\)"):
        check_finite(state, "a.pt")


def test_masks_markers_and_whole_numbers_may_be_what_they_are():
    state = {
        "decoder.version": torch.tensor([NAN]),
        "decoder.embed_positions._float_tensor": torch.tensor([NAN]),  # fairseq 0.12.2 leaves it uninitialised
        "encoder.layers.0.in_proj_weight": torch.tensor([NAN]),  # its unused copies too
        "decoder.future_mask": torch.full((3, 3), -INF).triu(1),
        "counts": torch.arange(3),
        "empty.weight": torch.zeros(0),
    }
    check_finite(state, "a.pt")
    with pytest.raises(KDPluginError, match="future_mask"):
        check_finite({"decoder.future_mask": torch.tensor([NAN])}, "a.pt")


@pytest.mark.parametrize("value,refused", [(65504.0, False), (65519.9, False), (65520.0, True), (-7e4, True)])
def test_range_of_float16_ends_where_rounding_gives_infinity(value, refused):
    model = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(model.bias, value)
    assert bool(model.bias.half().isinf().any()) == refused
    check_range(model, torch.bfloat16, "a.pt", "none")
    if not refused:
        check_range(model, torch.float16, "a.pt", "none")
        return
    with pytest.raises(KDPluginError, match=r"a\.pt: 1 of its 2 tensors .*float16.*65,504.* is bias"):
        check_range(model, torch.float16, "a.pt", "none")


def verbs(path, folder):
    """Command lines that would use the model."""
    text = folder / "input.en"
    text.write_text("word1 word2\nword3\n", encoding="utf-8")
    for language in ("en", "de"):
        (folder / f"train.en-de.{language}").write_text("word1 word2\nword3\n", encoding="utf-8")
    write_folder(folder / "translations", [record(0, "word1", "word2")])
    out = ["--output", folder / "out"]
    plain = ["--remove-bpe", "none"]
    return {
        "doctor": ["--teacher", path],
        "decode": ["--input", text, "--path", path, *plain, *out],
        "decode_ctranslate2": ["--input", text, "--path", path, "--engine", "ctranslate2", *plain, *out],
        "score": [folder / "translations", "--path", path, *out],
        "export": [path, "--format", "ctranslate2", *out],
        "evaluate": ["--model", f"m={path}", "--test", f"t={text},{text}", *plain, *out],
        "cache": [folder, "--teacher-path", path, "--cache-dir", folder / "out", *LANGS],
    }


@pytest.mark.parametrize("verb", ["doctor", "decode", "decode_ctranslate2", "score", "export", "evaluate", "cache"])
def test_every_verb_refuses_such_a_model(verb, sound, capsys):
    if verb in ("export", "decode_ctranslate2"):
        pytest.importorskip("ctranslate2")
    folder = sound.parent
    path = with_weight(sound, folder / "bad.pt", "decoder.layers.0.fc2.weight", NAN, at=7)
    command = verbs(path, folder)[verb]
    assert cli.main([verb.split("_")[0], *map(str, command)]) == 1
    output = capsys.readouterr()
    message = " ".join((output.out + output.err).split())
    assert re.search(rf"{re.escape(str(path))}: 1 of its \d+ tensors hold NaN or infinite values", message), message
    assert "decoder.layers.0.fc2.weight (1 of 512 values)" in message and "Remedy: " in message
    assert not list((folder / "out").glob("*")) and not list((folder / "out").glob("*/*.bin"))


def test_a_teacher_that_float16_cannot_hold_is_refused_by_name_of_the_dtype(sound):
    path = with_weight(sound, sound.parent / "large.pt", "encoder.layers.0.fc2.weight", 1e5)
    loaded = load_teacher(str(path), student_task(sound.parent))
    OnlineTeacher([loaded], dtype="bf16")
    with pytest.raises(KDPluginError, match=r"large\.pt: .*float16 .*Remedy: --teacher-dtype fp32"):
        OnlineTeacher([loaded], dtype="fp16")
    # what `auto` comes to is known on the first batch
    teacher = OnlineTeacher([loaded])
    teacher.dtype = "fp16"
    with pytest.raises(KDPluginError, match="float16"):
        asked(teacher, batch(), ROWS, torch.float16)


@pytest.mark.parametrize(
    "arguments",
    [
        ["decode", "--input", "{text}", "--path", "{path}", "--remove-bpe", "none", "--compute-type", "float16"],
        ["export", "{path}", "--format", "fairseq", "--fp16"],
        ["export", "{path}", "--format", "ctranslate2", "--quantization", "int8_float16"],
    ],
)
def test_half_precision_is_refused_where_it_would_make_infinite_weights(arguments, sound, tmp_path, capsys):
    text = tmp_path / "input.en"
    text.write_text("word1\n", encoding="utf-8")
    path = with_weight(sound, sound.parent / "large.pt", "encoder.layers.0.fc2.weight", -1e5)
    out = tmp_path / "out"
    command = [argument.format(text=text, path=path) for argument in arguments]
    assert main([*command, "--output", str(out)]) == 1
    message = capsys.readouterr().err
    assert f"{path}: 1 of its" in message and "that float16 cannot hold" in message
    assert not list(out.glob("*"))


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_finite_weights_whose_scores_are_not_are_refused_without_a_traceback(engine, sound, tmp_path, capsys):
    pytest.importorskip("ctranslate2")
    state = load(sound)
    state["model"]["encoder.layers.0.fc2.weight"].fill_(1e30)
    path, text, out = sound.parent / "huge.pt", tmp_path / "input.en", tmp_path / "out"
    torch.save(state, str(path))
    text.write_text("word1\n", encoding="utf-8")
    flags = ["--remove-bpe", "none", "--engine", engine, "--max-len-b", "5", "--output", str(out)]
    assert main(["decode", "--input", str(text), "--path", str(path), *flags]) == 1
    message = capsys.readouterr().err
    assert "its scores are NaN or infinite in float32" in message and "Remedy: " in message
    assert not list(out.glob("*.jsonl"))


@pytest.mark.parametrize("quantization", ["float32", "float16", "bfloat16", "int8", "int16"])
def test_ctranslate2_weights_are_looked_through(quantization, sound, tmp_path):
    pytest.importorskip("ctranslate2")
    from kd_plugin.checkpoints.ctranslate2_models import convert

    folder = convert(open_checkpoint(str(sound)), tmp_path / "model", quantization)
    check_weights(folder)
    content = (folder / "model.bin").read_bytes()
    # the first layer norm: after its name come rank, shape, type and size
    name = b"decoder/layer_0/attention/layer_norm/gamma\x00"
    at = content.index(name) + len(name) + 1 + 4 + 5
    kind = {"float16": np.float16, "int8_float16": np.float16}.get(quantization, np.float32)
    if quantization == "bfloat16":
        nan = b"\xc0\x7f"
    else:
        nan = np.array([NAN], kind).tobytes()
    damaged = content[:at] + nan + content[at + len(nan) :]
    (folder / "model.bin").write_bytes(damaged)
    with pytest.raises(
        KDPluginError, match=r"1 of its \d+ tensors .*decoder/layer_0/attention/layer_norm/gamma \(1 of 16"
    ):
        check_weights(folder)


def test_a_student_that_starts_from_such_weights_is_refused(workspace, tmp_path):
    path = with_weight(workspace.teacher, tmp_path / "bad.pt", "encoder.layers.0.fc1.bias", NAN)
    widths = ["--encoder-embed-dim", 32, "--decoder-embed-dim", 32]
    flags = [*workspace.distil(), *widths, "--finetune-from-model", path, "--max-update", 1]
    result = run(*training(workspace.data, tmp_path / "save", *flags), check=False)
    assert result.returncode != 0
    assert (
        f"the student of --finetune-from-model {path}: 1 of its" in result.stdout
        and "encoder.layers.0.fc1.bias" in result.stdout
    )
    assert not list((tmp_path / "save").glob("*.pt"))


def test_memory_that_fairseq_never_reads_is_not_a_fault_of_the_model(sound):
    """lightconv's dynamic convolutions store a bias that is neither initialised nor used."""
    data = sound.parent
    dims = [
        f"--{side}-{what}" for side in ("encoder", "decoder") for what in ("embed-dim", "ffn-embed-dim", "conv-dim")
    ]
    sizes = [word for flag in dims for word in (flag, 8)] + ["--encoder-attention-heads", 2]
    sizes += ["--encoder-layers", 2, "--decoder-layers", 2, "--decoder-attention-heads", 2]
    sizes += ["--decoder-kernel-size-list", "[3,3]"]
    path = data / "dynamic.pt"
    make_checkpoint(path, data, "--arch", "lightconv", *sizes, "--encoder-kernel-size-list", "[3,3]", *LANGS)
    state = torch.load(path, weights_only=False)
    unread = [name for name in state["model"] if name.endswith("conv_bias")]
    assert len(unread) == 4
    for name in unread:
        state["model"][name].fill_(NAN)
    torch.save(state, path)
    teacher = OnlineTeacher([load_teacher(str(path), student_task(data))])
    answer = asked(teacher, batch(), ROWS, torch.float32)
    assert torch.isfinite(answer.logits).all()
    bad = with_weight(path, data / "bad.pt", "decoder.layers.1.conv.weight_linear.weight", NAN)
    with pytest.raises(KDPluginError, match="1 of its .*weight_linear.weight"):
        load_teacher(str(bad), student_task(data))
