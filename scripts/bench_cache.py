#!/usr/bin/env python3
"""Measures a cached teacher: updates that read from it, reading alone, and writing it.

    bench_cache.py [--quick] [--device cpu|cuda] [--threads N] [--seconds S] [--out DIR]

Updates are fairseq's own Trainer.train_step, as in bench_step.py; an update from the cache reads its records from a
store on disk, in the same process. The store holds random records for a large corpus, read sentence by sentence in
random order as in shuffled training.
"""

import argparse
import pathlib
import re
import tempfile
import threading
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from bench_step import DISTILLED, PLAIN, PLAIN_UPDATE, WAYS, cases, trainer, update
from benchmarking import (
    CASE,
    DTYPES,
    MILLISECONDS,
    SPREAD,
    Column,
    Contestant,
    ModelCase,
    Progress,
    Report,
    Table,
    draw_batches,
    parse_arguments,
    race,
    target_rows,
    write_checkpoint,
    write_dictionaries,
)
from fairseq import utils
from fairseq.trainer import Trainer

from kd_plugin.cache.compress import compress_answer
from kd_plugin.cache.data import dictionary_sha256
from kd_plugin.cache.manifest import Identity
from kd_plugin.cache.records import Records
from kd_plugin.cache.store import Store
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.teachers import Request
from kd_plugin.teachers.cached import RECORDS

K = 16
SHARD_TOKENS = 1_000_000
UPDATE, READ, FORWARD, WRITE = "from the cache", "reading alone", "teacher's forward", "forward and writing"
STOCK_FORWARD = "fairseq's forward"
UPDATES = {UPDATE + way: flags for way, flags in WAYS.items()}


