"""A cached labelling teacher: all outputs for every sentence or word, stored on disk."""

import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from kd_plugin.cache.data import COUNTS
from kd_plugin.cache.manifest import WHOLE, Identity
from kd_plugin.cache.store import Store, open_stores
from kd_plugin.corpus.label_batches import words_per_sentence
from kd_plugin.corpus.labelled_folder import IGNORE
from kd_plugin.corpus.labels import mapped
from kd_plugin.corpus.words_of_sentences import Part
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.teachers.base import Answer, Request, Teacher
from kd_plugin.teachers.cached import check_flags_of_cache, check_hashes, members_of
from kd_plugin.teachers.labelling.base import Labelling
from kd_plugin.teachers.opening import parse_hashes

logger = logging.getLogger(__name__)

RECORDS = "teacher_labels"  # in a sample: (rows, outputs) fp32
LABELS = "labels"  # in a manifest's data
# flags that were decided when the cache was written, and their defaults
OF_THE_ANSWERS = {
    "teacher_overrides": "{}",
    "teacher_user_dir": None,
    "teacher_dtype": "auto",
    "teacher_missing_symbols": "refuse",
    "teacher_labels": None,
    "teacher_head": None,
}


class CachedLabels(Teacher):
    """A teacher whose answers are stored; there is no model.

    Args:
        folder: --teacher-cache
        labelling: what the student labels
        hashes: --teacher-sha256, which must match the manifest

    Raises:
        KDPluginError: a store is damaged, holds other answers, or has other labels or another teacher
    """

    lacking = "a cache holds distributions only"

    def __init__(self, folder: str, labelling: Labelling, hashes: Sequence[Optional[str]] = ()):
        self.folder, self._labelling = folder, labelling
        self._stores = open_stores(Path(folder))
        self.identity: Identity = self._stores[0].identity
        for store in self._stores:
            self._check(store, hashes)
        self._indices = None
        if labelling.names is not None:
            self._indices = mapped(labelling.names, self.identity.data.get(LABELS) or [], str(self._stores[0].folder))

    def _check(self, store: Store, hashes: Sequence[Optional[str]]) -> None:
        identity = store.identity
        if identity.kind != WHOLE:
            raise KDPluginError(
                f"{store.folder}: holds a translation teacher's answers. Remedy: kd-plugin cache --task "
                f"{'sequence_tagging' if self._labelling.tokens else 'sentence_prediction'}"
            )
        for name in ("teachers", "dtype", "vocab"):
            if getattr(identity, name) != getattr(self.identity, name):
                raise KDPluginError(
                    f"--teacher-cache {self.folder}: {self._stores[0].folder.name} and {store.folder.name} differ in "
                    f"{name}. Remedy: a separate cache folder for each teacher"
                )
        numbers = self._labelling.names is None
        if numbers != (identity.data.get(LABELS) is None) or identity.vocab != self._labelling.outputs:
            holds = "numbers" if identity.data.get(LABELS) is None else "labels"
            raise KDPluginError(
                f"{store.folder}: holds {identity.vocab} {holds} per answer, but the student predicts "
                f"{self._labelling.outputs} {'numbers' if numbers else 'labels'}. Remedy: a cache for this task"
            )
        if identity.data.get(LABELS) != self.identity.data.get(LABELS):
            raise KDPluginError(
                f"--teacher-cache {self.folder}: its stores order the labels differently. Remedy: a separate cache "
                "folder for each label/dict.txt"
            )
        check_hashes(self.folder, identity, hashes)

    def signature_fields(self) -> List[str]:
        """The teachers and the kind of entries, for the run's signature."""
        remapped = "ok" if self._indices is None else "remapped"
        return [*members_of(self.identity), f"cache:{self.identity.kind}:{self.identity.dtype}", f"vocab:{remapped}"]

    def attach_labelled(self, dataset: Any, parts: Sequence[Part], required: bool) -> None:
        """Makes every batch of a data set carry its records."""
        found, start = [], 0
        for part in parts:
            store = self._find(part, required)
            if store is None:
                return
            sizes = np.ones(part.sentences, dtype=np.int64)
            if self._labelling.tokens:
                sizes = words_per_sentence(part, self._labelling.words())
            if int(sizes.sum()) != store.manifest.tokens:
                raise KDPluginError(
                    f"{store.folder}: holds {store.manifest.tokens:,} answers for {int(sizes.sum()):,} of "
                    f"{part.split.prefix('input0')}. Remedy: write the cache with the same --word-start"
                )
            found.append(_Stored(start, np.cumsum(sizes) - sizes, sizes, store))
            start += part.sentences
        dataset.collater = _Collater(dataset.collater, found)
        logger.info(f"{start:,} sentences with answers from {', '.join(str(one.store.folder) for one in found)}")

    def _find(self, part: Part, required: bool) -> Optional[Store]:
        texts = part.split.fingerprint(self._labelling.reading)
        for store in self._stores:
            data = store.identity.data
            if {name: value for name, value in data.items() if name not in (*COUNTS, LABELS)} == texts:
                return store
        if not required:
            logger.info(
                f"{part.split.name}: no answers in --teacher-cache {self.folder}, so only the cross-entropy is "
                f"reported. kd-plugin cache --subset {part.split.name} adds them"
            )
            return None
        raise KDPluginError(
            f"--teacher-cache {self.folder}: no answers for {part.split.prefix('input0')}.bin, read as this training "
            f"reads it. Remedy: kd-plugin cache {part.split.data} --subset {part.split.name} with the same "
            "--word-start, --init-token and --separator-token, and the teacher's other options"
        )

    def covers(self, batch: Dict[str, Any]) -> bool:
        """Whether a batch carries its answers."""
        return RECORDS in batch

    def complete(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """The batch, with made-up answers if it has none: a rank that has run out of data computes a dummy batch."""
        if self.covers(batch):
            return batch
        rows = int(batch["target"].ne(IGNORE).sum()) if self._labelling.names is not None else len(batch["target"])
        return {**batch, RECORDS: torch.zeros(rows, self.identity.vocab, device=batch["target"].device)}

    def covered(self, batch: Dict[str, Any], rows: Tensor, training: bool) -> Optional[Tensor]:
        """As Teacher's: not the words for which there was no answer."""
        if not self._labelling.tokens:
            return None
        return torch.isfinite(self._values(batch, rows)).any(dim=1)

    def _values(self, batch: Dict[str, Any], rows: Tensor) -> Tensor:
        records: Tensor = batch[RECORDS]
        if not self._labelling.tokens:
            return records.index_select(0, rows)
        of_row = batch["target"].ne(IGNORE).reshape(-1).cumsum(dim=0) - 1
        return records.index_select(0, of_row[rows])

    @torch.no_grad()
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        """As Teacher's."""
        values = self._values(batch, request.rows).float()
        return Answer(TeacherAnswer(values if self._indices is None else values[:, self._indices.to(values.device)]))


def open_cached(task: Any, cfg: Any) -> CachedLabels:
    """The cached teacher that the task's flags name."""
    check_flags_of_cache(cfg, OF_THE_ANSWERS)
    return CachedLabels(cfg.teacher_cache, task.labelling, parse_hashes(cfg.teacher_sha256))


class _Stored(NamedTuple):
    """Sentences from `first` on; starts, sizes: (sentences,) the first record of each, and how many it has."""

    first: int
    starts: np.ndarray
    sizes: np.ndarray
    store: Store


class _Collater:
    """Wraps a data set's collater to add the records; a class, so that workers can pickle it."""

    def __init__(self, collater: Any, parts: Sequence[_Stored]):
        self._collater, self._parts = collater, list(parts)
        self._firsts = [part.first for part in parts]

    def __call__(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        sample: Dict[str, Any] = self._collater(*args, **kwargs)
        if not sample:
            return sample
        ids, target = sample["id"].numpy(), sample["target"]
        rows = np.ones(len(ids), dtype=np.int64)
        if not target.is_floating_point():  # a student that cuts sentences reads fewer words than are stored
            rows = target.ne(IGNORE).sum(dim=1).numpy()
        found = []
        for index, wanted in zip(ids.tolist(), rows.tolist()):
            part = self._parts[int(np.searchsorted(self._firsts, index, side="right")) - 1]
            local = index - part.first
            if wanted > part.sizes[local]:
                raise KDPluginError(
                    f"{part.store.folder}: {part.sizes[local]} answers for {wanted} words of sentence {local + 1}. "
                    "Remedy: write the cache with the same --word-start"
                )
            found.append(part.store.read(part.starts[local] + np.arange(wanted)).lprobs)
        sample[RECORDS] = torch.from_numpy(np.concatenate(found))
        return sample
