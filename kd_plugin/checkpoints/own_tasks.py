"""The task of a plugin or fork that a checkpoint was trained with: the task itself provides the dictionaries."""

import argparse
import copy
import logging
from typing import Any, Optional, Sequence

from fairseq import tasks
from fairseq.data import Dictionary
from omegaconf import OmegaConf, open_dict

from kd_plugin.checkpoints.language_tokens import task_name
from kd_plugin.checkpoints.read import CheckpointFile
from kd_plugin.checkpoints.user_code import is_foreign

logger = logging.getLogger(__name__)


def own_task(file: CheckpointFile, folders: Sequence[str], languages: Sequence[Optional[str]]) -> Any:
    """The task, set up as by fairseq, if user code has registered it and it translates.

    Args:
        folders: where its dictionaries may be; setup is tried with each, and the first that works is used
        languages: source and target; None: unknown

    Returns:
        a FairseqTask with a source and a target dictionary; None if it is one of fairseq's own, does not translate
        text, or cannot be set up here; the dictionaries are then searched for as for any checkpoint
    """
    name = task_name(file.cfg.task)
    if name not in tasks.TASK_REGISTRY or not is_foreign(tasks.TASK_REGISTRY[name]):
        return None
    reasons = []
    for folder in folders:
        try:
            task = tasks.setup_task(_with(file.cfg.task, folder, languages))
            dictionaries = [task.source_dictionary, task.target_dictionary]
        except (Exception, SystemExit) as error:  # user code raises all kinds
            reasons.append(f"{folder}: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        if all(isinstance(dictionary, Dictionary) for dictionary in dictionaries):
            return task
        reasons.append(f"{folder}: it has no source and target dictionary")
    logger.warning(
        f"{file.path}: its task {name} cannot be set up here ({'; '.join(reasons)}), so its dictionaries are read "
        "unchanged from the files. Remedy, if the task changes them: name the folder of its training data"
    )
    return None


def _with(task_cfg: Any, folder: str, languages: Sequence[Optional[str]]) -> Any:
    """A copy of a task's configuration for another data folder."""
    values = {"data": folder}
    values.update({name: lang for name, lang in zip(("source_lang", "target_lang"), languages) if lang})
    changed = copy.deepcopy(task_cfg)
    if isinstance(changed, argparse.Namespace):
        vars(changed).update({name: value for name, value in values.items() if hasattr(changed, name)})
        return changed
    OmegaConf.set_readonly(changed, False)
    with open_dict(changed):
        for name, value in values.items():
            if name in changed:
                changed[name] = value
    return changed