class Corpus:
    """A store of random records for sentences of 1 to 49 target tokens."""

    def __init__(self, folder: pathlib.Path, sentences: int, vocab: int, symbols: Sequence[str]):
        self.sizes = np.random.default_rng(1).integers(1, 50, sentences)
        self.folder, self.vocab = folder, vocab
        self.identity = Identity(
            kind="topk",
            k=K,
            temperature=1.0,
            vocab=vocab,
            seed=0,
            dtype="fp32",
            shard_tokens=SHARD_TOKENS,
            split="train",
            dictionary_sha256=dictionary_sha256(symbols),
            max_positions=[1024, 1024],
            data={
                "source_sha256": "0" * 64,
                "target_sha256": "0" * 64,
                "sentences": sentences,
                "tokens": int(self.sizes.sum()),
            },
            teachers=[{"sha256": "0" * 64, "parameters": 0, "weight": 1.0}],
            overrides={},
        )

    def write(self) -> Store:
        folder = self.folder / "train"
        folder.mkdir(parents=True)
        store, plans = StoreFolder(folder, self.identity), plan_shards(self.sizes, SHARD_TOKENS)
        generator = np.random.default_rng(2)
        for plan in plans:
            writer = ShardWriter(store, plan, self.sizes)
            for sentences in np.array_split(np.arange(plan.first, plan.last), max(1, plan.size // 8000)):
                writer.add(sentences, random_records(generator, int(self.sizes[sentences].sum()), self.vocab))
            writer.finish()
        store.conclude(store.all_finished(plans))
        return Store(folder)


def random_records(generator: np.random.Generator, tokens: int, vocab: int) -> Records:
    weights = generator.random((tokens, K + 1), dtype=np.float32) ** 4 + 1e-4
    lprobs = np.log(-np.sort(-weights / weights.sum(axis=1, keepdims=True), axis=1))
    first = generator.integers(0, vocab, (tokens, 1))
    return Records((first + np.arange(K) * (vocab // K)) % vocab, lprobs[:, :K], lprobs[:, K])


class Reader:
    """Positions of random sentences, as many as batches have tokens, and their records."""

    def __init__(self, store: Store, sizes: np.ndarray):
        self._store, self._sizes = store, sizes
        self._starts = np.cumsum(sizes) - sizes
        self._generator = np.random.default_rng(3)

    def read(self, tokens: int) -> torch.Tensor:
        """As the training collater does."""
        sentences = self._generator.integers(0, len(self._sizes), 2 * tokens // 25 + 50)
        sizes = self._sizes[sentences]
        ends = np.cumsum(sizes)
        positions = np.repeat(self._starts[sentences] - (ends - sizes), sizes) + np.arange(ends[-1])
        return torch.from_numpy(self._store.read_encoded(positions[:tokens]))


def cached_update(
    name: str, of_trainer: Trainer, samples: Sequence[Dict[str, Any]], tokens: List[int], reader: Reader
) -> Contestant:
    def run() -> None:
        for sample, count in zip(samples, tokens):
            of_trainer.train_step([{**sample, RECORDS: reader.read(count)}])

    return Contestant(name, run)


def writing(
    name: str, teacher: Any, samples: Sequence[Dict[str, Any]], pad: int, identity: Identity, keep: bool
) -> Contestant:
    rows = [target_rows(sample, pad)[0] for sample in samples]

    def run() -> None:
        for sample, chosen in zip(samples, rows):
            answer = teacher.answer(sample, Request(chosen, torch.float32)).distribution
            if keep:
                identity.layout.encode(compress_answer(answer, len(chosen), identity.vocab, "topk", K))
            else:
                for _ in answer.pieces(len(chosen), identity.vocab):
                    pass

    return Contestant(name, run)


def fairseq_forward(model: Any, samples: Sequence[Dict[str, Any]]) -> Contestant:
    """The same teacher, frozen, as fairseq computes it."""
    model.requires_grad_(False)

    def run() -> None:
        with torch.no_grad():
            for sample in samples:
                model(**sample["net_input"])

    # fairseq 0.12.2's fast path fails on newer torch versions
    return Contestant(STOCK_FORWARD, run, optional=True)


def update_rows(case: ModelCase, folder: pathlib.Path, arguments: argparse.Namespace, table: Table) -> None:
    device = arguments.device
    write_dictionaries(folder, case.vocab)
    plain = trainer(folder, case.size, device, *PLAIN)
    dictionary = plain.task.target_dictionary
    samples = draw_batches(dictionary, case.max_tokens, case.batches)
    tokens = [len(target_rows(sample, dictionary.pad())[0]) for sample in samples]
    corpus = Corpus(folder / "cache", 2_000 if arguments.quick else 100_000, case.vocab, dictionary.symbols)
    store = corpus.write()
    # checksums are verified once per process, while reading the first epoch: the other table includes that
    for positions in np.array_split(np.arange(int(corpus.sizes.sum())), 100):
        store.read_encoded(positions)
    reader = Reader(store, corpus.sizes)
    from_cache = [*DISTILLED, f"--teacher-cache={folder / 'cache'}"]

    def cached(name: str, *flags: str) -> Contestant:
        of_trainer = trainer(folder, case.size, device, *from_cache, *flags)
        return cached_update(name, of_trainer, samples, tokens, reader)

    stock = write_checkpoint(folder / "teacher.pt", case.size.wider()).eval().to(device, DTYPES[case.dtype])
    online = trainer(folder, case.size, device, *DISTILLED, f"--teacher-path={folder / 'teacher.pt'}")
    teacher, identity, pad = online.task.teacher, corpus.identity, dictionary.pad()
    placed = samples if device.type == "cpu" else [utils.move_to_cuda(sample) for sample in samples]

    def read_all() -> None:
        for count in tokens:
            reader.read(count)

    contestants = [
        update(PLAIN_UPDATE, plain, samples),
        *(cached(name, *flags) for name, flags in UPDATES.items()),
        Contestant(READ, read_all),
        writing(FORWARD, teacher, placed, pad, identity, keep=False),
        writing(WRITE, teacher, placed, pad, identity, keep=True),
        fairseq_forward(stock, placed),
    ]
    timings = race(contestants, arguments)
    for contestant in contestants:
        timing = timings[contestant.name]
        values = {**case._asdict(), **timing.row()}
        if contestant.name in (PLAIN_UPDATE, READ, *UPDATES):
            values["ratio"] = timing.over(timings[PLAIN_UPDATE])
        if contestant.name == READ:
            values["of_update"] = timing.over(min((timings[name] for name in UPDATES), key=lambda t: t.median))
        if contestant.name in (FORWARD, WRITE):
            values["of_forward"] = timing.over(timings[FORWARD])
            if STOCK_FORWARD in timings:
                values["of_stock"] = timing.over(timings[STOCK_FORWARD])
        table.add(str(case), contestant.name, values)
    table.notes.append(
        f"{case}: {case.size}; the teacher that is written from: twice as wide; {len(samples)} batches of "
        f"{min(tokens)}–{max(tokens)} target tokens."
    )


def updates_table(arguments: argparse.Namespace, progress: Progress) -> Table:
    ratio = Column("÷ plain update", "ratio", ".3f")
    columns = [CASE, Column("what", "contestant"), MILLISECONDS, SPREAD, ratio]
    columns += [Column("÷ cached update", "of_update", ".4f"), Column("÷ forward", "of_forward", ".3f")]
    columns += [Column("÷ fairseq's forward", "of_stock", ".3f")]
    notes = [
        f"topk, k {K}; a cached update reads its records from a store of 100,000 sentences (2,000 with --quick) in "
        "this process, in random order, from the second epoch on.",
        "teacher's forward: all of its logits. forward and writing: their best entries and rest, encoded, without the "
        "disk; those logits are looked at in the processor's cache and are never all in memory.",
    ]
    table = Table("Updates from a cache", columns, notes, chart=ratio)
    for case in cases(arguments):
        progress.step(f"updates: {case}")
        with tempfile.TemporaryDirectory() as folder:
            update_rows(case, pathlib.Path(folder), arguments, table)
    if arguments.device.type == "cpu":
        table.not_measured("CUDA, fp16", "no CUDA device was used")
    return table


def large_table(arguments: argparse.Namespace, progress: Progress) -> Table:
    """A store of a million sentences, written and read, and the memory of this process."""
    sentences = 4_000 if arguments.quick else 1_000_000
    progress.step(f"{sentences:,} sentences")
    table = Table(
        f"A store of {sentences:,} sentences",
        [
            CASE,
            Column("what", "contestant"),
            Column("seconds", "seconds", ".1f"),
            Column("tokens/s", "rate", ",.0f"),
            Column("memory before, MB", "before", ",.0f"),
            Column("highest, MB", "highest", ",.0f"),
        ],
        [
            "Random records, made on the way: that is most of the time of writing. Files are read from the page cache.",
            "Memory is the process's own (RssAnon), without the pages of mapped files, which the system may take "
            "back; it includes PyTorch and fairseq.",
        ],
    )
    vocab = 32_000
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(pathlib.Path(folder) / "cache", sentences, vocab, [str(i) for i in range(vocab)])
        tokens = int(corpus.sizes.sum())
        case = f"{tokens:,} tokens, {tokens * corpus.identity.layout.width / 1e9:.2f} GB"
        with Measured() as measured:
            store = corpus.write()
        table.add(case, "written", measured.row(tokens))
        reader = Reader(store, corpus.sizes)
        with Measured() as measured:
            done = 0
            while done < tokens:
                done += len(reader.read(4000))
        table.add(case, "read in random order, checksums included", measured.row(done))
        with Measured() as measured:
            store.verify()
        table.add(case, "verified", measured.row(tokens))
    return table


class Measured:
    """Time and peak memory of the code inside, sampled twenty times per second."""

    def __enter__(self) -> "Measured":
        self.before = self.highest = _own_memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.highest = max(self.highest, _own_memory())

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        self._over.set()
        self._thread.join()

    def row(self, tokens: int) -> Dict[str, Any]:
        rate = tokens / self.seconds
        return {"seconds": self.seconds, "rate": rate, "before": self.before, "highest": self.highest}


def _own_memory() -> float:
    """MB; 0 if the system does not report it."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(re.search(r"RssAnon:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]


def main(argv: Optional[Sequence[str]] = None) -> None:
    arguments = parse_arguments(__doc__, argv)
    progress = Progress(steps=len(cases(arguments)) + 1)
    report = Report(
        "bench_cache",
        arguments,
        "what updates from a cached teacher cost compared with plain training, and how fast a cache is read and "
        "written.",
    )
    report.add(large_table(arguments, progress))
    report.add(updates_table(arguments, progress))
    progress.close()
    report.finish()


if __name__ == "__main__":
    main()
