"""Reading a teacher from disk: safely, hashed, with its own architecture, frozen, its dictionary checked."""

import ast
import logging
import os
import pathlib
import pickle
import re
from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Optional

import torch
from fairseq import checkpoint_utils, models, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from kd_plugin.compat import BETTER_TRANSFORMER_COPY, WEIGHTS_ONLY_IS_WEAK, fairseq_is_given, load_safely
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from kd_plugin.files.json_text import RefusedJson, parse_json
from kd_plugin.checkpoints.architectures import architecture_of, check_translates
from kd_plugin.checkpoints.finite import MARKERS, check_finite
from kd_plugin.checkpoints.formats import foreign_file, foreign_folder, foreign_state, origin
from kd_plugin.checkpoints.language_tokens import check_rows, how_sentences_begin, languages_of
from kd_plugin.teachers.vocabulary import find_dictionary, teacher_indices

logger = logging.getLogger(__name__)

# how torch and our own reader name a type that they refuse
UNSAFE = re.compile(r"GLOBAL (<[^>]*>|[\w.]*\w)")
# pretrained ones: a checkpoint has them as they were trained on, and the files may be gone
EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")


@dataclass
class LoadedTeacher:
    """One frozen teacher model and what was found out about its file."""

    model: Any  # a BaseFairseqModel; fairseq ships no types
    path: str
    sha256: str
    parameters: int
    weight_bytes: int  # as the file stores them, without optimizer state
    source_indices: Optional[Tensor]  # (source vocab,) teacher's index of each student symbol, None: the same
    target_indices: Optional[Tensor]  # (target vocab,) likewise


def short_name(sha256: str, parameters: int) -> str:
    """`sha256:1a2b3c4d(7.9M)`."""
    size = f"{parameters / 1e6:.1f}M" if parameters >= 50_000 else f"{parameters}"
    return f"sha256:{sha256[:8]}({size})"


def _weights(state: Dict[str, Any]) -> Collection[Tensor]:
    """The parameters in a checkpoint's `model`, tied ones (the same memory) once."""
    weights = {
        (tensor.data_ptr(), tensor.numel()): tensor
        for name, tensor in state["model"].items()
        if torch.is_tensor(tensor) and not name.endswith(MARKERS)
        if not BETTER_TRANSFORMER_COPY.search(name)
    }
    return weights.values()


def count_parameters(state: Dict[str, Any]) -> int:
    """Number of parameters in a checkpoint's `model`, tied ones counted once."""
    return sum(weight.numel() for weight in _weights(state))


def no_checkpoint(path: str, remedy: str) -> KDPluginError:
    """What to raise where `path` is no file."""
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


def check_file(path: str, expected_sha256: Optional[str] = None) -> str:
    """The file's sha256, after checking that it is there and, where given, that it is the expected one."""
    if not os.path.isfile(path):
        raise no_checkpoint(path, "check the path (several: A.pt:B.pt)")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise KDPluginError(f"{path}: cannot be read ({error.strerror or error}). Remedy: its permissions") from error
    if expected_sha256 is not None and found != expected_sha256.lower():
        raise KDPluginError(
            f"{path}: sha256 is {found}, expected {expected_sha256}: the file is damaged or another one. Remedy: fetch "
            "it again, or correct the expected hash (--teacher-sha256)"
        )
    return found


def check_format(path: str, remedy: str = "check the path") -> None:
    """Refuse what is no file, and a file that begins as another program's."""
    if not os.path.isfile(path):
        raise no_checkpoint(path, remedy)
    foreign = foreign_file(path)
    if foreign is not None:
        raise KDPluginError(f"{path} ({os.path.getsize(path):,} bytes): is {foreign.what}. Remedy: {foreign.remedy}")


