"""Checks the tensors in CTranslate2's model.bin for NaN, because CTranslate2 itself silently translates with NaN."""

import struct
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Tuple

import numpy as np

from kd_plugin.errors import KDPluginError

# in the order of CTranslate2's type ids; NumPy has no bfloat16
DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, np.uint16)
BFLOAT16 = 5
FIRST_VERSION = 4  # the first to store each tensor's type; older versions are years old


def check_weights(folder: Path) -> None:
    """Refuses a model with NaN or infinite weights. folder: a model that CTranslate2 has accepted"""
    bad = []
    total = 0
    with open(folder / "model.bin", "rb") as file:
        for name, type_id, values in _tensors(file):
            total += 1
            wrong = _not_finite(type_id, values)
            if wrong:
                bad.append((name, wrong, values.size))
    if bad:
        name, wrong, size = bad[0]
        raise KDPluginError(
            f"{folder}: {len(bad)} of its {total} tensors hold NaN or infinite values; the first is {name} "
            f"({wrong:,} of {size:,} values). Remedy: export an intact checkpoint again"
        )


def _not_finite(type_id: int, values: Any) -> int:
    if type_id == BFLOAT16:
        return int(((values & 0x7F80) == 0x7F80).sum())
    if values.dtype.kind != "f":
        return 0
    return int(values.size - np.isfinite(values).sum())


def _tensors(file: BinaryIO) -> Iterator[Tuple[str, int, Any]]:
    """Each tensor's name, type id and values; none for unknown versions."""
    (version,) = struct.unpack("<I", file.read(4))
    if version < FIRST_VERSION:
        return
    _string(file)  # kind of model
    file.read(4)  # revision
    (number,) = struct.unpack("<I", file.read(4))
    for _ in range(number):
        name = _string(file)
        (rank,) = struct.unpack("<B", file.read(1))
        file.read(4 * rank)
        type_id, size = struct.unpack("<BI", file.read(5))
        content = file.read(size)
        if type_id >= len(DTYPES) or len(content) != size:
            return
        yield name, type_id, np.frombuffer(content, dtype=DTYPES[type_id])


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    return file.read(length).rstrip(b"\x00").decode("utf-8", "replace")
