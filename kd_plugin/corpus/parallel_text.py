"""Writes parallel text for a folder of translations, with a receipt that identifies it as this job's.

The folder's `.text.json` lists the files that its --text has written, with their sha256. Only a file that is unchanged
since then may be rewritten; any other file with the same name belongs to the user or to another run.
"""

import contextlib
import os
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from kd_plugin.corpus.translations import Translations
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of, read_json, sha256_of, temporary_beside, write_json
from kd_plugin.files.locks import LOCK
from kd_plugin.files.protection import ELSEWHERE, Named, check_outputs, check_possible, place, same_place
from kd_plugin.files.sharded_folder import OWN_NAMES
from kd_plugin.runners.progress import progress

FORMAT, RECEIPT = "kd_plugin text", ".text.json"
SCORES = "scores"


def text_paths(prefix: str, languages: Sequence[str]) -> List[Path]:
    """The files of --text: source, target and scores."""
    return [Path(f"{prefix}.{end}") for end in (*languages, SCORES)]


def check_text(
    folder: str,
    prefix: str,
    inputs: Sequence[Named],
    languages: Optional[Sequence[str]] = None,
    identity_sha256: Optional[str] = None,
) -> None:
    """Refuses a --text that cannot be written or would overwrite anything but this job's own text.

    Args:
        folder, identity_sha256: of the translations
        languages: None: not known yet
    """
    if not prefix or prefix.endswith(("/", os.sep)) or os.path.basename(prefix) in (".", ".."):
        raise KDPluginError(f"--text {prefix!r}: is not a file prefix. Remedy: a prefix such as pseudo/train")
    paths = text_paths(prefix, languages or [])
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise KDPluginError(f"--text {prefix}: two files would be named {twice[0]}. Remedy: other language names")
    for path in paths:
        check_possible("--text", path)
        if same_place(path.parent, folder) and (OWN_NAMES.fullmatch(path.name) or path.name in (RECEIPT, LOCK)):
            raise KDPluginError(f"--text {prefix}: {path} is one of --output's own files. {ELSEWHERE}")
    made = (lambda path: True) if identity_sha256 is None else _Receipt(Path(folder), identity_sha256).knows
    check_outputs(inputs, [("--output", folder)], [("--text", path) for path in paths], made)


def write_text(folder: Path, prefix: str) -> List[Path]:
    """Writes parallel text in the order of the corpus: one line per translation of each line; untranslated lines are
    left out.

    Raises:
        KDPluginError: the translations are damaged, or the files cannot be written; none of them is left behind
    """
    translations = Translations(folder)
    manifest = translations.manifest
    identity_sha256 = digest_of(manifest.identity)
    check_text(str(folder), prefix, [], manifest.languages, identity_sha256)
    paths = text_paths(prefix, manifest.languages)
    temporary = [temporary_beside(path) for path in paths]
    receipt = _Receipt(Path(folder), identity_sha256)
    placed: List[Path] = []
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        _write_lines(translations, temporary)
        hashes = {path: sha256_of(file) for path, file in zip(paths, temporary)}
        before = {path for path in paths if receipt.knows(path)}
        receipt.add(hashes)
        for path, file in zip(paths, temporary):
            # another run of the same job may just have written the same content
            place(file, path, "--text", lambda path: path in before or sha256_of(path) == hashes[path])
            placed.append(path)
    except (OSError, KDPluginError) as error:
        for path in placed:
            path.unlink(missing_ok=True)
        if isinstance(error, KDPluginError):
            raise
        raise KDPluginError(
            f"--text {prefix}: {error.strerror or error}. Remedy: free some space, or use another folder"
        ) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return paths


def _write_lines(translations: Translations, paths: Sequence[Path]) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "w", encoding="utf-8", newline="\n")) for path in paths]
        for line, record in progress(translations.lines(), translations.manifest.lines, "text"):
            for hypothesis in record.hypotheses:
                score = "" if hypothesis.score is None else f"{hypothesis.score:.6g}"
                for file, text in zip(files, (record.source, hypothesis.text, f"{line}\t{score}")):
                    file.write(text + "\n")
        for file in files:
            file.flush()
            os.fsync(file.fileno())


class _Receipt:
    """The list of text files that a job has written, stored in its folder of translations.

    Raises:
        KDPluginError: the file with its name is not a receipt
    """

    def __init__(self, folder: Path, identity_sha256: str):
        self._folder, self._identity = folder, identity_sha256
        self._path = folder / RECEIPT
        self._files: Dict[str, str] = {}
        if os.path.lexists(self._path):
            remedy = "Remedy: remove it, or another --output"
            content = read_json(self._path, remedy)
            if content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
                raise KDPluginError(f"{self._path}: is not a receipt of kd-plugin's --text. {remedy}")
            if content.get("identity_sha256") == identity_sha256:
                self._files = content["files"]

    def knows(self, path: Path) -> bool:
        """Whether a file is unchanged since this job wrote it."""
        if path.is_symlink() or not path.is_file() or self._name(path) not in self._files:
            return False
        return sha256_of(path) == self._files[self._name(path)]

    def add(self, hashes: Dict[Path, str]) -> None:
        self._files = {**self._files, **{self._name(path): digest for path, digest in hashes.items()}}
        write_json(self._path, {"format": FORMAT, "identity_sha256": self._identity, "files": self._files})

    def _name(self, path: Path) -> str:
        """The path relative to the folder, so that both can be moved together."""
        place = os.path.join(os.path.realpath(path.parent), path.name)
        return Path(os.path.relpath(place, os.path.realpath(self._folder))).as_posix()
