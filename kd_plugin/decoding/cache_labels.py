"""Ask a labelling teacher about every sentence or word of a corpus once, and store all its outputs."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import numpy as np
import torch
from fairseq import utils

from kd_plugin.cache.data import describe_data, dictionary_sha256, split_names
from kd_plugin.cache.manifest import WHOLE, Identity
from kd_plugin.cache.records import whole_records
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.checkpoints.classifier import TOKEN_HEAD
from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.dictionaries import load_dictionary
from kd_plugin.corpus.label_batches import LabelBatches
from kd_plugin.corpus.labelled_folder import IGNORE, LabelledSplit, Reading, check_reading, load_input_dictionary
from kd_plugin.corpus.labels import label_names, shown
from kd_plugin.corpus.words import rule_of
from kd_plugin.corpus.words_of_sentences import Part
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.protection import ELSEWHERE, Named, check_outputs, same_place
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners import jobs
from kd_plugin.runners.jobs import Job, claim_share, device_of, fill
from kd_plugin.teachers.base import Request
from kd_plugin.teachers.labelling.base import Labelling
from kd_plugin.teachers.labelling.cached import LABELS
from kd_plugin.teachers.labelling.opening import open_labelling
from kd_plugin.teachers.opening import dtype_for_cache, identity_for_cache

TASKS = ("sentence_prediction", "sequence_tagging")
NO_LIMIT = 2**31 - 1
NOT_GIVEN = -1  # --num-classes, as fairseq's tasks have it


class LabelQuestions(NamedTuple):
    """Which teacher is asked about which data: the options of `kd-plugin cache --task …`."""

    data: str
    task: str
    teacher_path: str
    teacher_weights: Optional[str]
    teacher_overrides: str
    teacher_user_dir: Optional[str]
    teacher_sha256: Optional[str]
    teacher_dtype: str
    teacher_missing_symbols: str
    teacher_labels: Optional[str]
    teacher_head: Optional[str]
    classification_head_name: Optional[str]
    label_dict: Optional[str]
    regression_target: bool
    num_classes: int
    word_start: str
    init_token: Optional[int]
    separator_token: Optional[int]
    cache_dir: str
    subset: str
    max_tokens: int
    shard_tokens: int
    job: Job
    inputs: List[Named]


def cache_labels(options: LabelQuestions) -> None:
    """Write this job's share of the stores, one for each split."""
    options.job.check()
    check_outputs(options.inputs, [("--cache-dir", options.cache_dir)])
    _check_outside(options)
    names = split_names(options.subset)
    opened: Dict[str, Any] = {}  # the teacher, shared by all splits
    sessions = {name: LabelSession(name, options, 0, opened) for name in names}
    with contextlib.ExitStack() as claims:
        claimed = {
            name: claims.enter_context(claim_share(session.store, "--cache-dir", options.job, session))
            for name, session in sessions.items()
        }
        for name, session in sessions.items():
            store = session.store
            make_session = functools.partial(LabelSession, name, options)
            manifest = fill(store, claimed[name], options.job, session, make_session, store.conclude, name, "row")
            if manifest is not None:
                what = "words" if options.task == "sequence_tagging" else "sentences"
                print(
                    f"{store.path}: {manifest.tokens:,} {what}, {store.identity.layout.width} bytes each, in "
                    f"{len(session.plans)} shards. Train with --teacher-cache {options.cache_dir}"
                )


def _check_outside(options: LabelQuestions) -> None:
    """Refuses a cache among the data's own files."""
    places = [os.path.realpath(options.cache_dir), *map(str, Path(os.path.realpath(options.cache_dir)).parents)]
    for part in ("input0", "input1", "label"):
        folder = os.path.join(options.data, part)
        if any(same_place(place, folder) for place in places):
            raise KDPluginError(
                f"--cache-dir {options.cache_dir}: is inside {folder}, which holds the data. {ELSEWHERE}"
            )


