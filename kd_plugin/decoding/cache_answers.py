"""Ask a teacher about every target token of a corpus once, and store the answers."""

import contextlib
import functools
from pathlib import Path
from typing import Any, Dict, Hashable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask, load_langpair_dataset

from kd_plugin.cache.compress import compress_answer, unknown
from kd_plugin.cache.data import Split, describe_data, dictionary_sha256, split_names
from kd_plugin.cache.manifest import Identity
from kd_plugin.cache.records import Records
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.checkpoints.tokenizer import Languages
from kd_plugin.corpus.batches import by_length
from kd_plugin.corpus.binarised import check_ids, format_of_pair, readable
from kd_plugin.corpus.languages import check_languages
from kd_plugin.corpus.sources import data_folders
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import digest_of
from kd_plugin.files.locks import Claim
from kd_plugin.files.protection import Named, check_outputs
from kd_plugin.files.sharded_folder import Plan
from kd_plugin.runners import jobs
from kd_plugin.runners.jobs import Job, claim_share, device_of, fill
from kd_plugin.teachers.base import Request
from kd_plugin.teachers.opening import dtype_for_cache, identity_for_cache, open_teacher


class Questions(NamedTuple):
    """Which teacher is asked about which data: the options of `kd-plugin cache`."""

    data: str
    teacher_path: str
    teacher_weights: Optional[str]
    teacher_overrides: str
    teacher_user_dir: Optional[str]
    teacher_sha256: Optional[str]
    teacher_dtype: str
    teacher_source_lang: Optional[str]
    teacher_target_lang: Optional[str]
    teacher_missing_symbols: str
    cache_dir: str
    subset: str
    source_lang: Optional[str]
    target_lang: Optional[str]
    kind: str
    k: int
    temperature: float
    seed: int
    truncate_source: bool
    max_source_positions: Optional[int]
    max_tokens: int
    shard_tokens: int
    job: Job
    inputs: List[Named]


def cache_answers(options: Questions) -> None:
    """Write this job's share of the stores, one for each split and folder of data."""
    check_languages(options.source_lang, options.target_lang)
    options.job.check()
    if options.max_source_positions is not None and not options.truncate_source:
        raise KDPluginError(
            "--max-source-positions: only with --truncate-source. Remedy: leave it out, or add --truncate-source"
        )
    check_outputs(options.inputs, [("--cache-dir", options.cache_dir)])
    opened: Dict[Hashable, Any] = {}  # the teacher, shared by all splits
    stores: Dict[Tuple[Path, str], Tuple[Split, Session]] = {}
    for split in _splits(options):
        session = Session(split, options, 0, opened)
        key = session.store.path, session.store.identity_sha256  # the same if the data or the split are named twice
        stores[key] = split, session
    with contextlib.ExitStack() as claims:
        # all of them before the first answer: an error in the last folder is reported before hours of work
        claimed = [
            (split, session, claims.enter_context(claim_share(session.store, "--cache-dir", options.job, session)))
            for split, session in stores.values()
        ]
        for split, session, claim in claimed:
            _write_store(split, session, claim, options)


def _splits(options: Questions) -> Iterator[Split]:
    truncated_to = (options.max_source_positions or 1024) if options.truncate_source else None
    for split in split_names(options.subset):
        for path in data_folders(options.data, split):
            source, target = options.source_lang, options.target_lang
            if source is None or target is None:
                if not Path(path).is_dir():
                    raise KDPluginError(
                        f"{path}: no such folder of binarised data. Remedy: give the --destdir of fairseq-preprocess"
                    )
                found = data_utils.infer_language_pair(path)
                source, target = source or found[0], target or found[1]
            if source is None or target is None:
                raise KDPluginError(f"{path}: its languages are unknown. Remedy: -s LANG -t LANG")
            check_languages(source, target, where=path)
            yield Split(path, split, source, target, truncated_to)


def _write_store(split: Split, session: "Session", claim: Claim, options: Questions) -> None:
    store, identity, plans = session.store, session.store.identity, session.plans
    make_session = functools.partial(Session, split, options)
    manifest = fill(store, claim, options.job, session, make_session, store.conclude, split.name, "tok")
    if manifest is None:
        return
    lacking = ""
    if manifest.teacher_dropped is not None:
        lacking = f" (without {manifest.teacher_dropped:.1%} of it on symbols that the student lacks)"
    print(
        f"{store.path}: {manifest.tokens:,} target tokens, {identity.layout.width} bytes each, "
        f"{manifest.tokens * identity.layout.width / 1e6:,.1f} MB in {len(plans)} shards; {identity.kind} {identity.k} "
        f"captures {manifest.captured:.1%} of the teacher's mass{lacking}. Train with --teacher-cache "
        f"{options.cache_dir}"
    )


