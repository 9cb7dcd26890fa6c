"""Binarised text in any of fairseq's formats: which one it is, is it whole, and its sentences."""

import contextlib
import os
import struct
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
from fairseq.data import Dictionary, data_utils, indexed_dataset
from torch import Tensor

from kd_plugin.errors import KDPluginError

# fairseq's `cached` wants to be told which sentences will be read; `lazy` reads the same files
READ_AS = {"cached": "lazy"}
REMEDY = "Remedy: binarise the text again: fairseq-preprocess --dataset-impl mmap, which is its default"


class _Index(NamedTuple):
    sentences: int
    tokens: int
    width: int  # bytes of a token
    bytes: int  # of the whole index


def dataset_format(prefix: str) -> str:
    """The --dataset-impl with which a split can be read: mmap, lazy (of what was written as lazy or cached) or raw.

    Args:
        prefix: of the files of one side, `DATA/train.en-de.en`

    Raises:
        KDPluginError: there is none, it is of a format that is not read here, it is empty, or its files are damaged
    """
    found = indexed_dataset.infer_dataset_impl(prefix)
    if found in ("mmap", "cached"):
        _check_whole(prefix, found)
    if found in ("mmap", "cached", "raw"):
        return READ_AS.get(found, found)
    if found is not None:  # huffman, fasta
        raise KDPluginError(f"{prefix}: binarised text of the format {found} is not read here. {REMEDY}")
    index = f"{prefix}.idx"
    if not os.path.isfile(index):
        raise KDPluginError(f"{index}: is missing. {REMEDY}")
    if not os.path.isfile(f"{prefix}.bin"):
        raise KDPluginError(f"{prefix}.bin: is missing. {REMEDY}")
    raise KDPluginError(
        f"{index} ({os.path.getsize(index):,} bytes): is no index of binarised text, or a damaged one. {REMEDY}"
    )


def format_of_pair(source: str, target: str) -> str:
    """`dataset_format` of both sides of a split, which fairseq wants to be the same."""
    found = [dataset_format(prefix) for prefix in (source, target)]
    if found[0] != found[1]:
        raise KDPluginError(f"{source}: is of the format {found[0]}, {target} of {found[1]}. {REMEDY}")
    return found[0]


def open_indexed(prefix: str, dictionary: Dictionary) -> Any:
    """fairseq's dataset of one side of a split: a tensor of symbols for each sentence; errors as `dataset_format`."""
    implementation = dataset_format(prefix)
    with readable(prefix):
        return data_utils.load_indexed_dataset(prefix, dictionary, implementation)


@contextlib.contextmanager
def readable(prefix: str) -> Iterator[None]:
    """Inside, what goes wrong in reading raw text or an index is said of `prefix`."""
    try:
        yield
    except (AssertionError, OSError, UnicodeError, ValueError, struct.error) as error:
        raise _damaged(prefix, str(error) or type(error).__name__) from error


def check_ids(tokens: Tensor, dictionary: Dictionary, data: str) -> None:
    """Refuse symbols of a larger dictionary, which would be read as unknown, or end in an index error.

    Args:
        tokens: int64, of any shape
    """
    if tokens.numel() and int(tokens.max()) >= len(dictionary):
        raise KDPluginError(
            f"{data}: holds the symbol number {int(tokens.max())}, and its dictionary has {len(dictionary)} symbols: "
            "it was binarised with another one. Remedy: the dictionary of its fairseq-preprocess, or binarise it again"
        )


def _damaged(prefix: str, reason: str) -> KDPluginError:
    return KDPluginError(f"{prefix}: its binarised text is damaged ({' '.join(reason.split())[:200]}). {REMEDY}")


def _check_whole(prefix: str, implementation: str) -> None:
    """Do the sizes of both files fit what the index says?"""
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        found = _read_mmap(index) if implementation == "mmap" else _read_tnt(index)
    except (struct.error, ValueError, KeyError, OSError) as error:
        raise _damaged(prefix, f"{index.name} cannot be read") from error
    if not found.sentences:
        raise KDPluginError(f"{prefix}: has no sentence. {REMEDY}")
    for path, expected in ((index, found.bytes), (data, found.tokens * found.width)):
        size = path.stat().st_size
        if size != expected:
            raise _damaged(prefix, f"{path.name} has {size:,} bytes instead of {expected:,}")


def _read_mmap(path: Path) -> _Index:
    header = struct.unpack("<9sQBQ", _head(path, 26))
    code, sentences = header[2:]
    sizes, width = _numbers(path, np.int32, sentences, 26), np.dtype(indexed_dataset._code_to_dtype[code]).itemsize
    return _Index(sentences, int(sizes.sum(dtype=np.int64)), width, 26 + 12 * sentences)


def _read_tnt(path: Path) -> _Index:
    _, _, code, width, sentences, dimensions = struct.unpack("<8sQQQQQ", _head(path, 48))
    ends = _numbers(path, np.int64, 1, 48 + 8 * (2 * sentences + 1))
    return _Index(sentences, int(ends[0]), width, 48 + 8 * (2 * (sentences + 1) + dimensions))


def _head(path: Path, size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


def _numbers(path: Path, dtype: Any, count: int, offset: int) -> Any:
    if path.stat().st_size < offset + count * np.dtype(dtype).itemsize:
        raise ValueError("too short")
    return np.fromfile(str(path), dtype=dtype, count=count, offset=offset)
