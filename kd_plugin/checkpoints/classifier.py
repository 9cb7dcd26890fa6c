"""Opens a fairseq checkpoint that classifies sentences or labels tokens, without running code from it."""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from fairseq import models
from fairseq.data import Dictionary
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from kd_plugin.checkpoints.architectures import architecture_of, check_options
from kd_plugin.checkpoints.build import count_of, fit_weights, freeze
from kd_plugin.checkpoints.describe import dictionary_directories
from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.read import CheckpointFile, read_file
from kd_plugin.checkpoints.user_code import check_registered
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.labels import label_names
from kd_plugin.errors import KDPluginError
from kd_plugin.models.token_head import register_token_head

HEAD_WEIGHTS = re.compile(r"classification_heads\.([^.]+)\.out_proj\.weight$")
TOKEN_HEAD = "token_classification_head"  # the default name of a head that labels tokens
SENTENCE_HEAD = "sentence_classification_head"  # fairseq's default name of a head for sentences
LABEL_TASKS = ("classification", "tagging", "regression")  # of models that evaluate and export take


class Classifier(NamedTuple):
    """An opened checkpoint.

    model:      frozen, in eval mode, on the CPU, in float32, with its heads
    dictionary: of the text
    names:      of its labels, in the order of its outputs; None: no label/dict.txt was found
    head:       the name of the head to use
    outputs:    the number of outputs of that head
    tokens:     --init-token and --separator-token of its training
    """

    path: str
    sha256: str
    model: Any
    parameters: int
    dictionary: Dictionary
    dictionary_path: str
    names: Optional[List[str]]
    head: str
    outputs: int
    tokens: Tuple[Optional[int], Optional[int]]


def open_classifier(
    path: str,
    labels_tokens: bool,
    head: Optional[str] = None,
    expected_sha256: Optional[str] = None,
    overrides: Optional[Dict[str, Any]] = None,
    usual_head: str = "",
) -> Classifier:
    """Opens a checkpoint of any architecture that has fairseq's classification heads.

    Args:
        labels_tokens: whether the head labels tokens rather than sentences
        head: its name; None: `usual_head` if there is one of this name, else the only one
        expected_sha256: the required hash of the file; None: any
        overrides: of its configuration; `data` names the folder with its dictionaries

    Raises:
        KDPluginError: as `read_file`; there is no such head or no dictionary; its weights do not fit or are not finite
    """
    overrides = overrides or {}
    file = read_file(path, expected_sha256, overrides)
    name = architecture_of(file.cfg.model)
    check_registered(path, name)
    check_options(path, file.cfg)
    check_finite(file.weights, path)
    heads = {
        found.group(1): (int(weight.size(0)), key)
        for key, weight in file.weights.items()
        for found in [HEAD_WEIGHTS.search(key)]
        if found
    }
    chosen = _chosen(path, list(heads), head, usual_head, labels_tokens)
    dictionary, dictionary_path = _dictionary(file, overrides)
    model = _built(file, name, dictionary, dictionary_path, heads, chosen if labels_tokens else None)
    task = file.cfg.task
    tokens = getattr(task, "init_token", None), getattr(task, "separator_token", None)
    return Classifier(
        path,
        file.sha256,
        model,
        count_of(model),
        dictionary,
        dictionary_path,
        _label_names(file, overrides),
        chosen,
        heads[chosen][0],
        tokens,
    )


def open_for_task(path: str, task: str, head: Optional[str], data: Optional[str]) -> Classifier:
    """A checkpoint's classifier.

    Args:
        task: one of LABEL_TASKS
        head: --head; None: the usual one, or the only one
        data: --dict-dir, the folder with its dictionaries; None: where it was trained

    Raises:
        KDPluginError: as `open_classifier`; it reads pairs; labels of words are asked for, but its head is for
            sentences; its number of outputs is that of another task
    """
    tags = task == "tagging"
    overrides = {} if data is None else {"data": data}
    opened = open_classifier(path, tags, head, None, overrides, TOKEN_HEAD if tags else SENTENCE_HEAD)
    if tags and head is None and opened.head == SENTENCE_HEAD:
        raise KDPluginError(f"{path}: its head {SENTENCE_HEAD} is for sentences. Remedy: another --task, or a tagger")
    check_outputs_of(path, opened.outputs, task)
    folder, part = os.path.split(os.path.dirname(opened.dictionary_path))
    if part == "input0" and os.path.isdir(os.path.join(folder, "input1")):
        raise KDPluginError(
            f"{path}: reads pairs of sentences ({folder} has input1), but only models of single sentences are "
            "evaluated and exported here. Remedy: fairseq-validate scores pairs, from their binarised folder"
        )
    return opened


