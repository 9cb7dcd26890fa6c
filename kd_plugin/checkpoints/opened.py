"""A checkpoint opened for export: its model, its dictionaries, and what is said of it beside every exported model."""

import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from fairseq.data import Dictionary, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from kd_plugin.errors import KDPluginError
from kd_plugin.files.json_text import LARGEST, parse_json
from kd_plugin.corpus.languages import check_languages
from kd_plugin.checkpoints.architectures import check_translates
from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.language_tokens import check_rows, languages_of
from kd_plugin.checkpoints.loading import dictionary_directories, load_teacher, no_checkpoint, read_checkpoint
from kd_plugin.teachers.vocabulary import find_dictionary
from kd_plugin.version import __version__

DESCRIPTION = "kd_plugin.json"  # beside every exported model
FORMAT, FORMAT_VERSION = "kd_plugin export", 1


class OpenedCheckpoint(NamedTuple):
    """One checkpoint's model and all that says what its indices mean."""

    path: str
    sha256: str
    parameters: int  # tied ones once
    model: Any  # a BaseFairseqModel on the CPU, float32, frozen, in eval
    cfg: Any  # the checkpoint's configuration, a DictConfig
    languages: Optional[List[str]]  # source, target; None: nobody says, and the dictionary is a joined one
    dictionaries: List[Dictionary]  # source, target
    dictionary_paths: List[str]

    @property
    def max_source_tokens(self) -> int:
        """Without end of sentence."""
        return int(self.model.max_positions()[0]) - 1

    @property
    def max_target_tokens(self) -> int:
        """Without end of sentence."""
        return int(self.model.max_positions()[1]) - 1

    def describe(self, kind: str, **more: Any) -> Dict[str, Any]:
        """What DESCRIPTION says."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "kind": kind,
            "kd_plugin": __version__,
            "checkpoint_sha256": self.sha256,
            "parameters": self.parameters,
            "languages": self.languages,
            "max_source_tokens": self.max_source_tokens,
            "max_target_tokens": self.max_target_tokens,
            **more,
        }


class Described(NamedTuple):
    """What is known of a checkpoint without building its model. The fields are OpenedCheckpoint's."""

    cfg: Any
    languages: Optional[List[str]]
    dictionaries: List[Dictionary]
    dictionary_paths: List[str]


def describe_checkpoint(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> Described:
    """Configuration, languages and dictionaries; arguments and errors as `open_checkpoint`."""
    overrides = overrides or {}
    if not os.path.isfile(path):
        raise no_checkpoint(path, "the path of a .pt file of fairseq-train")
    state = read_checkpoint(path, overrides=overrides)
    cfg = state["cfg"]
    check_translates(path, cfg)
    check_finite(state["model"], path)  # the model is built later, by whoever translates
    directories = dictionary_directories(path, cfg.task, overrides)
    inferred, said = _languages_of_data(directories), languages_of(cfg.task)
    given = [
        source_lang or said[0] or inferred[0],
        target_lang or said[1] or inferred[1],
    ]
    if None in given and not any(os.path.isfile(os.path.join(folder, "dict.txt")) for folder in directories):
        raise KDPluginError(
            f"{path}: its languages are not in the checkpoint, and there is no joined dict.txt in "
            f"{' or '.join(directories)}. Remedy: --source-lang and --target-lang, and --dict-dir where the "
            "dictionaries are elsewhere"
        )
    check_languages(*given, where=None if given == [source_lang, target_lang] else path, distinct=False)
    languages = None if None in given else [str(language) for language in given]
    found = []
    for name in (given[0] or "source", given[1] or "target"):
        try:
            found.append(find_dictionary(directories, name, path))
        except KDPluginError as error:
            raise KDPluginError(
                f"{path}: there is no dict.{name}.txt or dict.txt in {' or '.join(directories)}. Remedy: --dict-dir "
                "with the folder of the data that it was trained on"
            ) from error
    dictionaries, files = [dictionary for dictionary, _ in found], [file for _, file in found]
    check_rows(state["model"], cfg.task, dictionaries, files, path)
    return Described(cfg, languages, dictionaries, files)


def open_checkpoint(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> OpenedCheckpoint:
    """Model and dictionaries of one checkpoint of any architecture, read without running code from it.

    Args:
        overrides: as for `read_checkpoint`; `data` names the folder with its dictionaries
        source_lang, target_lang: where the checkpoint does not say; not needed with a joined dict.txt

    Raises:
        KDPluginError: as `read_checkpoint` and `load_teacher`, or there is no dictionary
    """
    described = describe_checkpoint(path, overrides, source_lang, target_lang)
    source, target = described.languages or ["source", "target"]
    task = TranslationTask(TranslationConfig(source_lang=source, target_lang=target), *described.dictionaries)
    loaded = load_teacher(path, task, None, overrides or {})
    return OpenedCheckpoint(path, loaded.sha256, loaded.parameters, loaded.model, *described)


def _languages_of_data(directories: List[str]) -> Sequence[Optional[str]]:
    """Source and target by the names of binarised files, as fairseq-train infers them."""
    for folder in directories:
        if not os.path.isdir(folder):
            continue
        source, target = data_utils.infer_language_pair(folder)
        if all(lang and os.path.isfile(os.path.join(folder, f"dict.{lang}.txt")) for lang in (source, target)):
            return source, target
    return None, None


def read_description(folder: Path) -> Dict[str, Any]:
    """What `kd-plugin export` wrote beside a model; empty for a model that something else made."""
    try:
        content = parse_json((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    for name in ("max_source_tokens", "max_target_tokens", "parameters"):
        value = content.get(name)
        if value is not None and not (type(value) is int and 0 < value < LARGEST):
            raise KDPluginError(
                f"{folder / DESCRIPTION}: {name} is {str(value)[:60]!r}, no number. Remedy: export the model again"
            )
    return content


def described_languages(description: Dict[str, Any]) -> Optional[List[str]]:
    """Source and target that a description names; None where it does not."""
    languages = description.get("languages")
    said = isinstance(languages, list) and len(languages) == 2 and all(isinstance(code, str) for code in languages)
    return languages if said else None
