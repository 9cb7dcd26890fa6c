"""Opens fairseq checkpoints: reads (read.py), describes (describe.py) and builds them (build.py).

Each file is hashed once per process, and unpickled once per Checkpoint; to use a file twice, pass its Checkpoint on.
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
    """A checkpoint file, the meaning of its indices, and its model on request.

    Attributes:
        path, sha256: of the file
        cfg: its configuration, a DictConfig {model, task, …}
        languages: source and target; None: unknown, and the dictionary is a joined one
        dictionaries, dictionary_paths: of source and target
        changes_dictionaries: whether the model's own task, from user code, may have changed the files' dictionaries
        weight_bytes: size of the weights in the file, without optimizer state
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
        """A frozen BaseFairseqModel in eval mode; initially on the CPU and in float32.

        It is built once, and the content of the file is freed then, so that there is only one copy of the weights.

        Raises:
            KDPluginError: as `build_model`; or, after `let_go`, the file has changed
        """
        if self._model is None:
            file = self._file or read_file(self.path, self.sha256, self._overrides)
            self._file = None
            self._model = build_model(file, self._description)
            del file
            gc.collect()  # loading leaves a reference cycle with all weights
        return self._model

    def let_go(self) -> None:
        """Frees the weights; a later access to the model reads the file again."""
        self._file = self._model = None

    @property
    def parameters(self) -> int:
        """The number of parameters, counting tied ones once."""
        return count_of(self.model)

    @property
    def max_source_tokens(self) -> int:
        """The longest source, without end of sentence."""
        return int(self.model.max_positions()[0]) - 1

    @property
    def max_target_tokens(self) -> int:
        """The longest target, without end of sentence."""
        return int(self.model.max_positions()[1]) - 1


def open_checkpoint(
    path: str,
    overrides: Optional[Dict[str, Any]] = None,
    source_lang: Optional[str] = None,
    target_lang: Optional[str] = None,
) -> Checkpoint:
    """Opens a checkpoint of any architecture for use on its own, without running code from it.

    Args:
        overrides: as for `read_checkpoint`; `data` names the folder with its dictionaries
        source_lang, target_lang: if the checkpoint does not name them; not needed with a joined dict.txt

    Raises:
        KDPluginError: as `read_checkpoint` and `describe`; its weights are NaN or infinite; it does not translate
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
    """Opens, one by one, checkpoints for use with another model: teachers, and members of an ensemble.

    Args:
        languages: the other model's
        overrides: as for `open_checkpoint`
        hashes: the expected sha256 of each file; empty: any
        opened: checkpoints, by `key_of`, that are already open and can be reused; newly opened ones are added

    Raises:
        KDPluginError: as `open_checkpoint`, or a hash or direction is wrong
    """
    opened = {} if opened is None else opened
    for path, expected in zip(paths, hashes or [None] * len(paths)):
        check_file(path, expected)
        key = key_of(path, languages)
        if key not in opened:
            opened[key] = beside(read_file(path, expected, overrides), languages, overrides)
        yield opened[key]


def key_of(path: str, languages: Sequence[Optional[str]]) -> Hashable:
    """A key for files that open as the same checkpoint. It includes the folder, since a link may have its own
    dictionaries beside it."""
    return (file_key(path), os.path.dirname(os.path.abspath(path)), *languages)


def beside(file: CheckpointFile, languages: Sequence[Optional[str]], overrides: Dict[str, Any]) -> Checkpoint:
    """As `open_beside`, for a file that has been read."""
    _check(file)
    return Checkpoint(file, describe_beside(file, overrides, languages), overrides)


def _check(file: CheckpointFile) -> None:
    """The checks that do not need the model, which may be built much later."""
    check_registered(file.path, architecture_of(file.cfg.model))
    check_translates(file.path, file.cfg)
    check_finite(file.weights, file.path)
