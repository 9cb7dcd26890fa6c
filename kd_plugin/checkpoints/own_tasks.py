"""The task of a plugin or fork that a checkpoint was trained with: what its dictionaries are, it says itself."""

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
    """The task, set up as fairseq sets it up, where code of a user's has registered it and it translates.

    Args:
        folders: where its dictionaries may lie; it is asked to start with each, and the first that does counts
        languages: source and target; None: nobody says

    Returns:
        a FairseqTask with a source and a target dictionary; None: it is one of fairseq's own, or nothing that
        translates text, or does not start here; then the dictionaries are looked for as for any checkpoint
    """
    name = task_name(file.cfg.task)
    if name not in tasks.TASK_REGISTRY or not is_foreign(tasks.TASK_REGISTRY[name]):
        return None
    reasons = []
    for folder in folders:
        try:
            task = tasks.setup_task(_with(file.cfg.task, folder, languages))
            dictionaries = [task.source_dictionary, task.target_dictionary]
        except (Exception, SystemExit) as error:  # code of a user's raises anything
            reasons.append(f"{folder}: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        if all(isinstance(dictionary, Dictionary) for dictionary in dictionaries):
            return task
        reasons.append(f"{folder}: it has no source and target dictionary")
    logger.warning(
        f"{file.path}: its task {name} does not start here ({'; '.join(reasons)}), so its dictionaries are taken from "
        "the files as they are. Remedy, where it changes them: name the folder of the data that it was trained on"
    )
    return None


def _with(task_cfg: Any, folder: str, languages: Sequence[Optional[str]]) -> Any:
    """A copy of a task's configuration, for another folder of data."""
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
