"""Reads binarised text in any of fairseq's formats: detects the format, checks that it is complete, opens it."""

import contextlib
import os
import struct
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np
from fairseq.data import Dictionary, data_utils, indexed_dataset
from torch import Tensor

from kd_plugin.errors import KDPluginError

# fairseq's `cached` must know beforehand which sentences will be read; `lazy` reads the same files
READ_AS = {"cached": "lazy"}
REMEDY = "Remedy: binarise the text again: fairseq-preprocess --dataset-impl mmap, which is its default"


class _Index(NamedTuple):
    sentences: int
    tokens: int
    width: int  # bytes per token
    bytes: int  # size of the whole index


def dataset_format(prefix: str) -> str:
    """The --dataset-impl to read a split with: mmap, lazy (for data written as lazy or cached) or raw.

    Args:
        prefix: of one side's files, `DATA/train.en-de.en`

    Raises:
        KDPluginError: the data is missing, empty, damaged, or in an unsupported format
    """
    found = indexed_dataset.infer_dataset_impl(prefix)
    if found in ("mmap", "cached"):
        _check_whole(prefix, found)
    if found in ("mmap", "cached", "raw"):
        return READ_AS.get(found, found)
    if found is not None:  # huffman, fasta
        raise KDPluginError(f"{prefix}: binarised text of the format {found} is not supported. {REMEDY}")
    index = f"{prefix}.idx"
    if not os.path.isfile(index):
        raise KDPluginError(f"{index}: is missing. {REMEDY}")
    if not os.path.isfile(f"{prefix}.bin"):
        raise KDPluginError(f"{prefix}.bin: is missing. {REMEDY}")
    raise KDPluginError(
        f"{index} ({os.path.getsize(index):,} bytes): is not an index of binarised text, or is damaged. {REMEDY}"
    )


def format_of_pair(source: str, target: str) -> str:
    """`dataset_format` of both sides of a split, which fairseq requires to be the same."""
    found = [dataset_format(prefix) for prefix in (source, target)]
    if found[0] != found[1]:
        raise KDPluginError(f"{source}: has the format {found[0]}, but {target} has {found[1]}. {REMEDY}")
    return found[0]


def open_indexed(prefix: str, dictionary: Dictionary) -> Any:
    """fairseq's dataset for one side of a split: one tensor of symbols per sentence. Raises as `dataset_format`."""
    implementation = dataset_format(prefix)
    with readable(prefix):
        return data_utils.load_indexed_dataset(prefix, dictionary, implementation)


@contextlib.contextmanager
def readable(prefix: str) -> Iterator[None]:
    """Within this context, errors in reading raw text or an index become a KDPluginError that names `prefix`."""
    try:
        yield
    except (AssertionError, OSError, UnicodeError, ValueError, struct.error) as error:
        raise _damaged(prefix, str(error) or type(error).__name__) from error


def check_ids(tokens: Tensor, dictionary: Dictionary, data: str) -> None:
    """Refuses symbols of a larger dictionary, which would be read as unknown or raise an index error.

    Args:
        tokens: int64, of any shape
    """
    if tokens.numel() and int(tokens.max()) >= len(dictionary):
        raise KDPluginError(
            f"{data}: contains symbol number {int(tokens.max())}, but its dictionary has {len(dictionary)} symbols: "
            "it was binarised with another one. Remedy: the dictionary of its fairseq-preprocess, or binarise it again"
        )


def _damaged(prefix: str, reason: str) -> KDPluginError:
    return KDPluginError(f"{prefix}: its binarised text is damaged ({' '.join(reason.split())[:200]}). {REMEDY}")


def _check_whole(prefix: str, implementation: str) -> None:
    """Raises unless the sizes of both files match the index."""
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
