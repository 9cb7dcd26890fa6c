"""The one way to open a checkpoint of fairseq's: read (read.py), described (describe.py), built (build.py).

Each file is hashed once a process, and unpickled once for each Checkpoint that is made of it. Whoever needs it twice
hands the Checkpoint on.
"""

import gc
import os
from typing import Any, Dict, Hashable, Iterator, Optional, Sequence

from kd_plugin.checkpoints.architectures import architecture_of, check_translates
from kd_plugin.checkpoints.build import build_model, count_of
from kd_plugin.checkpoints.describe import Description, check_direction, describe, describe_beside
from kd_plugin.checkpoints.finite import check_finite
from kd_plugin.checkpoints.language_tokens import languages_of
from kd_plugin.checkpoints.read import CheckpointFile, check_file, file_key, no_checkpoint, read_file
from kd_plugin.checkpoints.user_code import check_registered


class Checkpoint:
    """A checkpoint file, what its indices mean, and its model on request.

    Attributes:
        path, sha256: of the file
        cfg: its configuration, a DictConfig {model, task, …}
        languages: source and target; None: nobody says, and the dictionary is a joined one
        dictionaries, dictionary_paths: of source and target
        changes_dictionaries: whether its own task, of a user's code, may have made other dictionaries of the files
        weight_bytes: as the file stores them, without optimizer state
    """

    def __init__(self, file: CheckpointFile, description: Description, overrides: Dict[str, Any]):
        self.path, self.sha256, self.cfg, self.weight_bytes = file.path, file.sha256, file.cfg, file.weight_bytes
        self._description = description
        self.languages, self.dictionaries, self.dictionary_paths, task = description
        self.changes_dictionaries = task is not None
        self._overrides = overrides
        self._file: Optional[CheckpointFile] = file
        self._model: Any = None

    @property
    def model(self) -> Any:
        """A BaseFairseqModel, frozen, in eval; on the CPU and in float32, until somebody moves it.

        It is built once, and what was read is let go of then: there are no two copies of the weights.

        Raises:
            KDPluginError: as `build_model`; or, after `let_go`, the file is another one
        """
        if self._model is None:
            file = self._file or read_file(self.path, self.sha256, self._overrides)
            self._file = None
            self._model = build_model(file, self._description)
            del file
            gc.collect()  # loading leaves a cycle behind that holds all weights
        return self._model

    def let_go(self) -> None:
        """Free the weights; whoever asks for the model after all has the file read again."""
        self._file = self._model = None

    @property
    def parameters(self) -> int:
        """Tied ones once."""
        return count_of(self.model)

    @property
    def max_source_tokens(self) -> int:
        """Without end of sentence."""
        return int(self.model.max_positions()[0]) - 1

    @property
    def max_target_tokens(self) -> int:
        """Without end of sentence."""
        return int(self.model.max_positions()[1]) - 1


def open_checkpoint(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> Checkpoint:
    """A checkpoint of any architecture that stands for itself, read without running code from it.

    Args:
        overrides: as for `read_checkpoint`; `data` names the folder with its dictionaries
        source_lang, target_lang: where the checkpoint does not say; not needed with a joined dict.txt

    Raises:
        KDPluginError: as `read_checkpoint` and `describe`; its weights are NaN or infinite; it writes no translations
    """
    if not os.path.isfile(path):
        raise no_checkpoint(path, "the path of a .pt file of fairseq-train")
    overrides = overrides or {}
    file = read_file(path, None, overrides)
    _check(file)
    description = describe(file, overrides, source_lang, target_lang)
    check_direction(path, languages_of(file.cfg.task), description.languages or [None, None])
    return Checkpoint(file, description, overrides)


def open_beside(
    paths: Sequence[str],
    languages: Sequence[Optional[str]],
    overrides: Dict[str, Any],
    hashes: Sequence[Optional[str]] = (),
    opened: Optional[Dict[Hashable, Checkpoint]] = None,
) -> Iterator[Checkpoint]:
    """Checkpoints that are to answer beside another model: teachers, and members of an ensemble; one after the other.

    Args:
        languages: the other model's
        overrides: as for `open_checkpoint`
        hashes: the sha256 that each file has to have; empty: any
        opened: by `key_of`, what is open already and is used again; what is opened here is added

    Raises:
        KDPluginError: as `open_checkpoint`, or of another hash or direction
    """
    opened = {} if opened is None else opened
    for path, expected in zip(paths, hashes or [None] * len(paths)):
        check_file(path, expected)
        key = key_of(path, languages)
        if key not in opened:
            opened[key] = beside(read_file(path, expected, overrides), languages, overrides)
        yield opened[key]


def key_of(path: str, languages: Sequence[Optional[str]]) -> Hashable:
    """The same for files that would be opened as the same checkpoint. Dictionaries may lie beside a link."""
    return (file_key(path), os.path.dirname(os.path.abspath(path)), *languages)


def beside(file: CheckpointFile, languages: Sequence[Optional[str]], overrides: Dict[str, Any]) -> Checkpoint:
    """As `open_beside`, of a file that was read."""
    _check(file)
    return Checkpoint(file, describe_beside(file, overrides, languages), overrides)


def _check(file: CheckpointFile) -> None:
    """What can be told before the model is built, which may be later, by whoever translates."""
    check_registered(file.path, architecture_of(file.cfg.model))
    check_translates(file.path, file.cfg)
    check_finite(file.weights, file.path)