def check_outputs_of(path: str, outputs: int, task: str) -> None:
    """Refuses to take a label's logit for a number, or a number for labels.

    Args:
        task: one of LABEL_TASKS

    Raises:
        KDPluginError: the model's number of outputs is that of another task
    """
    if task == "regression" and outputs != 1:
        raise KDPluginError(
            f"{path}: has {outputs} outputs, but --task regression needs a model that predicts one number. Remedy: "
            "--task classification if it tells labels apart, or another model"
        )
    if task != "regression" and outputs < 2:
        raise KDPluginError(
            f"{path}: has only one output, a number, but --task {task} needs one for each label. Remedy: --task "
            "regression, or another model"
        )


def _chosen(path: str, heads: List[str], asked: Optional[str], usual: str, labels_tokens: bool) -> str:
    if not heads:
        raise KDPluginError(
            f"{path}: has no classification head: it has not learned to label anything. Remedy: fine-tune it, with "
            "fairseq's --task sentence_prediction, or with --task distillation_sequence_tagging for tags"
        )
    name = asked or (usual if usual in heads else heads[0])
    if name not in heads or (asked is None and name != usual and len(heads) > 1):
        raise KDPluginError(
            f"{path}: has the classification heads {', '.join(sorted(heads))}, "
            f"{'but none named ' + name if name not in heads else 'and it is unclear which to use'}. Remedy: "
            "--teacher-head NAME; to evaluate or export it, --head NAME"
        )
    if name == TOKEN_HEAD and not labels_tokens:
        raise KDPluginError(
            f"{path}: its head {name} labels tokens, not sentences. Remedy: --task distillation_sequence_tagging, or "
            "another teacher; to evaluate or export it, --task tagging"
        )
    return name


def _dictionary(file: CheckpointFile, overrides: Dict[str, Any]) -> Tuple[Dictionary, str]:
    """The dictionary of the text, with the <mask> that fairseq's task adds."""
    tried = [
        os.path.join(folder, name)
        for folder in dictionary_directories(file, overrides)
        for name in (os.path.join("input0", "dict.txt"), "dict.txt")
    ]
    found = next(filter(os.path.isfile, tried), None)
    if found is None:
        raise KDPluginError(
            f"{file.path}: no dictionary of this model was found (looked for {', '.join(tried)}), so it is unknown "
            "what its indices mean. Remedy: put its dict.txt beside the checkpoint, or name the folder it was trained "
            'on: --teacher-overrides \'{"data": "FOLDER"}\''
        )
    dictionary = load_dictionary(found)
    dictionary.add_symbol("<mask>")
    return dictionary, found


def _label_names(file: CheckpointFile, overrides: Dict[str, Any]) -> Optional[List[str]]:
    """The labels in the label/dict.txt beside its dictionary."""
    for folder in dictionary_directories(file, overrides):
        path = os.path.join(folder, "label", "dict.txt")
        if os.path.isfile(path):
            return label_names(load_dictionary(path))
    return None


def _built(
    file: CheckpointFile,
    name: str,
    dictionary: Dictionary,
    dictionary_path: str,
    heads: Dict[str, Tuple[int, str]],
    token_head: Optional[str],
) -> Any:
    """The model with all its heads and weights."""
    path, cfg = file.path, file.cfg
    stand_in = SentencePredictionTask(SentencePredictionConfig(), dictionary, dictionary)
    try:
        model = models.build_model(cfg.model, stand_in, from_checkpoint=True)
        for head, (outputs, key) in heads.items():
            dense = file.weights.get(key.replace(".out_proj.", ".dense."))
            more = {} if dense is None else {"inner_dim": int(dense.size(0))}
            if head == token_head:
                register_token_head(model, head, outputs, **more)
            else:
                model.register_classification_head(head, num_classes=outputs, **more)
    except KDPluginError as error:
        raise KDPluginError(f"{path}: {error}") from error
    except Exception as error:  # third-party models may raise anything
        raise KDPluginError(
            f"{path}: its architecture {name!r} cannot be built ({str(error).strip() or type(error).__name__}). "
            "Remedy: provide the code that it was trained with, or override the field of its configuration "
            "(--teacher-overrides)"
        ) from error
    fit_weights(
        model,
        file,
        f"dictionary {dictionary_path} of {len(dictionary):,} symbols",
        'name the folder that it was trained on: --teacher-overrides \'{"data": "FOLDER"}\'',
    )
    freeze(model)
    return model