def read_checkpoint(
    path: str, expected_sha256: Optional[str] = None, overrides: Optional[Dict[str, Any]] = None
) -> Dict[str, Any]:
    """Read a fairseq checkpoint without ever running code from it, brought up to date as fairseq itself does.

    Args:
        path: the file
        expected_sha256: refuse any other file before a byte of it is unpickled
        overrides: fields of the checkpoint's configuration to replace, as fairseq's --model-overrides

    Raises:
        KDPluginError: missing, damaged, of another hash, not a fairseq checkpoint, or holding types that a
            checkpoint does not need (the type is named, nothing of it was run)
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
                f"{path} ({size}): cannot be read as a checkpoint, it is truncated, damaged or of another format "
                f"({_damage(error)}). Remedy: copy it again and compare its sha256"
            ) from error
        raise KDPluginError(
            f"{path}: holds {unsafe.group(1)}{origin(unsafe.group(1))}, which no fairseq checkpoint needs and which "
            "could run code; it was refused and not run. Remedy: use a checkpoint from a source you trust, saved by "
            "fairseq"
        ) from error
    foreign = foreign_state(state)
    if foreign is not None:
        raise KDPluginError(f"{path}: is {foreign.what}. Remedy: {foreign.remedy}")
    if "best_loss" not in state:  # not from before 2018: files stripped of all training state are welcome too
        state["extra_state"] = state.get("extra_state") or {}
        state["optimizer_history"] = state.get("optimizer_history") or [{"best_loss": None}]
    try:
        with fairseq_is_given(state):
            return checkpoint_utils.load_checkpoint_to_cpu(path, arg_overrides=overrides)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KDPluginError(
            f"{path}: fairseq cannot bring its configuration up to date ({reason}). Remedy: another checkpoint, or "
            "other overrides of its fields"
        ) from error


def _damage(error: BaseException) -> str:
    """In our own words: torch's advise to read the file unsafely."""
    if isinstance(error, EOFError):
        return "it ends too early"
    if isinstance(error, pickle.UnpicklingError):
        return "what it says of its tensors is damaged, or is more than tensors and plain values"
    if isinstance(error, RuntimeError):
        return "its archive is not whole"
    return f"{type(error).__name__} while reading it"


def parse_overrides(text: Any, flag: str = "--teacher-overrides") -> Dict[str, Any]:
    """What `flag` says: a JSON or Python dictionary, or a mapping from a YAML file."""
    if not isinstance(text, str):
        return dict(text or {})
    for parse in (parse_json, ast.literal_eval):
        try:
            overrides = parse(text or "{}")
        except RefusedJson as error:
            raise KDPluginError(f"{flag} {text[:200]!r}: {error}. Remedy: each field once, in plain text") from error
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: of endless brackets
            continue
        if isinstance(overrides, dict) and all(isinstance(name, str) for name in overrides):
            return overrides
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    raise KDPluginError(f"{flag} {shown!r} is no dictionary. Remedy: write it as '{{\"dropout\": 0.0}}'")