class Session(jobs.Session):
    """A teacher and a split of data, ready to write any shard of its store.

    Args:
        number: the worker's
        opened: as for `open_teacher`
    """

    def __init__(self, split: Split, options: Questions, number: int, opened: Optional[Dict[Hashable, Any]] = None):
        self._options = options
        prefixes = split.prefixes()
        implementation = format_of_pair(*prefixes)  # their errors are clearer than fairseq's
        cfg = TranslationConfig(data=split.data, source_lang=split.source_lang, target_lang=split.target_lang)
        task = TranslationTask.setup_task(cfg)
        self._prefixes = prefixes
        with readable(prefixes[0]):
            self._dataset = load_langpair_dataset(
                split.data,
                split.name,
                split.source_lang,
                task.source_dictionary,
                split.target_lang,
                task.target_dictionary,
                combine=False,
                dataset_impl=implementation,
                upsample_primary=1,
                left_pad_source=True,
                left_pad_target=False,
                max_source_positions=split.truncated_to or 2**31,
                max_target_positions=2**31,
                truncate_source=options.truncate_source,
            )
        self.sizes = np.asarray(self._dataset.tgt_sizes)
        self._teacher = open_teacher(
            task,
            options.teacher_path,
            options.teacher_weights,
            options.teacher_overrides,
            options.teacher_sha256,
            dtype_for_cache(options.teacher_dtype),
            opened,
            Languages(options.teacher_source_lang, options.teacher_target_lang),
            options.teacher_missing_symbols,
            options.teacher_user_dir,
        )
        self._device = device_of(number)
        vocab = len(task.target_dictionary)
        if options.k > vocab:
            raise KDPluginError(
                f"--k {options.k}: the target dictionary has {vocab:,} symbols. Remedy: at most {vocab:,}"
            )
        self._pad = task.target_dictionary.pad()
        texts = split.fingerprint()
        identity = Identity(
            kind=options.kind,
            k=options.k,
            temperature=options.temperature,
            vocab=vocab,
            seed=options.seed if options.kind == "sampled" else 0,
            shard_tokens=options.shard_tokens,
            split=split.name,
            dictionary_sha256=dictionary_sha256(task.target_dictionary.symbols),
            max_positions=list(map(int, utils.resolve_max_positions(*self._teacher.max_positions()))),
            data=describe_data(texts, self.sizes),
            **identity_for_cache(self._teacher, options.teacher_overrides, options.teacher_user_dir),
        )
        name = f"{split.name}-{digest_of(list(texts.values()))[:8]}"
        self.store = StoreFolder(Path(options.cache_dir) / name, identity)
        self.plans = plan_shards(self.sizes, options.shard_tokens)
        # for the current shard, as in Shard
        self._dropped: Optional[float] = None
        self._dropped_tokens = 0

    def __call__(self, plan: Plan) -> Plan:
        """Write a shard."""
        writer = ShardWriter(self.store, plan, self.sizes)
        # seeded by the shard's number, so that draws depend neither on other shards nor on a restart
        generator = torch.Generator().manual_seed(self.store.identity.seed * 1_000_003 + plan.number)
        self._dropped, self._dropped_tokens = None, 0
        for sentences in self._batches(plan):
            writer.add(sentences, self._answers(sentences, generator))
            self.progress(int(self.sizes[sentences].sum()))
        writer.finish(self._dropped, self._dropped_tokens)
        return plan

    def _batches(self, plan: Plan) -> Iterator[np.ndarray]:
        """Batches of sentences of similar length; sentences that are too long for the teacher come one by one."""
        sentences = np.arange(plan.first, plan.last)
        source_sizes = np.asarray(self._dataset.src_sizes)[sentences]
        longer = np.maximum(source_sizes, self.sizes[sentences])
        for positions in by_length(np.stack([source_sizes, longer]), self._options.max_tokens):
            yield sentences[positions]

    def _answers(self, sentences: np.ndarray, generator: torch.Generator) -> Records:
        """Records of a batch's target tokens, sentence by sentence in the order given."""
        identity = self.store.identity
        k, kind, temperature = identity.k, identity.kind, identity.temperature
        source_limit, target_limit = identity.max_positions
        readable = (self._dataset.src_sizes[sentences] <= source_limit) & (self.sizes[sentences] <= target_limit)
        if not readable.all():
            parts = [
                self._answers(sentences[i : i + 1], generator) if fits else unknown(int(self.sizes[sentences[i]]), k)
                for i, fits in enumerate(readable)
            ]
            return Records(*map(np.concatenate, zip(*parts)))
        sample = self._dataset.collater([self._dataset[int(index)] for index in sentences])
        check_ids(sample["net_input"]["src_tokens"], self._dataset.src_dict, self._prefixes[0])
        check_ids(sample["target"], self._dataset.tgt_dict, self._prefixes[1])
        # fairseq's collater sorts a batch by the length of the source
        given = {int(index): position for position, index in enumerate(sentences)}
        order = np.argsort([given[int(index)] for index in sample["id"]])
        sample = utils.apply_to_sample(lambda tensor: tensor.to(self._device), sample)
        target = sample["target"].reshape(-1)
        rows = target.ne(self._pad).nonzero(as_tuple=True)[0]
        answer, dropped = self._teacher.answer(sample, Request(rows, torch.float32))[:2]
        assert answer is not None
        if dropped is not None and dropped.tokens:
            # measured on some of the batch's tokens, scaled to all of them
            self._dropped = (self._dropped or 0.0) + float(dropped.mass) / dropped.tokens * rows.numel()
            self._dropped_tokens += rows.numel()
        records = compress_answer(answer, rows.numel(), identity.vocab, kind, k, temperature, generator)
        lengths = self.sizes[sample["id"].cpu().numpy()]
        starts = np.cumsum(lengths) - lengths
        wanted = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in order])
        return Records(*(values[wanted] for values in records))
