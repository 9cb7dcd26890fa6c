"""Examines a checkpoint as a teacher, for `kd-plugin doctor --teacher`."""

import json
import os
import shlex
from typing import Any, Dict, List, Optional, Sequence, Tuple

from kd_plugin.checkpoints.describe import dictionary_directories, find_dictionary
from kd_plugin.checkpoints.examine_labels import (
    TASK,
    classifier_checks,
    different_tasks,
    folder_labels_what,
    label_command,
    label_folder_checks,
    labels_what,
)
from kd_plugin.checkpoints.huggingface import Folder
from kd_plugin.checkpoints.language_tokens import (
    VOCABULARY_WEIGHTS,
    languages_of,
    missing_symbols,
    task_name,
    vocabulary_rows,
)
from kd_plugin.checkpoints.open import beside
from kd_plugin.checkpoints.own_tasks import own_task
from kd_plugin.checkpoints.paths import join_model_paths, split_model_paths
from kd_plugin.checkpoints.read import CheckpointFile, no_checkpoint, read_file
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.checkpoints.transformers_library import is_huggingface
from kd_plugin.checkpoints.user_code import FLAG, import_user_code
from kd_plugin.environment import FAIL, Check
from kd_plugin.errors import KDPluginError

LAYERS = ("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "d_model")  # of transformers


def examine(
    teacher: str, dict_dir: Optional[str], languages: Sequence[Optional[str]], user_dir: Optional[str] = None
) -> Tuple[List[Check], Optional[str]]:
    """Checks of the teachers, and the command to distil from them; None if something is wrong with one.

    Args:
        teacher: as for --teacher-path
        dict_dir: the folder with their dictionaries
        languages: source and target, for checkpoints that do not name them
        user_dir: as for --teacher-user-dir

    Raises:
        KDPluginError: as `import_user_code`
    """
    import_user_code(user_dir, FLAG)
    paths = split_model_paths(teacher)
    found = {path: teacher_checks(path, dict_dir, languages) for path in dict.fromkeys(paths)}
    checks = [check for path in paths for check in found[path]]
    if not any(check.status == FAIL for check in checks):
        checks += different_tasks(found)
    wrong = any(check.status == FAIL for check in checks)
    return checks, None if wrong else training_command(checks, paths, dict_dir, languages, user_dir)


def teacher_checks(path: str, dict_dir: Optional[str], languages: Sequence[Optional[str]]) -> List[Check]:
    """Checks of one teacher file, up to building its model."""
    section, overrides = f"teacher {path}", {"data": dict_dir} if dict_dir else {}
    if is_huggingface(path):
        if folder_labels_what(path) is not None:
            return label_folder_checks(section, path)
        return folder_checks(section, path, languages)
    if not os.path.isfile(path):
        return [Check(section, "file", "not found", FAIL, str(no_checkpoint(path, "check the path")))]
    try:
        file = read_file(path, overrides=overrides)
    except KDPluginError as error:
        return [Check(section, "safe to read", "no", FAIL, str(error))]
    general = [
        Check(section, "safe to read", "yes, with only tensors and fairseq's configuration"),
        Check(section, "size", f"{os.path.getsize(path):,} bytes"),
        Check(section, "sha256", file.sha256),
        Check(section, "architecture", architecture(file.cfg.model)),
        Check(section, "parameters", f"{file.parameters:,}"),
    ]
    if labels_what(file) is not None:
        return [*general, *classifier_checks(section, file, overrides)]
    # if both are unknown, training uses the student's languages
    langs = [said or given for said, given in zip(languages_of(file.cfg.task), languages)]
    languages_known = Check(section, "languages", "-".join(map(str, langs)) if all(langs) else "not in the checkpoint")
    return [*general, languages_known, *fitting_checks(section, file, langs, overrides)]


def folder_checks(section: str, path: str, languages: Sequence[Optional[str]]) -> List[Check]:
    """Checks of a Hugging Face model folder. languages: its own language codes, if it needs any"""
    try:
        folder = Folder(path)
    except KDPluginError as error:
        return [Check(section, "safe to read", "no", FAIL, str(error))]
    config, sides = folder.model.config, ("source", "target")
    sizes = [f"{name.replace('_', ' ')} {getattr(config, name)}" for name in LAYERS if hasattr(config, name)]
    checks = [
        Check(section, "safe to read", "yes, as safetensors, without running code from the folder"),
        Check(section, "sha256", folder.sha256),
        Check(section, "architecture", f"{type(folder.model).__name__}; {', '.join(sizes)}"),
        Check(section, "parameters", f"{folder.parameters:,}"),
        *(
            Check(section, f"{side} vocabulary", f"{len(vocabulary):,}")
            for side, vocabulary in zip(sides, folder.vocabularies())
        ),
    ]
    if folder.takes_languages != "none" and not any(languages):
        needed = sides if folder.takes_languages == "both" else sides[1:]
        value = f"{' and '.join(f'--teacher-{side}-lang' for side in needed)}, from {folder.examples()}"
        return [*checks, Check(section, "languages", value)]
    try:
        folder.layout(Languages(*languages) if folder.takes_languages != "none" else Languages())
    except KDPluginError as error:
        return [*checks, Check(section, "languages", "unknown", FAIL, str(error))]
    said = " to ".join(str(code) for code in languages if code)
    return [*checks, Check(section, "languages", said if folder.takes_languages != "none" else "one direction")]


def architecture(model_cfg: Any) -> str:
    """Name and sizes, as far as the configuration has them: fconv has different fields than a transformer."""
    text = str(getattr(model_cfg, "_name", None) or getattr(model_cfg, "arch", None))
    for side in ("encoder", "decoder"):
        sizes = [
            f"{field.replace('_', ' ')} {getattr(model_cfg, f'{side}_{field}')}"
            for field in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
            if hasattr(model_cfg, f"{side}_{field}")
        ]
        if sizes:
            text += f"; {side}: {', '.join(sizes)}"
    return text


def fitting_checks(section: str, file: CheckpointFile, langs: List[Any], overrides: Dict[str, str]) -> List[Check]:
    """Checks that the dictionaries that training would find fit the embeddings, and that the model can be built."""
    checks: List[Check] = []
    directories = dictionary_directories(file, overrides)
    task = own_task(file, directories, langs)
    for side, lang in zip(VOCABULARY_WEIGHTS, langs):
        rows = vocabulary_rows(file.weights, side)
        checks.append(Check(section, f"{side} vocabulary", "not found" if rows is None else f"{rows:,}"))
        try:
            if task is not None:
                dictionary = getattr(task, f"{side}_dictionary")
                dictionary_path = f"of its own task {task_name(file.cfg.task)}"
            else:
                dictionary, dictionary_path = find_dictionary(directories, lang, file.path)
        except KDPluginError as error:
            return [*checks, Check(section, f"{side} dictionary", "not found", FAIL, str(error))]
        check = Check(section, f"{side} dictionary", f"{dictionary_path} ({len(dictionary):,} symbols)")
        if rows is not None and rows != len(dictionary):
            other = "it belongs to another training: name the right folder with --dict-dir"
            missing = missing_symbols(file.cfg.task, dictionary, dictionary_path, rows)
            check.status, check.remedy = FAIL, missing or other
            return [*checks, check]
        checks.append(check)
    try:
        beside(file, langs, overrides).model  # noqa: B018  builds it
    except KDPluginError as error:
        return [*checks, Check(section, "builds", "no", FAIL, str(error))]
    return [*checks, Check(section, "builds", "yes, and its weights fit")]


def training_command(
    checks: List[Check],
    paths: List[str],
    dict_dir: Optional[str],
    languages: Sequence[Optional[str]] = (),
    user_dir: Optional[str] = None,
) -> str:
    """A fairseq-train command with these teachers and their hashes pinned; you only fill in DATA_BIN."""
    if any(check.name == TASK for check in checks):
        return label_command(checks, paths, dict_dir, user_dir)
    hashes = [check.value for check in checks if check.name == "sha256"]
    overrides = ["--teacher-overrides", json.dumps({"data": dict_dir})] if dict_dir else []
    asked = " ".join(check.value for check in checks if check.name == "languages")
    codes: List[str] = []
    for side, code in zip(("source", "target"), languages or (None, None)):
        flag = f"--teacher-{side}-lang"
        if flag in asked or (code and any(map(is_huggingface, paths))):
            codes += [flag, shlex.quote(code or "CODE")]
    parts = [
        ["fairseq-train", "DATA_BIN", "--user-dir", '"$(kd-plugin path)"', "--task", "distillation_translation"],
        ["--teacher-path", shlex.quote(join_model_paths(paths)), "--teacher-sha256", ":".join(hashes)],
        ["--teacher-user-dir", shlex.quote(user_dir)] if user_dir else [],
        codes,
        [shlex.quote(part) for part in overrides],
        ["--criterion", "kd_label_smoothed_cross_entropy", "--label-smoothing", "0.1"],
        ["--kd-alpha", "0.2", "--arch", "transformer_student_tiny"],
        ["--optimizer", "adam", "--lr", "0.0007", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000"],
        ["--max-tokens", "4096", "--max-update", "100000", "--best-checkpoint-metric", "nll_loss"],
    ]
    return " \\\n  ".join(" ".join(part) for part in parts if part)
