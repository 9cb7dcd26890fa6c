"""No file, however damaged or hostile, gets further than a KDPluginError that names it."""

import argparse
import collections
import os
import pickle
import random
import tarfile
import zipfile

import pytest
import torch

from kd_plugin import compat
from kd_plugin.checkpoints.read import count_parameters, read_checkpoint
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from tests.support import MODEL, load, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder / "teacher.pt", write_dictionaries(folder, WORDS), "-s", "en", "-t", "de", *MODEL)
    return folder / "teacher.pt"


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(params=["this torch", "torch below 2.5"])
def reader(request, monkeypatch):
    """Both ways of reading safely are tested on every torch: the one it has, and ours for old versions."""
    if request.param == "torch below 2.5":
        monkeypatch.setattr(compat, "HAS_SAFE_GLOBALS", False)
        if compat.TORCH_VERSION >= (2, 6):  # where torch.load would take weights_only for granted
            real = torch.load
            monkeypatch.setattr(torch, "load", lambda *args, **kw: real(*args, **{"weights_only": False, **kw}))
    return request.param


def test_an_ordinary_checkpoint_is_read(checkpoint, reader):
    state = read_checkpoint(str(checkpoint))
    assert isinstance(state["cfg"]["model"], argparse.Namespace)
    assert count_parameters(state["model"]) > 1000


def test_numpy_values_of_eval_bleu_are_read(checkpoint, reader, tmp_path):
    import numpy as np

    values = {"counts": np.array([1, 2, 3]), "bleu": np.float64(41.5), "ordered": collections.OrderedDict(a=1)}
    torch.save({**load(checkpoint), "extra_state": values}, str(tmp_path / "numpy.pt"))
    extra = read_checkpoint(str(tmp_path / "numpy.pt"))["extra_state"]
    assert extra["counts"].tolist() == [1, 2, 3] and extra["bleu"] == 41.5 and extra["ordered"]["a"] == 1


@pytest.mark.parametrize("where", ["extra_state", "cfg", "model"])
def test_a_payload_is_named_and_not_run(where, reader, tmp_path):
    marker = tmp_path / "was run"
    state = {"cfg": {"task": None}, "model": {}, "extra_state": {}}
    state[where] = {"payload": Payload(marker)}
    torch.save(state, str(tmp_path / "evil.pt"))
    with pytest.raises(KDPluginError, match=r"evil\.pt: contains (posix|nt)\.mkdir"):
        read_checkpoint(str(tmp_path / "evil.pt"))
    assert not marker.exists()


def test_state_for_a_class_is_refused(reader, tmp_path):
    """BUILD on an allowed class would set attributes of the class itself."""
    path = tmp_path / "evil.pt"
    torch.save({"cfg": {"task": None}, "model": {}}, str(path))
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    hostile = (
        pickle.PROTO + b"\x02" + b"cargparse\nNamespace\n" + pickle.NONE + b"}" + b"X\x04\x00\x00\x00evil" + b"K\x01"
        + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD + pickle.STOP
    )  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, hostile if name.endswith("data.pkl") else content)
    with pytest.raises(KDPluginError):
        read_checkpoint(str(path))
    assert not hasattr(argparse.Namespace, "evil")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated(checkpoint, tmp_path, share, reader):
    content = checkpoint.read_bytes()
    path = tmp_path / "truncated.pt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(KDPluginError, match=r"truncated\.pt .*truncated, damaged"):
        read_checkpoint(str(path))


def test_one_flipped_bit_is_refused_by_the_hash_200_times(checkpoint, tmp_path):
    content, expected = bytearray(checkpoint.read_bytes()), sha256_of(str(checkpoint))
    path, draw, refused = tmp_path / "flipped.pt", random.Random(0), 0
    for _ in range(200):
        position, bit = draw.randrange(len(content)), 1 << draw.randrange(8)
        content[position] ^= bit
        path.write_bytes(content)
        content[position] ^= bit
        with pytest.raises(KDPluginError, match="sha256"):
            read_checkpoint(str(path), expected)
        refused += 1
    assert refused == 200
    assert read_checkpoint(str(checkpoint), expected.upper())["model"]


def test_damage_without_a_known_hash_is_read_or_refused_but_never_crashes(checkpoint, tmp_path, reader):
    content, draw = bytearray(checkpoint.read_bytes()), random.Random(1)
    path, outcomes = tmp_path / "flipped.pt", collections.Counter()
    pickled = content.index(b"data.pkl")
    for _ in range(60):
        position, bit = draw.randrange(pickled, pickled + 4000), 1 << draw.randrange(8)
        content[position] ^= bit
        path.write_bytes(content)
        content[position] ^= bit
        try:
            read_checkpoint(str(path))
            outcomes["read"] += 1
        except KDPluginError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0 and sum(outcomes.values()) == 60


def test_other_files_are_refused(tmp_path, checkpoint):
    with pytest.raises(KDPluginError, match="no such checkpoint"):
        read_checkpoint(str(tmp_path / "missing.pt"))
    with pytest.raises(KDPluginError, match="is an empty folder"):
        read_checkpoint(str(tmp_path))
    with tarfile.open(str(tmp_path / "old.pt"), "w") as archive:
        archive.add(str(checkpoint), "pickle")
    with pytest.raises(KDPluginError, match="tar format"):
        read_checkpoint(str(tmp_path / "old.pt"))
    (tmp_path / "text.pt").write_text("dict of words\n" * 100)
    with pytest.raises(KDPluginError, match="is a text file"):
        read_checkpoint(str(tmp_path / "text.pt"))
    torch.save({"weights": torch.zeros(2)}, str(tmp_path / "weights.pt"))
    with pytest.raises(KDPluginError, match="is no fairseq checkpoint"):
        read_checkpoint(str(tmp_path / "weights.pt"))
