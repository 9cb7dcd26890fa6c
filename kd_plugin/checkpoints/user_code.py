"""Code of another plugin or fork, which registers a checkpoint's architecture or task: --user-dir, --teacher-user-dir.

It runs only because the user has named its folder: nothing in a checkpoint can cause that. It is imported like
fairseq-train's --user-dir, once in every process that opens a checkpoint.
"""

import argparse
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Dict, List, Optional

from fairseq import utils
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY

from kd_plugin.checkpoints.paths import split_model_paths
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, sha256_of

TEACHERS_FLAG, FLAG = "--teacher-user-dir", "--user-dir"
NAMED = (
    f"{TEACHERS_FLAG} in fairseq-train and kd-plugin cache, {FLAG} in all other verbs, with the folder of the code "
    "that registers it"
)
OF_THIS_HOUSE = ("fairseq", "kd_plugin")


def import_user_code(folders: Optional[str], flag: str) -> None:
    """Import the packages in these folders, unless they are imported already.

    Args:
        folders: one, or several as in --teacher-path; None: nothing to import
        flag: the flag that names them, for errors

    Raises:
        KDPluginError: there is no such package, another one has its name, or importing it failed
    """
    for folder in _split(folders):
        _import(os.path.abspath(folder), f"{flag} {folder}")


def code_sha256(folders: Optional[str]) -> Optional[str]:
    """One hash of all Python files in these folders, as other code may change a model's output. None: no folder."""
    found: List[Dict[str, str]] = []
    for folder in map(Path, _split(folders)):
        files = sorted(file for file in folder.rglob("*.py") if file.is_file())
        found.append({str(file.relative_to(folder)): sha256_of(file) for file in files})
    return digest_of(found) if found else None


def is_foreign(registered: type) -> bool:
    """Whether user code has registered this task or model class."""
    return registered.__module__.split(".")[0] not in OF_THIS_HOUSE


def not_registered(path: str, what: str, name: str) -> KDPluginError:
    """The error for a checkpoint whose code is missing. what: "architecture" or "task" """
    return KDPluginError(f"{path}: its {what} {name!r} is not registered here. Remedy: {NAMED}")


def check_registered(path: str, architecture: str) -> None:
    """Refuse an architecture that is not registered."""
    if architecture not in ARCH_MODEL_REGISTRY and architecture not in MODEL_REGISTRY:
        raise not_registered(path, "architecture", architecture)


def unknown_task(task: str) -> str:
    """The end of a remedy for a model that does not fit the dictionary files: its task may add to them."""
    return (
        "" if task in TASK_REGISTRY else f"; its task {task!r}, which may add to them, is not registered here: {NAMED}"
    )


def missing_code(path: str, args: argparse.Namespace) -> Optional[KDPluginError]:
    """Why fairseq cannot read flags that a fork has stored; None: the reason is not the fork's missing code."""
    architecture, task = getattr(args, "arch", None), getattr(args, "task", "translation")
    if architecture is not None and architecture not in ARCH_MODEL_REGISTRY:
        return not_registered(path, "architecture", architecture)
    return not_registered(path, "task", task) if task not in TASK_REGISTRY else None


def _split(folders: Optional[str]) -> List[str]:
    return split_model_paths(folders) if folders else []


def _import(path: str, named: str) -> None:
    parent, name = os.path.split(path)
    if not os.path.isdir(path):
        what = "is a file" if os.path.exists(path) else "there is no such folder"
        raise KDPluginError(f"{named}: {what}. Remedy: name the folder that its authors give to fairseq's --user-dir")
    # what fairseq imports from such a folder
    if not any(os.path.exists(os.path.join(path, inside)) for inside in ("__init__.py", "tasks", "models")):
        raise KDPluginError(
            f"{named}: is not a Python package: it contains no __init__.py, tasks or models. Remedy: name the folder "
            "that its authors give to fairseq's --user-dir"
        )
    if not name.isidentifier():
        raise KDPluginError(
            f"{named}: Python cannot import a package named {name!r}. Remedy: copy or link the folder under a name "
            "of letters, digits and underscores"
        )
    holder = _holder_of(name, path)
    if holder is not None:
        raise KDPluginError(
            f"{named}: the name {name} is taken by {holder}, and Python imports one package per name. Remedy: copy or "
            "link the folder under another name"
        )
    before = set(sys.modules)
    try:
        utils.import_user_module(argparse.Namespace(user_dir=path))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # user code raises all kinds, and may exit
        # so that another attempt imports it again instead of treating it as imported
        utils.import_user_module.memo.discard(path)
        for module in set(sys.modules) - before:
            if module.split(".")[0] == name:
                del sys.modules[module]
        raise KDPluginError(
            f"{named}: importing it failed ({_reason(error, path)}). Remedy: install its dependencies, or code for "
            f"this fairseq and Python; for details: cd {parent} && python -c 'import fairseq.models, {name}'"
        ) from error


def _holder_of(name: str, path: str) -> Optional[str]:
    """What else has this name in Python, imported already or importable; None: nothing."""
    module = sys.modules.get(name)
    if module is not None:
        places = [str(place) for place in getattr(module, "__path__", [])]
        holder = getattr(module, "__file__", None) or (places[0] if places else "a part of Python")
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or [])
        holder = spec.origin or (places[0] if places else "a part of Python")
    if any(os.path.realpath(place) == os.path.realpath(path) for place in places):
        return None
    return str(holder)


def _reason(error: BaseException, path: str) -> str:
    """In one line: the error, and where in the folder's files it was raised."""
    text = " ".join(str(error).split())[:300]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(path)]
    where = f"; {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"; {error.filename}, line {error.lineno}"
        text = error.msg
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"
