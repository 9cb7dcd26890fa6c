"""Makes a student's checkpoint an ordinary fairseq checkpoint, which needs and names neither plugin nor teacher."""

import argparse
import glob
import os
from dataclasses import fields
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.criterions.sentence_prediction import SentencePredictionConfig as SentenceCriterionConfig
from fairseq.tasks.sentence_prediction import SentencePredictionConfig
from fairseq.tasks.translation import TranslationConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from kd_plugin.errors import KDPluginError
from kd_plugin.models.student_transformer import STUDENT_ARCHITECTURES

STOCK_TASK = "translation"
STOCK_CRITERION = "label_smoothed_cross_entropy"


class Stock(NamedTuple):
    """A fairseq task that one of our tasks extends, and its criterion.

    config: the task's dataclass; None: an older task, whose configuration is a namespace
    criterion_config: the criterion's dataclass
    """

    task: str
    config: Optional[type]
    criterion: str = STOCK_CRITERION
    criterion_config: type = LabelSmoothedCrossEntropyCriterionConfig


TRANSLATION = Stock(STOCK_TASK, TranslationConfig)
SENTENCES = Stock("sentence_prediction", SentencePredictionConfig, "sentence_prediction", SentenceCriterionConfig)
MULTILINGUAL = Stock("translation_multi_simple_epoch", None)


def describe_as_stock(cfg: DictConfig, private_fields: Any, stock: Stock = TRANSLATION) -> None:
    """Changes, in place, the configuration that fairseq's trainer writes into every checkpoint.

    fairseq-generate, fairseq-validate, from_pretrained and converters build task, criterion and model from it, so it
    names the stock classes that read the same model; all sizes of the architecture are already written out.

    Args:
        cfg: the trainer's root configuration
        private_fields: names of the plugin's own fields, which the command line also copies into cfg.model
        stock: the stock task to name
    """
    with open_dict(cfg):
        cfg.common.user_dir = None
        # removed and reinserted, because a structured node allows neither deleting fields nor assigning another type
        if stock.config is not None:
            cfg["task"] = _only(cfg.pop("task"), stock.config, stock.task)
        cfg["criterion"] = _only(cfg.pop("criterion"), stock.criterion_config, stock.criterion)
        for part in (cfg.task, cfg.model):
            if isinstance(part, argparse.Namespace):
                for name in list(vars(part)):
                    if name in private_fields:
                        delattr(part, name)
                part.user_dir, part.task, part.criterion = None, stock.task, stock.criterion
                if part.arch in STUDENT_ARCHITECTURES:
                    part.arch = "transformer"
        if isinstance(cfg.task, argparse.Namespace):
            cfg.task._name = stock.task
        name = cfg.model._name if isinstance(cfg.model, argparse.Namespace) else cfg.model.get("_name")
        if name in STUDENT_ARCHITECTURES:
            cfg.model._name = "transformer"


def refuse_to_replace(teachers: Sequence[str], save_dir: str) -> None:
    """Refuses teachers that a training would overwrite with its own checkpoint*.pt."""
    for written in glob.glob(os.path.join(glob.escape(save_dir), "checkpoint*.pt")):
        for teacher in teachers:
            if os.path.exists(teacher) and os.path.exists(written) and os.path.samefile(teacher, written):
                raise KDPluginError(
                    f"--teacher-path {teacher}: is {written}, which this training would overwrite with the student. "
                    "Remedy: another --save-dir"
                )


def _only(node: DictConfig, dataclass: type, name: str) -> Dict[str, Any]:
    """The fields of the stock dataclass; those that ours lacks have their defaults, unless another part sets them."""
    defaults = {
        field.name: field.default for field in fields(dataclass) if isinstance(field.default, (bool, int, float))
    }
    values = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    return {
        **defaults,
        **{field.name: values[field.name] for field in fields(dataclass) if field.name in values},
        "_name": name,
    }


def carry_state(iterator: Any, key: str, owner: Callable[[], Any]) -> Any:
    """Adds another object's state to an iterator's, which fairseq saves and restores with every checkpoint.

    Args:
        iterator: an EpochBatchIterator; modified and returned
        key: in the iterator's state
        owner: returns the object, which has state_dict() and load_state_dict()
    """
    if key in vars(iterator):  # fairseq uses some iterators for several epochs
        return iterator
    setattr(iterator, key, True)
    own_state_dict, own_load_state_dict = iterator.state_dict, iterator.load_state_dict

    def state_dict() -> Dict[str, Any]:
        return {**own_state_dict(), key: owner().state_dict()}

    def load_state_dict(state: Dict[str, Any]) -> None:
        own_load_state_dict(state)
        if state.get(key):
            owner().load_state_dict(state[key])

    iterator.state_dict, iterator.load_state_dict = state_dict, load_state_dict
    return iterator
