"""Reads a checkpoint file: hashes it, runs no code from it, and upgrades its configuration to today's fairseq."""

import functools
import logging
import os
import pickle
import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from fairseq.registry import REGISTRIES

from kd_plugin.checkpoints.finite import own_tensors
from kd_plugin.checkpoints.foreign_states import foreign_state, origin
from kd_plugin.checkpoints.formats import foreign_file, foreign_folder
from kd_plugin.checkpoints.user_code import missing_code
from kd_plugin.compat import WEIGHTS_ONLY_IS_WEAK, bring_up_to_date, load_safely
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of

logger = logging.getLogger(__name__)

# how torch and our own reader name a refused type
UNSAFE = re.compile(r"GLOBAL (<[^>]*>|[\w.]*\w)")


class CheckpointFile(NamedTuple):
    """The content of a checkpoint file that is needed, without optimizer state."""

    path: str
    sha256: str
    cfg: Any  # a DictConfig
    weights: Mapping[str, Any]  # its `model`

    @property
    def parameters(self) -> int:
        """The number of parameters, counting tied ones once."""
        return count_parameters(self.weights)

    @property
    def weight_bytes(self) -> int:
        """The size of the weights in the file, without optimizer state."""
        return sum(weight.numel() * weight.element_size() for weight in own_tensors(self.weights).values())


def count_parameters(weights: Mapping[str, Any]) -> int:
    """The number of parameters in a checkpoint's `model`, counting tied ones once."""
    return sum(weight.numel() for weight in own_tensors(weights).values())


def no_checkpoint(path: str, remedy: str) -> KDPluginError:
    """The error for a `path` that is not a file."""
    if not os.path.isdir(path):
        return KDPluginError(f"{path}: no such checkpoint file. Remedy: {remedy}")
    inside = sorted(name for name in os.listdir(path) if name.endswith(".pt"))
    best = [name for name in inside if name.startswith("checkpoint_best")] + inside
    if best:
        return KDPluginError(f"{path}: is a folder, not a checkpoint file. Remedy: {os.path.join(path, best[0])}")
    foreign = foreign_folder(path)
    if foreign is not None:
        return KDPluginError(f"{path}: is {foreign.what}, not a checkpoint file. Remedy: {foreign.remedy}")
    return KDPluginError(f"{path}: is a folder, not a checkpoint file. Remedy: {remedy}")


def file_key(path: Union[str, "os.PathLike[str]"]) -> Tuple[Any, ...]:
    """A key that identifies an unchanged file."""
    status = os.stat(path)
    return os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino


def model_sha256(path: Union[str, "os.PathLike[str]"]) -> str:
    """The sha256 of a model file, computed once per process."""
    return _sha256(file_key(path))


@functools.lru_cache(maxsize=None)
def _sha256(key: Tuple[Any, ...]) -> str:
    return sha256_of(key[0])


def check_file(path: str, expected_sha256: Optional[str] = None) -> str:
    """The file's sha256, after checking that the file exists and, if given, that the hash is the expected one."""
    if not os.path.isfile(path):
        raise no_checkpoint(path, "check the path (several: A.pt:B.pt)")
    try:
        found = model_sha256(path)
    except OSError as error:
        raise KDPluginError(
            f"{path}: cannot be read ({error.strerror or error}). Remedy: check its permissions"
        ) from error
    if expected_sha256 is not None and found != expected_sha256.lower():
        raise KDPluginError(
            f"{path}: sha256 is {found}, expected {expected_sha256}: the file is damaged or a different one. Remedy: "
            "fetch it again, or correct the expected hash (--teacher-sha256)"
        )
    return found


def check_format(path: str, remedy: str = "check the path") -> None:
    """Refuses a path that is not a file, and a file that begins like another program's."""
    if not os.path.isfile(path):
        raise no_checkpoint(path, remedy)
    foreign = foreign_file(path)
    if foreign is not None:
        raise KDPluginError(f"{path} ({os.path.getsize(path):,} bytes): is {foreign.what}. Remedy: {foreign.remedy}")


def read_file(
    path: str, expected_sha256: Optional[str] = None, overrides: Optional[Dict[str, Any]] = None
) -> CheckpointFile:
    """As `read_checkpoint`, without what only a resumed training needs."""
    if WEIGHTS_ONLY_IS_WEAK and expected_sha256 is None:
        logger.warning(
            f"{path}: weights_only in torch {torch.__version__} is vulnerable (CVE-2025-32434, CVE-2026-24747). "
            "Remedy: torch >= 2.10, or pin a teacher's sha256 (--teacher-sha256 of fairseq-train and cache)"
        )
    sha256 = check_file(path, expected_sha256)
    state = read_checkpoint(path, sha256, overrides)
    return CheckpointFile(path, sha256, state["cfg"], state["model"])


def read_checkpoint(
    path: str, expected_sha256: Optional[str] = None, overrides: Optional[Dict[str, Any]] = None
) -> Dict[str, Any]:
    """Reads a fairseq checkpoint without running code from it, and upgrades it as fairseq itself does.

    Args:
        expected_sha256: refuse any other file before unpickling it
        overrides: fields of the checkpoint's configuration to replace, as fairseq's --model-overrides

    Raises:
        KDPluginError: the file is missing, damaged, not a fairseq checkpoint, has another hash, or contains a type
            that a checkpoint does not need (the message names it; none of its code was run)
    """
    check_file(path, expected_sha256)
    check_format(path)
    size = f"{os.path.getsize(path):,} bytes"
    try:
        with open(path, "rb") as file:
            state = load_safely(file)
    except Exception as error:  # damaged bytes can raise anything
        unsafe = UNSAFE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if unsafe is None:
            raise KDPluginError(
                f"{path} ({size}): cannot be read as a checkpoint: it is truncated, damaged or in another format "
                f"({_damage(error)}). Remedy: copy it again and compare its sha256"
            ) from error
        raise KDPluginError(
            f"{path}: contains {unsafe.group(1)}{origin(unsafe.group(1))}, which no fairseq checkpoint needs and which "
            "could run code; it was refused and not run. Remedy: use a checkpoint from a source you trust, saved by "
            "fairseq"
        ) from error
    foreign = foreign_state(state)
    if foreign is not None:
        raise KDPluginError(f"{path}: is {foreign.what}. Remedy: {foreign.remedy}")
    if "best_loss" not in state:  # newer than 2018; also accept files stripped of all training state
        state["extra_state"] = state.get("extra_state") or {}
        state["optimizer_history"] = state.get("optimizer_history") or [{"best_loss": None}]
    _forget_training(state.get("args"))
    try:
        return bring_up_to_date(state, overrides)
    except Exception as error:
        missing = missing_code(path, state["args"]) if state.get("args") is not None else None
        if missing is not None:
            raise missing from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDPluginError(
            f"{path}: fairseq cannot upgrade its configuration ({reason}). Remedy: another checkpoint, or different "
            "overrides of its fields"
        ) from error


def _forget_training(args: Any) -> None:
    """Drop the criterion, optimizer and similar flags whose code is not installed: no model needs them."""
    for kind, registry in REGISTRIES.items():
        if getattr(args, kind, None) not in registry["registry"] and hasattr(args, kind):
            delattr(args, kind)


def _damage(error: BaseException) -> str:
    """Our own description, because torch's messages advise to read the file unsafely."""
    if isinstance(error, EOFError):
        return "it ends too early"
    if isinstance(error, pickle.UnpicklingError):
        return "its description of tensors is damaged, or contains more than tensors and plain values"
    if isinstance(error, RuntimeError):
        return "its archive is incomplete"
    return f"{type(error).__name__} while reading it"