def load_teacher(
    path: str,
    student_task: TranslationTask,
    expected_sha256: Optional[str] = None,
    overrides: Optional[Dict[str, Any]] = None,
) -> LoadedTeacher:
    """Build the model that the checkpoint describes, whatever its architecture, and freeze it.

    Raises KDPluginError as `read_checkpoint` does, and where architecture, weights, languages or dictionaries do not
    fit, or where weights are NaN or infinite.
    """
    overrides = overrides or {}
    if WEIGHTS_ONLY_IS_WEAK and expected_sha256 is None:
        logger.warning(
            f"{path}: weights_only of torch {torch.__version__} can be attacked (CVE-2025-32434, CVE-2026-24747). "
            "Remedy: torch >= 2.10, or pin its sha256 where it teaches (--teacher-sha256 of fairseq-train and cache)"
        )
    state = read_checkpoint(path, expected_sha256, overrides)
    cfg = state["cfg"] if state.get("cfg") else convert_namespace_to_omegaconf(state["args"])
    check_translates(path, cfg)

    source_lang, target_lang = _languages(cfg.task, student_task, path)
    directories = dictionary_directories(path, cfg.task, overrides)
    source_dict, source_dict_path = find_dictionary(directories, source_lang, path)
    target_dict, target_dict_path = find_dictionary(directories, target_lang, path)
    begins = how_sentences_begin(cfg.task)
    if begins:
        logger.warning(f"{path}: {begins}")
    check_rows(state["model"], cfg.task, (source_dict, target_dict), (source_dict_path, target_dict_path), path)
    source_indices = teacher_indices(student_task.source_dictionary, source_dict, path, f"source ({source_dict_path})")
    target_indices = teacher_indices(student_task.target_dictionary, target_dict, path, f"target ({target_dict_path})")

    # models.build_model, never task.build_model: that would make every later --eval-bleu decode with the teacher.
    # The model needs a task for its two dictionaries alone.
    stand_in = TranslationTask(TranslationConfig(), source_dict, target_dict)
    for field in EMBEDDING_FILES:
        if getattr(cfg.model, field, None):
            setattr(cfg.model, field, None)
    name = architecture_of(cfg.model)
    try:
        model = models.build_model(cfg.model, stand_in, from_checkpoint=True)
    except Exception as error:  # other people's models raise anything
        raise KDPluginError(
            f"{path}: its architecture {name!r} cannot be built ({str(error).strip() or type(error).__name__}). "
            "Remedy: make the package that registers it importable, or replace the field of its configuration "
            "(--teacher-overrides in fairseq-train and kd-plugin cache, --model-overrides in decode and score)"
        ) from error
    # a teacher from 0.12.2 has weights that other fairseqs do not know; they are copies of others
    own = model.state_dict()
    weights = {name: w for name, w in state["model"].items() if name in own or not BETTER_TRANSFORMER_COPY.search(name)}
    try:
        model.load_state_dict(weights, strict=True, model_cfg=cfg.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise KDPluginError(
            f"{path}: its weights do not fit its architecture {name!r} with the dictionaries {source_dict_path} and "
            f"{target_dict_path} ({reason[:300]}). Remedy: give it the dictionaries that it was trained with"
        ) from error

    check_finite(model.state_dict(), path)
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        # fairseq's decoder layers average attention weights in eval, for alignments that nobody asks a teacher for
        if hasattr(module, "need_attn"):
            module.need_attn = False
    parameters = sum(p.numel() for name, p in model.named_parameters() if not BETTER_TRANSFORMER_COPY.search(name))
    stored = sum(weight.numel() * weight.element_size() for weight in _weights(state))
    return LoadedTeacher(model, path, sha256_of(path), parameters, stored, source_indices, target_indices)


def _languages(teacher_cfg: Any, student_task: TranslationTask, path: str) -> List[str]:
    """The teacher's source and target language; the student's where the checkpoint does not say."""
    student = [student_task.cfg.source_lang, student_task.cfg.target_lang]
    teacher = languages_of(teacher_cfg)
    if None not in teacher and teacher == student[::-1] and teacher != student:
        raise KDPluginError(
            f"{path}: this teacher translates {teacher[0]}-{teacher[1]}, the student {student[0]}-{student[1]}. "
            "Remedy: take a teacher of the same direction"
        )
    return [theirs or mine for theirs, mine in zip(teacher, student)]


def dictionary_directories(path: str, teacher_cfg: Any, overrides: Dict[str, Any]) -> List[str]:
    """Where its dictionaries may lie: the named folder alone, else beside the file, else its training data.

    Where fairseq-train was given a relative path, it was probably run in one of the folders above the checkpoint's.
    """
    if "data" in overrides:
        return [str(overrides["data"])]
    data = utils.split_paths(getattr(teacher_cfg, "data", None) or "")[:1]
    beside = pathlib.Path(os.path.abspath(path)).parent
    relative = [path for path in data if not os.path.isabs(path)]
    above = [str(folder / path) for path in relative for folder in beside.parents if (folder / path).is_dir()]
    return [str(beside), *data, *above[:1]]
