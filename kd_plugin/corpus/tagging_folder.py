"""Writes a folder for sequence tagging, input0/ and label/, as a whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple

import torch
from fairseq.data import Dictionary, indexed_dataset

from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import make_folder, temporary_beside
from kd_plugin.files.locks import LOCK, Claim, lock_beside

PARTS = ("input0", "label")


def check_free(output: str) -> None:
    """Refuses a folder that has one of the parts.

    Raises:
        KDPluginError: it has
    """
    if any(os.path.lexists(os.path.join(output, part)) for part in PARTS):
        raise KDPluginError(f"--output {output}: already has input0/ or label/. Remedy: another folder")


def write_folder(output: str, job: str, parts: Dict[str, Tuple[Dictionary, Dict[str, List[List[str]]]]]) -> None:
    """Writes the parts under another name, and gives them theirs when all are complete.

    Args:
        output: a new folder, or one with other content
        job: a hash of the command
        parts: for each of PARTS, its dictionary and the lines of each split

    Raises:
        KDPluginError: another run writes there, the parts exist by now, or the folder cannot be written
    """
    folder = Path(os.path.realpath(output))
    make_folder(folder.parent, "--output")
    there = folder.exists()
    lock = folder / LOCK if there else lock_beside(folder)
    temporary = temporary_beside(folder / "parts" if there else folder)
    claim = Claim(lock, f"--output {output}", job, lambda begun: check_free(output))
    placed: List[Path] = []
    try:
        for part, (dictionary, lines) in parts.items():
            (temporary / part).mkdir(parents=True)
            for name, split in lines.items():
                _write(temporary / part, name, dictionary, split)
            dictionary.save(str(temporary / part / "dict.txt"))
        check_free(output)
        if not folder.exists():
            os.rename(temporary, folder)
            return
        for part in parts:
            os.rename(temporary / part, folder / part)
            placed.append(folder / part)
    except BaseException as error:
        for path in placed:
            os.rename(path, temporary / path.name)
        if isinstance(error, OSError):
            raise KDPluginError(f"--output {output}: {error.strerror}. Remedy: a writable folder with space") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        claim.finish()


def _write(folder: Path, name: str, dictionary: Dictionary, lines: Iterable[List[str]]) -> None:
    builder: Any = indexed_dataset.make_builder(str(folder / f"{name}.bin"), impl="mmap", vocab_size=len(dictionary))
    for line in lines:
        indices = [dictionary.index(symbol) for symbol in line]
        builder.add_item(torch.tensor([*indices, dictionary.eos()], dtype=torch.int32))
    builder.finalize(str(folder / f"{name}.idx"))
