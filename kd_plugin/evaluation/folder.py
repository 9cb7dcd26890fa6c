"""The folder of an evaluation: what it may not overwrite, and the claim on it while the evaluation runs."""

import datetime
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence

from kd_plugin.environment import machine, versions
from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.results import FORMAT, FORMAT_VERSION, JSON_NAME, evaluation_of
from kd_plugin.evaluation.table import markdown
from kd_plugin.files.atomic import make_folder, write_atomically, write_json
from kd_plugin.files.locks import LOCK, Claim, begun
from kd_plugin.files.protection import Named, already_there, check_outputs, check_possible

TABLE_NAME = "evaluation.md"


class OutputFolder:
    """The folder of --output: evaluation.json, the table, and a text per model and test set.

    Args:
        path: of --output
        texts: the name of the folder of those texts
        job: a hash of the options: the same command may overwrite what it has begun
    """

    def __init__(self, path: str, texts: str, job: str):
        self._path, self._texts, self._job = Path(path), texts, job

    def check(self, models: Iterable[str], tests: Iterable[str], inputs: Sequence[Named]) -> None:
        """Refuses output that cannot be written or would overwrite anything."""
        check_outputs(inputs, [("--output", self._path)])
        self._check_free(begun(self._path / LOCK, self._job))
        for path in (self._text(model, test) for model in models for test in tests):
            check_possible("--output", path)

    def claim(self) -> Claim:
        """The right to write there, until `finish`."""
        make_folder(self._path, "--output")
        return Claim(self._path / LOCK, f"--output {self._path}", self._job, self._check_free)

    def write_text(self, model: str, test: str, lines: Iterable[str]) -> None:
        """A model's answers to a test set, a line per sentence."""
        file = self._text(model, test)
        make_folder(file.parent, "--output")
        write_atomically(file, "".join(line + "\n" for line in lines).encode("utf-8"))

    def write(
        self, settings: Dict[str, Any], baseline: Optional[str], tests: Dict[str, int], models: List[Dict[str, Any]]
    ) -> str:
        """The table, which this returns, and then evaluation.json, the sign that all is there.

        Args:
            settings: of the evaluation
            baseline: the model that the others are compared with
            tests: the number of sentences of each test set
            models: a row for each, with its scores
        """
        evaluation = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "settings": settings,
            "baseline": baseline,
            "tests": [{"name": name, "lines": lines} for name, lines in tests.items()],
            "models": models,
        }
        table = markdown(evaluation_of(evaluation))
        write_atomically(self._path / TABLE_NAME, table.encode("utf-8"))
        write_json(self._path / JSON_NAME, evaluation)
        return table

    def _text(self, model: str, test: str) -> Path:
        return self._path / self._texts / file_name(model) / f"{file_name(test)}.txt"

    def _check_free(self, begun_before: bool) -> None:
        if (self._path / JSON_NAME).exists():
            raise KDPluginError(
                f"--output {self._path}: already holds an evaluation. Remedy: another folder, or remove it"
            )
        for name in (JSON_NAME, TABLE_NAME, self._texts):
            if os.path.lexists(self._path / name) and not begun_before:
                raise KDPluginError(already_there("--output", self._path / name))


def named(values: Sequence[str], flag: str, form: str) -> Dict[str, str]:
    """The values of a flag that is given as NAME=VALUE, by name.

    Args:
        form: of VALUE, for errors

    Raises:
        KDPluginError: no name, or two that make the same file name
    """
    found: Dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise KDPluginError(f"{flag} {value}: is not NAME={form}. Remedy: give it a name")
        if file_name(name) in map(file_name, found):
            raise KDPluginError(f"{flag} {value}: the name {name} is already taken. Remedy: another name")
        found[name] = rest
    return found


def file_name(name: str) -> str:
    """A file name for a model or a test set of any name."""
    return re.sub(r"[^\w.,+-]", "_", name).lstrip(".") or "_"
