"""Examines a teacher that classifies sentences or labels words, for `kd-plugin doctor --teacher`."""

import json
import shlex
from typing import Any, Callable, Dict, List, Optional, Sequence

from kd_plugin.checkpoints.classifier import HEAD_WEIGHTS, TOKEN_HEAD, open_classifier
from kd_plugin.checkpoints.label_folder import FOR_SENTENCES, FOR_TOKENS, LabelFolder, architectures_of
from kd_plugin.checkpoints.paths import join_model_paths
from kd_plugin.checkpoints.read import CheckpointFile
from kd_plugin.environment import FAIL, Check
from kd_plugin.errors import KDPluginError

TASK = "labels"  # the name of the check that says what it labels
NAMES = "label names"  # and the one with the names of its labels
SENTENCES, WORDS = "sentences", "words"
FLAGS = ("--init-token", "--separator-token")
MORE = " …"  # after the first 20 names
UNKNOWN = "unknown: name them with --teacher-labels"


def labels_what(file: CheckpointFile) -> Optional[str]:
    """What a checkpoint labels; None: it has no classification head."""
    heads = {found.group(1) for found in map(HEAD_WEIGHTS.search, file.weights) if found}
    return None if not heads else WORDS if heads == {TOKEN_HEAD} else SENTENCES


def folder_labels_what(path: str) -> Optional[str]:
    """What the model in a Hugging Face folder labels; None: nothing, as far as its configuration says."""
    names = architectures_of(path)
    for ending, what in ((FOR_TOKENS, WORDS), (FOR_SENTENCES, SENTENCES)):
        if any(name.endswith(ending) for name in names):
            return what
    return None


def classifier_checks(section: str, file: CheckpointFile, overrides: Dict[str, str]) -> List[Check]:
    """Checks of a checkpoint with a classification head, up to building its model."""
    what = labels_what(file)
    checks = [Check(section, TASK, str(what))]
    try:
        opened = open_classifier(file.path, what == WORDS, overrides=dict(overrides))
    except KDPluginError as error:
        return [*checks, Check(section, "builds", "no", FAIL, str(error))]
    symbols = f"{opened.dictionary_path} ({len(opened.dictionary):,} symbols)"
    for flag, value in zip(FLAGS, opened.tokens):
        checks += [] if value is None else [Check(section, flag, str(value))]
    return [
        *checks,
        Check(section, "classification head", f"{opened.head}, {opened.outputs} outputs"),
        Check(section, NAMES, _names(opened.names)),
        Check(section, "dictionary", symbols),
        Check(section, "builds", "yes, and its weights fit"),
    ]


def label_folder_checks(section: str, path: str) -> List[Check]:
    """Checks of a Hugging Face folder that labels."""
    what = folder_labels_what(path)
    try:
        folder = LabelFolder(path, what == WORDS)
    except KDPluginError as error:
        return [Check(section, "safe to read", "no", FAIL, str(error))]
    config = folder.model.config
    numbers = getattr(config, "problem_type", None) == "regression"
    return [
        Check(section, "safe to read", "yes, as safetensors, without running code from the folder"),
        Check(section, "sha256", folder.sha256),
        Check(section, "architecture", type(folder.model).__name__),
        Check(section, "parameters", f"{folder.parameters:,}"),
        Check(section, TASK, str(what)),
        Check(section, NAMES, f"none: {folder.outputs} numbers" if numbers else _names(folder.names)),
        Check(section, "longest input", f"{folder.limit:,} tokens"),
    ]


def different_tasks(found: Dict[str, List[Check]]) -> List[Check]:
    """A check that fails if teachers that are fine one by one are none together; empty: they fit each other.

    Args:
        found: the checks of each path
    """
    facts = {path: {check.name: check.value for check in checks} for path, checks in found.items()}
    first, *others = facts
    for path in others:
        for told in (_labels, _named, *map(_begins, FLAGS)):
            one, other = told(facts[first]), told(facts[path])
            if one != other and None not in (one, other):
                text = f"{path} {other}, but {first} {one}"
                remedy = "Remedy: teachers of one task, for the same labels, which begin sentences alike"
                return [Check("teachers together", "fit each other", "no", FAIL, f"{text}. {remedy}")]
    return []


def _labels(facts: Dict[str, str]) -> Optional[str]:
    return f"labels {facts[TASK]}" if TASK in facts else "translates"


def _named(facts: Dict[str, str]) -> Optional[str]:
    """None: its labels are unknown, --teacher-labels names them, or they are too many to show."""
    names = facts.get(NAMES, UNKNOWN)
    return (
        None if names == UNKNOWN or names.endswith(MORE) else f"has the labels {', '.join(sorted(names.split(', ')))}"
    )


def _begins(flag: str) -> Callable[[Dict[str, str]], Optional[str]]:
    def told(facts: Dict[str, str]) -> Optional[str]:
        # a Hugging Face folder reads the text itself, with symbols of its own around it
        return f"has {flag} {facts.get(flag, 'none')}" if "dictionary" in facts and TASK in facts else None

    return told


def label_command(checks: Sequence[Check], paths: List[str], dict_dir: Optional[str], user_dir: Optional[str]) -> str:
    """A fairseq-train command with these teachers and their hashes pinned; you fill in the folder of your data."""
    hashes = [check.value for check in checks if check.name == "sha256"]
    words = any(check.name == TASK and check.value == WORDS for check in checks)
    task, criterion = ("sequence_tagging",) * 2 if words else ("sentence_prediction",) * 2
    flags = {check.name: check.value for check in checks if check.name.startswith("--")}
    unnamed = any(check.name == NAMES and check.value == UNKNOWN for check in checks)
    parts: List[Any] = [
        ["fairseq-train", "FOLDER", "--user-dir", '"$(kd-plugin path)"', "--task", f"distillation_{task}"],
        ["--teacher-path", shlex.quote(join_model_paths(paths)), "--teacher-sha256", ":".join(hashes)],
        ["--teacher-user-dir", shlex.quote(user_dir)] if user_dir else [],
        ["--teacher-overrides", shlex.quote(json.dumps({"data": dict_dir}))] if dict_dir else [],
        ["--teacher-labels", "NAME,NAME,…"] if unnamed else [],
        [word for pair in flags.items() for word in pair],
        ["--criterion", f"kd_{criterion}", "--kd-alpha", "0.5", "--kd-temperature", "2.0", "--arch", "roberta"],
        ["--encoder-layers", "4", "--encoder-embed-dim", "256", "--encoder-ffn-embed-dim", "1024"],
        ["--encoder-attention-heads", "4", "--optimizer", "adam", "--lr", "0.0005", "--batch-size", "32"],
        ["--max-update", "10000", "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric"],
    ]
    return " \\\n  ".join(" ".join(part) for part in parts if part)


def _names(names: Optional[Sequence[str]]) -> str:
    return UNKNOWN if names is None else ", ".join(names[:20]) + (MORE if len(names) > 20 else "")