def labelling_of(options: LabelQuestions) -> Labelling:
    """What a student of these data labels.

    Raises:
        KDPluginError: a dictionary is missing, or flags contradict each other
    """
    dictionary = load_input_dictionary(options.data)
    tokens = options.task == "sequence_tagging"
    names: Optional[List[str]] = None
    outputs = options.num_classes
    if options.regression_target:
        if tokens or outputs < 1:
            raise KDPluginError(
                "--regression-target: is for --task sentence_prediction, with --num-classes for the number of values. "
                "Remedy: --num-classes 1, or leave it out"
            )
    else:
        path = options.label_dict or os.path.join(options.data, "label", "dict.txt")
        if not os.path.isfile(path):
            raise KDPluginError(
                f"{path}: no such file, so the labels have no names. Remedy: --label-dict with the "
                "student's label/dict.txt"
            )
        names = label_names(load_dictionary(path))
        if options.num_classes not in (NOT_GIVEN, len(names)):
            raise KDPluginError(
                f"--num-classes {options.num_classes}: {path} has {len(names)} labels ({shown(names)}). Remedy: leave "
                "it out, or the right --label-dict"
            )
        outputs = len(names)
    reading = Reading(rule_of(options.word_start, dictionary.symbols), options.init_token, options.separator_token)
    check_reading(reading, dictionary, options.data)
    head = options.classification_head_name or (TOKEN_HEAD if tokens else "sentence_classification_head")
    return Labelling(tokens, names, outputs, dictionary, reading, head, NO_LIMIT)


class LabelSession(jobs.Session):
    """A teacher and a split of data, ready to write any shard of its store.

    Args:
        number: the worker's
        opened: holds the teacher, if it is open already
    """

    def __init__(self, name: str, options: LabelQuestions, number: int, opened: Optional[Dict[str, Any]] = None):
        self._options, self._labelling = options, labelling_of(options)
        split = LabelledSplit(options.data, name)
        if not split.has("input0"):
            raise KDPluginError(f"{split.prefix('input0')}.bin: no such file. Remedy: the right folder, or --subset")
        part = Part(split, split.open(self._labelling.dictionary))
        if self._labelling.tokens and len(part.inputs) != 1:
            raise KDPluginError(f"{options.data}: has input1, but tagging reads input0 alone. Remedy: another folder")
        opened = {} if opened is None else opened
        if "teacher" not in opened:
            opened["teacher"] = open_labelling(self._labelling, options, dtype_for_cache(options.teacher_dtype))
        self._teacher = opened["teacher"]
        words = self._labelling.words() if self._labelling.tokens else None
        self._batches = LabelBatches(part, self._labelling.dictionary, self._labelling.reading, words)
        self._teacher.attach_labelled(self._batches, [part], True)
        self.sizes, self._lengths = self._batches.sizes(), self._batches.lengths()
        self._device = device_of(number)
        texts = split.fingerprint(self._labelling.reading)
        names = self._labelling.names
        identity = Identity(
            kind=WHOLE,
            k=self._labelling.outputs,
            temperature=1.0,
            vocab=self._labelling.outputs,
            seed=0,
            shard_tokens=options.shard_tokens,
            split=name,
            dictionary_sha256=dictionary_sha256(names or []),
            max_positions=[],
            data={**describe_data(texts, self.sizes), LABELS: names},
            **identity_for_cache(self._teacher, options.teacher_overrides, options.teacher_user_dir),
        )
        self.store = StoreFolder(Path(options.cache_dir) / f"{name}-{digest_of(list(texts.values()))[:8]}", identity)
        self.plans = plan_shards(self.sizes, options.shard_tokens)

    def __call__(self, plan: Plan) -> Plan:
        """Write a shard."""
        writer = ShardWriter(self.store, plan, self.sizes)
        for sentences in self._sentences(plan):
            writer.add(sentences, whole_records(self._answers(sentences)))
            self.progress(int(self.sizes[sentences].sum()))
        writer.finish()
        return plan

    def _sentences(self, plan: Plan) -> Iterator[np.ndarray]:
        sentences = np.arange(plan.first, plan.last)
        for positions in by_length(self._lengths[sentences], self._options.max_tokens):
            yield sentences[positions]

    def _answers(self, sentences: np.ndarray) -> np.ndarray:
        """(rows, outputs) the teacher's values, sentence by sentence in the order given; -inf: it has no answer."""
        sample = self._batches.collater(sentences.tolist())
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self._device), sample)
        rows = sample["target"].ne(IGNORE).reshape(-1).nonzero(as_tuple=True)[0]
        values = self._teacher.answer(sample, Request(rows, torch.float32)).distribution.logits.float()
        covered = self._teacher.covered(sample, rows, True)
        if covered is not None:
            values = values.masked_fill(~covered.unsqueeze(1), -torch.inf)
        found: np.ndarray = values.cpu().numpy()
        return found
