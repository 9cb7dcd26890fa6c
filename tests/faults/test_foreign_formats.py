"""What other programs made, given where a checkpoint is wanted: named as what it is, with what to do."""

import argparse
import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from kd_plugin import cli
from kd_plugin.checkpoints.formats import holds_ctranslate2
from kd_plugin.checkpoints.read import read_checkpoint
from kd_plugin.errors import KDPluginError
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.translation_folders import record, write_folder

TORCHS_OWN_WORDS = (
    "weights_only",
    "weights only",
    "Re-running",
    "PyTorch 2.6",
    "allowlist",
    "enforce fail",
    "safe_globals",
)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def arrays(**named):
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    return buffer.getvalue()


def array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "content")
    return buffer.getvalue()


def tar(mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        file.addfile(tarfile.TarInfo("checkpoint.pt"))
    return buffer.getvalue()


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), buffer)
    return buffer.getvalue()


def safetensors(header_length=40):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(header_length)
    return struct.pack("<Q", len(header)) + header + bytes(4)


ZERO = torch.zeros(2)
FILES = {
    "safetensors": (safetensors, "a safetensors file"),
    # its first two bytes are gzip's
    "safetensors, long header": (lambda: safetensors(0x8B1F), "a safetensors file"),
    "marian": (lambda: arrays(encoder_l1_self_Wq=np.zeros(2)), r"a Marian model \(\.npz\)"),
    "npz": (lambda: arrays(a=np.zeros(2)), r"NumPy arrays \(\.npz\)"),
    "npy": (array, r"a NumPy array \(\.npy\)"),
    "hugging face": (lambda: saved({"model.encoder.layers.0.fc1.weight": ZERO}), "bare Hugging Face weights"),
    "hugging face t5": (lambda: saved({"shared.weight": ZERO}), "bare Hugging Face weights"),
    "bare weights": (lambda: saved({"encoder.layers.0.fc1.weight": ZERO}), "bare weights with fairseq's names"),
    "other bare weights": (lambda: saved({"linear": ZERO}), "bare weights, fairseq's configuration"),
    "opennmt": (
        lambda: saved({"model": {"a": ZERO}, "generator": {"0": ZERO}, "opt": argparse.Namespace(layers=1)}),
        "it comes from OpenNMT-py",
    ),
    "lightning": (lambda: saved({"state_dict": {"a": ZERO}, "pytorch-lightning_version": "2"}), "PyTorch Lightning"),
    "joey": (lambda: saved({"model_state": {"a": ZERO}, "optimizer_state": {}}), "Joey NMT"),
    "no configuration": (lambda: saved({"model": {"a": ZERO}}), r"configuration \(cfg or args\) is missing"),
    "odd model": (lambda: saved({"model": [1], "cfg": {"task": 1}}), "its model is not a dictionary of tensors"),
    "tensor": (lambda: saved(ZERO), "it contains only a Tensor"),
    "other dictionary": (lambda: saved({"epoch": 3}), "it contains epoch"),
    "module": (
        lambda: saved(torch.nn.Linear(2, 2)),
        r"contains torch\.nn\.modules\.linear\.Linear \(it is probably a whole",
    ),
    "gguf": (lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "GGUF"),
    "onnx": (lambda: b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:\x10", "ONNX"),
    "torchscript": (torchscript, "a TorchScript archive"),
    "tensorflow": (lambda: bytes(40) + bytes.fromhex("57fb808b247547db"), "the index of a TensorFlow checkpoint"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
    "ctranslate2": (lambda: struct.pack("<IH", 6, 16) + b"TransformerSpec\x00" + bytes(99), "weights of a CTranslate2"),
    "gzip": (lambda: gzip.compress(saved({})), "packed with gzip"),
    "xz": (lambda: lzma.compress(b"words"), "packed with xz"),
    "bzip2": (lambda: bz2.compress(b"words"), "packed with bzip2"),
    "tar": (lambda: tar("w"), "a tar archive"),
    "tar.gz": (lambda: tar("w:gz"), "packed with gzip"),
    "zip": (lambda: archive("checkpoint.pt"), "a zip archive, but not from torch.save"),
    "keras": (lambda: archive("config.json", "model.weights.h5"), "a Keras model"),
    "text": (lambda: b"dict of words\n" * 400, "a text file"),
    "umlauts at the limit": (lambda: ("x" * 4095 + "ü" * 9).encode(), "a text file"),
    "utf-16": (lambda: "wörter\n".encode("utf-16"), r"a text file \(UTF-16\)"),
    "json": (lambda: b'{"a": 1}', "a JSON file"),
    "web page": (lambda: b"<!DOCTYPE html>\n<html>404", "a web page"),
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: bytes(5000), "nothing but zero bytes"),
    "git lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "a Git LFS pointer"),
    "sentencepiece": (lambda: b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "a SentencePiece model"),
    "pickle": (lambda: pickle.dumps({"model": {}, "cfg": {1: "1" * 20}}), "a Python pickle"),
    "noise": (lambda: bytes((37 * i * i + 11) % 256 for i in range(900)), "truncated, damaged or in another format"),
    "torn archive": (lambda: saved({"a": ZERO})[:300], "truncated, damaged or in another format"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named_as_what_it_is(name, tmp_path):
    make, named = FILES[name]
    path = tmp_path / "teacher.pt"
    path.write_bytes(make())
    with pytest.raises(KDPluginError, match=named) as refused:
        read_checkpoint(str(path))
    message = str(refused.value)
    assert message.startswith(str(path)) and ". Remedy: " in message and "\n" not in message
    assert not any(words in message for words in TORCHS_OWN_WORDS), message


FOLDERS = {
    "hugging face": (
        {"config.json": '{"model_type": "marian"}', "pytorch_model.bin": ""},
        r"Hugging Face model \(marian\)",
    ),
    "hugging face, in parts": ({"model.safetensors.index.json": "{}"}, "a Hugging Face model"),
    "ctranslate2": ({"model.bin": "", "shared_vocabulary.json": "[]"}, "a CTranslate2 model"),
    "tensorflow": ({"saved_model.pb": ""}, "a TensorFlow model"),
    "marian": ({"model.npz": "", "decoder.yml": ""}, "NumPy"),
    "binarised data": ({"dict.en.txt": "", "train.en-de.en.idx": ""}, "a folder of binarised data"),
    "checkpoints": ({"checkpoint_best.pt": "", "checkpoint1.pt": ""}, "Remedy: .*checkpoint_best.pt"),
    "our safetensors": (
        {"kd_plugin.json": '{"kind": "safetensors"}', "model.safetensors": ""},
        "kd-plugin export wrote",
    ),
    "empty": ({}, "an empty folder"),
    "photographs": ({"a.jpg": ""}, "is a folder, not a checkpoint"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_named_as_what_it_is(name, tmp_path, capsys):
    files, named = FOLDERS[name]
    folder = tmp_path / "teacher"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_text(content)
    with pytest.raises(KDPluginError, match=named):
        read_checkpoint(str(folder))
    assert holds_ctranslate2(str(folder)) == (name == "ctranslate2")
    if name == "ctranslate2":
        return
    # evaluate takes folders, and says the same of those that it does not take
    (tmp_path / "a.txt").write_text("a\n")
    test = f"t={tmp_path / 'a.txt'},{tmp_path / 'a.txt'}"
    assert cli.main(["evaluate", "--model", f"m={folder}", "--test", test, "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert str(folder) in message and "Remedy: " in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["decode", "score", "cache", "export", "evaluate", "doctor", "ensemble"])
def test_every_verb_says_so(verb, tmp_path, capsys):
    path, text = tmp_path / "model.safetensors", tmp_path / "a.en"
    path.write_bytes(safetensors())
    text.write_text("a\n")
    out = str(tmp_path / "out")
    words = ["-s", "en", "-t", "de"]
    make_checkpoint(write_dictionaries(tmp_path / "sound", WORDS) / "sound.pt", tmp_path / "sound", *MODEL, *words)
    for language in ("en", "de"):
        (tmp_path / "sound" / f"train.en-de.{language}").write_text("word1\n")
    write_folder(tmp_path / "translations", [record(0, "word1", "word2")])
    arguments = {
        "ensemble": ["--input", text, "--path", f"{tmp_path / 'sound' / 'sound.pt'}:{path}", "--output", out, *words],
        "score": [tmp_path / "translations", "--path", path, "--output", out],
        "cache": [tmp_path / "sound", "--teacher-path", path, "--cache-dir", out, *words],
        "decode": ["--input", text, "--path", path, "--output", out, *words],
        "export": [path, "--format", "fairseq", "--output", out, *words],
        "evaluate": ["--model", f"m={path}", "--test", f"t={text},{text}", "--output", out, *words],
        "doctor": ["--teacher", path, *words],
    }[verb]
    assert cli.main([verb.replace("ensemble", "decode"), *map(str, arguments)]) == 1
    output = capsys.readouterr()
    message = output.out + output.err
    assert f"{path}" in message and "is a safetensors file" in message
    assert "Traceback" not in message
