"""The meaning of a checkpoint's indices: its languages, and the dictionaries that it was trained with."""

import logging
import os
import pathlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from fairseq import utils
from fairseq.data import Dictionary, data_utils

from kd_plugin.checkpoints.language_tokens import check_rows, how_sentences_begin, languages_of, task_name
from kd_plugin.checkpoints.own_tasks import own_task
from kd_plugin.checkpoints.read import CheckpointFile
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.languages import check_languages
from kd_plugin.errors import KDPluginError

logger = logging.getLogger(__name__)


class Description(NamedTuple):
    """Languages and dictionaries, each as [source, target]."""

    languages: Optional[List[str]]  # None: unknown, and the dictionary is a joined one
    dictionaries: List[Dictionary]
    dictionary_paths: List[str]
    task: Any = None  # from user code, which provided the dictionaries; None: they are the files'


def describe(
    file: CheckpointFile, overrides: Dict[str, Any], source_lang: Optional[str], target_lang: Optional[str]
) -> Description:
    """Describes a checkpoint that is used on its own.

    Args:
        overrides: `data` names the folder with its dictionaries
        source_lang, target_lang: take precedence over the checkpoint's; not needed with a joined dict.txt

    Raises:
        KDPluginError: languages or a dictionary are missing, or the dictionary lacks symbols that its task adds
    """
    path, directories = file.path, dictionary_directories(file, overrides)
    inferred, said = _languages_of_data(directories), languages_of(file.cfg.task)
    given = [
        source_lang or said[0] or inferred[0],
        target_lang or said[1] or inferred[1],
    ]
    if None in given and not any(os.path.isfile(os.path.join(folder, "dict.txt")) for folder in directories):
        raise KDPluginError(
            f"{path}: its languages are not in the checkpoint, and there is no joined dict.txt in "
            f"{' or '.join(directories)}. Remedy: --source-lang and --target-lang, and --dict-dir if the "
            "dictionaries are elsewhere"
        )
    check_languages(*given, where=None if given == [source_lang, target_lang] else path, distinct=False)
    task = own_task(file, directories, given)
    if task is not None:
        return _described_by(task, file, directories, given)
    found = []
    for name in (given[0] or "source", given[1] or "target"):
        file_of_it = next(filter(os.path.isfile, _candidates(directories, name)), None)
        if file_of_it is None:
            raise KDPluginError(
                f"{path}: there is no dict.{name}.txt or dict.txt in {' or '.join(directories)}. Remedy: --dict-dir "
                "with the folder of the data that it was trained on"
            )
        found.append((load_dictionary(file_of_it), file_of_it))
    return _described(file, None if None in given else [str(language) for language in given], found)


def describe_beside(file: CheckpointFile, overrides: Dict[str, Any], languages: Sequence[Optional[str]]) -> Description:
    """Describes a checkpoint that is used together with another model.

    Args:
        overrides: as for `describe`
        languages: the other model's, which both must share; they also stand in for languages the checkpoint lacks

    Raises:
        KDPluginError: as `describe`, or it translates in the opposite direction
    """
    own = languages_of(file.cfg.task)
    check_direction(file.path, own, languages)
    known = [said or other for said, other in zip(own, languages)]
    directories = dictionary_directories(file, overrides)
    task = own_task(file, directories, known)
    if task is not None:
        return _described_by(task, file, directories, known)
    found = [find_dictionary(directories, language, file.path) for language in known]
    return _described(file, None if None in known else [str(language) for language in known], found)


def _described(
    file: CheckpointFile, languages: Optional[List[str]], found: Sequence[Tuple[Dictionary, str]]
) -> Description:
    dictionaries, files = [dictionary for dictionary, _ in found], [path for _, path in found]
    begins = how_sentences_begin(file.cfg.task)
    if begins:
        logger.warning(f"{file.path}: {begins}")
    check_rows(file.weights, file.cfg.task, dictionaries, files, file.path)
    return Description(languages, dictionaries, files)


def _described_by(
    task: Any, file: CheckpointFile, directories: Sequence[str], languages: Sequence[Optional[str]]
) -> Description:
    """The description from the checkpoint's own task."""
    files = [
        next(filter(os.path.isfile, _candidates(directories, language)), f"the task {task_name(file.cfg.task)}")
        for language in languages
    ]
    found = list(zip((task.source_dictionary, task.target_dictionary), files))
    named = None if None in languages else [str(language) for language in languages]
    return _described(file, named, found)._replace(task=task)


def check_direction(path: str, own: Sequence[Optional[str]], languages: Sequence[Optional[str]]) -> None:
    """Refuses a model for the opposite direction, whose dictionaries may well be the same."""
    if None not in own and list(own) == list(languages)[::-1] and own[0] != own[1]:
        raise KDPluginError(
            f"{path}: this teacher translates {own[0]}-{own[1]}, but the student {languages[0]}-{languages[1]}. "
            "Remedy: use a teacher for the same direction"
        )


def dictionary_directories(file: CheckpointFile, overrides: Dict[str, Any]) -> List[str]:
    """Where its dictionaries may be: only the named folder, or else beside the file and in its training data.

    If fairseq-train got a relative path, it was probably run in one of the folders above the checkpoint.
    """
    if "data" in overrides:
        return [str(overrides["data"])]
    data = utils.split_paths(getattr(file.cfg.task, "data", None) or "")[:1]
    beside = pathlib.Path(os.path.abspath(file.path)).parent
    relative = [path for path in data if not os.path.isabs(path)]
    above = [str(folder / path) for path in relative for folder in beside.parents if (folder / path).is_dir()]
    return [str(beside), *data, *above[:1]]


def find_dictionary(directories: Iterable[str], lang: Optional[str], path: str) -> Tuple[Dictionary, str]:
    """A checkpoint's dictionary for `lang`: `dict.LANG.txt` or a joined `dict.txt` in the first directory with one.

    A fairseq checkpoint contains only the path of its training data, not its dictionary. If the language is unknown
    (None), only a joined dictionary can be found.
    """
    tried = _candidates(directories, lang)
    for file in tried:
        if os.path.isfile(file):
            return load_dictionary(file), file
    if lang is None:
        raise KDPluginError(
            f"{path}: its languages are not in the checkpoint, and no joined dictionary was found (looked for "
            f"{', '.join(tried)}). Remedy: name its languages (--source-lang LANG --target-lang LANG) and, if "
            "necessary, the folder it was trained on (--dict-dir DATA_BIN)"
        )
    raise KDPluginError(
        f"{path}: no dictionary of this teacher was found (looked for {', '.join(tried)}), so it is unknown "
        "whether its indices mean the student's symbols. Remedy: put its "
        f"dict.{lang}.txt beside the checkpoint, or name "
        'the folder it was trained on: --teacher-overrides \'{"data": "DATA_BIN"}\' (fairseq-train, kd-plugin cache), '
        "--dict DATA_BIN (doctor) or --dict-dir DATA_BIN (all others)"
    )


def _candidates(directories: Iterable[str], lang: Optional[str]) -> List[str]:
    names = ["dict.txt"] if lang is None else [f"dict.{lang}.txt", "dict.txt"]
    return [os.path.join(folder, name) for folder in directories for name in names]


def _languages_of_data(directories: List[str]) -> Sequence[Optional[str]]:
    """Source and target language from the names of binarised files, as fairseq-train infers them."""
    for folder in directories:
        if not os.path.isdir(folder):
            continue
        source, target = data_utils.infer_language_pair(folder)
        if all(lang and os.path.isfile(os.path.join(folder, f"dict.{lang}.txt")) for lang in (source, target)):
            return source, target
    return None, None
