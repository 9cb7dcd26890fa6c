"""`kd-plugin doctor --teacher`: what is this checkpoint, and can it be used as a teacher?"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import Any, Dict, List, Optional

from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.checkpoints import loading
from kd_plugin.checkpoints.language_tokens import VOCABULARY_WEIGHTS, languages_of, missing_symbols, vocabulary_rows
from kd_plugin.checkpoints.paths import join_model_paths
from kd_plugin.cli.doctor import FAIL, Check
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from kd_plugin.teachers.vocabulary import find_dictionary


def teacher_checks(path: str, args: argparse.Namespace) -> List[Check]:
    """What one teacher file is, up to building the model that it describes."""
    section = f"teacher {path}"
    if not os.path.isfile(path):
        return [Check(section, "file", "not found", FAIL, str(loading.no_checkpoint(path, "check the path")))]
    try:
        state = loading.read_checkpoint(path)
    except KDPluginError as error:
        return [Check(section, "safe to read", "no", FAIL, str(error))]
    cfg = state["cfg"]
    # Where neither says it, training takes the student's.
    langs = [said or given for said, given in zip(languages_of(cfg.task), (args.source_lang, args.target_lang))]
    checks = [
        Check(section, "safe to read", "yes, as tensors and fairseq's configuration alone"),
        Check(section, "size", f"{os.path.getsize(path):,} bytes"),
        Check(section, "sha256", sha256_of(path)),
        Check(section, "architecture", architecture(cfg.model)),
        Check(section, "parameters", f"{loading.count_parameters(state):,}"),
        Check(section, "languages", "-".join(langs) if all(langs) else "not in the checkpoint"),
    ]
    return checks + fitting_checks(section, path, state["model"], cfg.task, langs, args.dict)


def architecture(model_cfg: Any) -> str:
    """Name and sizes, as far as the configuration has them: a fconv has other fields than a transformer."""
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


def fitting_checks(
    section: str, path: str, weights: Dict[str, Any], task_cfg: Any, langs: List[Any], dict_dir: Optional[str]
) -> List[Check]:
    """Do the dictionaries that training would find fit the embeddings, and can the model be built with them?"""
    checks: List[Check] = []
    dictionaries = []
    overrides = {"data": dict_dir} if dict_dir else {}
    for side, lang in zip(VOCABULARY_WEIGHTS, langs):
        rows = vocabulary_rows(weights, side)
        checks.append(Check(section, f"{side} vocabulary", "not found" if rows is None else f"{rows:,}"))
        try:
            directories = loading.dictionary_directories(path, task_cfg, overrides)
            dictionary, dictionary_path = find_dictionary(directories, lang, path)
        except KDPluginError as error:
            return [*checks, Check(section, f"{side} dictionary", "not found", FAIL, str(error))]
        check = Check(section, f"{side} dictionary", f"{dictionary_path} ({len(dictionary):,} symbols)")
        if rows is not None and rows != len(dictionary):
            other = "it is of another training: name the right folder with --dict"
            check.status, check.remedy = FAIL, missing_symbols(task_cfg, dictionary, dictionary_path, rows) or other
            return [*checks, check]
        checks.append(check)
        dictionaries.append(dictionary)

    student = TranslationTask(TranslationConfig(source_lang=langs[0], target_lang=langs[1]), *dictionaries)
    try:
        loading.load_teacher(path, student, overrides=overrides)
    except KDPluginError as error:
        return [*checks, Check(section, "builds", "no", FAIL, str(error))]
    return [*checks, Check(section, "builds", "yes, and its weights fit")]


def training_command(checks: List[Check], paths: List[str], dict_dir: Optional[str]) -> str:
    """A fairseq-train call with these teachers, their hashes pinned; only DATA_BIN is left to fill in."""
    hashes = [check.value for check in checks if check.name == "sha256"]
    overrides = ["--teacher-overrides", json.dumps({"data": dict_dir})] if dict_dir else []
    parts = [
        ["fairseq-train", "DATA_BIN", "--user-dir", '"$(kd-plugin path)"', "--task", "distillation_translation"],
        ["--teacher-path", shlex.quote(join_model_paths(paths)), "--teacher-sha256", ":".join(hashes)],
        [shlex.quote(part) for part in overrides],
        ["--criterion", "kd_label_smoothed_cross_entropy", "--label-smoothing", "0.1"],
        ["--kd-alpha", "0.5", "--kd-temperature", "1.0", "--arch", "transformer_student_tiny"],
        ["--optimizer", "adam", "--lr", "0.001", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "2000"],
        ["--max-tokens", "4096", "--max-update", "20000"],
    ]
    return " \\\n  ".join(" ".join(part) for part in parts if part)
