"""A cached teacher: its answers come from a store on disk, along with the student's batches."""

import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from fairseq.data import Dictionary
from torch import Tensor

from kd_plugin.cache.data import COUNTS, Split, dictionary_sha256
from kd_plugin.cache.manifest import Identity
from kd_plugin.cache.records import Records
from kd_plugin.cache.store import Store, open_stores
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, SAMPLED_DIVERGENCES, SparseAnswer
from kd_plugin.teachers.base import Answer, Request, Teacher, signature_of
from kd_plugin.teachers.opening import parse_hashes

logger = logging.getLogger(__name__)

# flags that were decided when the cache was written, and their defaults
OF_THE_ANSWERS = {
    "teacher_overrides": "{}",
    "teacher_user_dir": None,
    "teacher_dtype": "auto",
    "teacher_source_lang": None,
    "teacher_target_lang": None,
    "teacher_missing_symbols": "refuse",
}
RECORDS = "teacher_records"  # in a sample: (target tokens without padding, width) uint8, row by row


class CachedTeacher(Teacher):
    """A teacher whose answers are stored; there is no model.

    fairseq's --num-workers read the records when they collate a batch; the records travel to the device in their
    stored form.

    Args:
        folder: --teacher-cache
        target_dictionary: the student's
        hashes: --teacher-sha256, which must match the manifest

    Raises:
        KDPluginError: a store is damaged or has another dictionary or teacher, or the stores are of different kinds
    """

    lacking = "a cache holds distributions only"
    answers_any_target = False

    def __init__(self, folder: str, target_dictionary: Dictionary, hashes: Sequence[Optional[str]] = ()):
        self.folder = folder
        self._stores = open_stores(Path(folder))
        self._pad = target_dictionary.pad()
        self.identity: Identity = self._stores[0].identity
        for store in self._stores:
            for name in ("kind", "k", "temperature", "teachers", "dtype"):
                mine, other = getattr(self.identity, name), getattr(store.identity, name)
                if mine != other:
                    raise KDPluginError(
                        f"--teacher-cache {folder}: {self._stores[0].folder.name} and {store.folder.name} differ in "
                        f"{name} ({mine}, {other}). Remedy: a separate cache folder for each teacher and kind"
                    )
            if store.identity.dictionary_sha256 != dictionary_sha256(target_dictionary.symbols):
                raise KDPluginError(
                    f"{store.folder}: written with another target dictionary, of {store.identity.vocab} symbols; the "
                    f"student's has {len(target_dictionary)}. Remedy: binarise the student's data with the dictionary "
                    "of the cached data, or write a cache for this data"
                )
        check_hashes(folder, self.identity, hashes)

    def signature_fields(self) -> List[str]:
        """The teachers and the kind of entries, for the run's signature."""
        identity = self.identity
        return [*members_of(identity), f"cache:{identity.kind}:{identity.k}:{identity.dtype}", "vocab:ok"]

    def max_positions(self) -> List[Any]:
        """The longest (source, target) with answers."""
        return [tuple(self.identity.max_positions)]

    def check(self, objectives: Sequence[Objective]) -> None:
        """Refuses objectives that the stored entries cannot serve."""
        divergence, top1_rank = objectives[0].divergence, objectives[0].top1_rank
        temperatures = [objective.temperature for objective in objectives]
        allowed = BUCKET_DIVERGENCES if self.identity.kind == "topk" else SAMPLED_DIVERGENCES
        if divergence not in allowed:
            raise KDPluginError(
                f"--kd-divergence {divergence}: a --teacher-cache of kind {self.identity.kind} supports only "
                f"{', '.join(allowed)}. Remedy: one of these, or --teacher-path"
            )
        if top1_rank > 0:
            raise KDPluginError("--kd-top1-rank needs the teacher's whole distribution. Remedy: --teacher-path")
        if any(temperature != self.identity.temperature for temperature in temperatures):
            raise KDPluginError(
                f"--teacher-cache {self.folder} was written at temperature {self.identity.temperature}, but this run "
                f"has --kd-temperature {' to '.join(f'{t:g}' for t in temperatures)}. Remedy: the cache's temperature "
                "without a schedule, or kd-plugin cache --temperature"
            )

    def attach(self, dataset: Any, split: Split, required: bool) -> None:
        """Makes every batch of a dataset carry its records."""
        parts, start = [], 0
        for number, part in enumerate(_parts(dataset.tgt)):
            each = split._replace(name=split.name + (str(number) if number else ""))
            store = self._find(each, required)
            if store is None:
                return
            sizes = np.asarray(part.dataset.sizes, dtype=np.int64)
            if int(sizes.sum()) != store.manifest.tokens:
                raise KDPluginError(
                    f"{store.folder} holds {store.manifest.tokens} target tokens, but {each.data} has "
                    f"{int(sizes.sum())} in {each.name}. Remedy: write the cache with the same task options"
                )
            starts = np.cumsum(sizes) - sizes
            parts.append(_Part(start, len(sizes), starts, sizes, store))
            start += len(sizes) * part.times
        dataset.collater = _Collater(dataset.collater, parts, self._pad)
        folders = ", ".join(str(part.store.folder) for part in parts)
        logger.info(f"{split.name}: {start:,} sentences with answers from {folders}")

    def _find(self, split: Split, required: bool) -> Optional[Store]:
        texts = split.fingerprint()
        for store in self._stores:
            if {name: value for name, value in store.identity.data.items() if name not in COUNTS} == texts:
                return store
        if not required:
            logger.info(
                f"{split.name}: no answers in --teacher-cache {self.folder}, so only the cross-entropy is reported. "
                f"kd-plugin cache --subset {split.name} adds them"
            )
            return None
        same_split = [str(store.folder) for store in self._stores if store.identity.split == split.name]
        other = f"{', '.join(same_split)} is for other data, or for sources truncated differently"
        reason = other if same_split else f"it has no {split.name}"
        command = f"kd-plugin cache {split.data} --subset {split.name} --cache-dir {self.folder}"
        if split.truncated_to is not None:
            command += f" --truncate-source --max-source-positions {split.truncated_to}"
        raise KDPluginError(
            f"--teacher-cache {self.folder}: no answers for {split.files()[1][0]} ({reason}). Remedy: {command} with "
            "the teacher's other options"
        )

    def covers(self, batch: Dict[str, Any]) -> bool:
        """Whether a batch carries its answers."""
        return RECORDS in batch

    def complete(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        """The batch, with made-up answers if it has none.

        A rank that has run out of data computes a dummy batch, whose gradient is discarded. After validation, fairseq's
        dummy batch comes from the validation set, which need not have answers; but every rank has to log the same terms
        and take part in the collective selection of tokens.
        """
        if self.covers(batch):
            return batch
        k, tokens = self.identity.k, int(batch["target"].ne(self._pad).sum())
        half = np.full((tokens, k + 1), np.log(0.5), dtype=np.float32)
        records = Records(np.tile(np.arange(k), (tokens, 1)), half[:, :k] - np.log(k), half[:, k])
        encoded = torch.from_numpy(self.identity.layout.encode(records))
        return {**batch, RECORDS: encoded.to(batch["target"].device)}

    @torch.no_grad()
    def answer(self, batch: Dict[str, Any], request: Request) -> Answer:
        of_token = batch["target"].ne(self._pad).reshape(-1).cumsum(dim=0) - 1
        records = batch[RECORDS][of_token[request.rows]]
        return Answer(decode(records, self.identity.layout, self.identity.kind == "sampled"))


def open_cached(task: Any, cfg: Any) -> CachedTeacher:
    """The cached teacher that the task's flags name."""
    check_flags_of_cache(cfg, OF_THE_ANSWERS)
    return CachedTeacher(cfg.teacher_cache, task.target_dictionary, parse_hashes(cfg.teacher_sha256))


def members_of(identity: Identity) -> List[str]:
    """The teachers that gave the answers, for the run's signature."""
    return [signature_of(one["sha256"], one["parameters"], one["weight"]) for one in identity.teachers]


def check_hashes(folder: str, identity: Identity, hashes: Sequence[Optional[str]]) -> None:
    """Refuses answers by other teachers than --teacher-sha256 names.

    Args:
        folder: --teacher-cache
        hashes: expected; empty: any
    """
    known = [teacher["sha256"] for teacher in identity.teachers]
    if hashes and [str(given).lower() for given in hashes] != known:
        raise KDPluginError(
            f"--teacher-sha256 {':'.join(map(str, hashes))}: the answers in {folder} are by {':'.join(known)}. "
            "Remedy: another --teacher-cache, or the right hash"
        )


def check_flags_of_cache(cfg: Any, of_the_answers: Dict[str, Any]) -> None:
    """Refuses flags that have no effect on answers that are on disk already.

    Args:
        of_the_answers: the flags that the answers were made with, and their defaults

    Raises:
        KDPluginError: such a flag is given, by name
    """
    for name in ("teacher_path", "teacher_weights"):
        if getattr(cfg, name):
            raise KDPluginError(f"--{name.replace('_', '-')} excludes --teacher-cache. Remedy: leave one of them out")
    for name, default in of_the_answers.items():
        if str(getattr(cfg, name)) != str(default):
            flag = f"--{name.replace('_', '-')}"
            raise KDPluginError(
                f"{flag}: has no effect on the answers in --teacher-cache. Remedy: leave it out here; kd-plugin cache "
                f"takes {flag}"
            )


class _Repeated(NamedTuple):
    dataset: Any
    times: int


def _parts(target: Any) -> List[_Repeated]:
    """The files of a dataset's target side: fairseq concatenates train, train1, … and may repeat the first."""
    while not hasattr(target, "datasets") and hasattr(target, "dataset"):
        target = target.dataset  # unwrap fairseq's BucketPadLengthDataset
    if hasattr(target, "datasets"):
        return [_Repeated(dataset, ratio) for dataset, ratio in zip(target.datasets, target.sample_ratios)]
    return [_Repeated(target, 1)]


class _Part(NamedTuple):
    """Sentences [first, first + n · times) of a dataset; the store holds n of them."""

    first: int
    sentences: int
    starts: np.ndarray  # (sentences,) position of each one's first target token in the store
    sizes: np.ndarray  # (sentences,) its target tokens
    store: Store


class _Collater:
    """Wraps a dataset's collater to add the records; a class, so that workers can pickle it."""

    def __init__(self, collater: Any, parts: Sequence[_Part], pad: int):
        self._collater, self._parts, self._pad = collater, list(parts), pad
        self._firsts = [part.first for part in parts]

    def __call__(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        sample: Dict[str, Any] = self._collater(*args, **kwargs)
        if not sample:
            return sample
        ids = sample["id"].numpy()
        of_part = np.searchsorted(self._firsts, ids, side="right") - 1
        records: List[Any] = [None] * len(ids)
        for number in np.unique(of_part).tolist():
            part, chosen = self._parts[number], np.flatnonzero(of_part == number)
            local = (ids[chosen] - part.first) % part.sentences
            sizes = part.sizes[local]
            ends = np.cumsum(sizes)
            positions = np.repeat(part.starts[local] - (ends - sizes), sizes) + np.arange(ends[-1])
            for at, piece in zip(chosen, np.split(part.store.read_encoded(positions), ends[:-1])):
                records[at] = piece
        encoded = np.concatenate(records)
        tokens = int(sample["target"].ne(self._pad).sum())
        if tokens != len(encoded):
            raise KDPluginError(
                f"{self._parts[0].store.folder}: {len(encoded)} records for {tokens} target tokens of the sentences "
                f"{ids.tolist()}. Remedy: train with the task options that the cache was written with"
            )
        sample[RECORDS] = torch.from_numpy(encoded)
        return sample


def decode(encoded: Tensor, layout: Any, sampled: bool) -> SparseAnswer:
    """Layout.decode on the batch's device."""
    ids_width = layout.k * layout.id_type.itemsize
    signed, mask = (torch.int16, 0xFFFF) if layout.id_type.itemsize == 2 else (torch.int32, 0xFFFFFFFF)
    # flatten first: a slice of one row or none counts as contiguous, and then cannot be viewed as a wider dtype
    ids = encoded[:, :ids_width].reshape(-1).view(signed).reshape(-1, layout.k).long() & mask
    lprobs = encoded[:, ids_width:].reshape(-1).view(torch.float16).reshape(-1, layout.k + 1).float()
    return SparseAnswer(ids, lprobs[:, :-1], lprobs[:, -1], sampled)
