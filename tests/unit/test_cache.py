"""The store on disk: what goes in comes out, interruptions lose nothing finished, damage never gets through."""

import errno
import hashlib
import json
import math
import os
import pickle
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from hypothesis import given, settings

from kd_plugin.cache.compress import compress, compress_answer, unknown
from kd_plugin.cache.data import dictionary_sha256
from kd_plugin.cache.manifest import BLOCK_TOKENS, Identity
from kd_plugin.cache.records import Layout, Records, mass_histogram
from kd_plugin.cache.store import Store, open_stores
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.cli import main
from kd_plugin.errors import KDPluginError
from kd_plugin.files import atomic as files
from kd_plugin.files.sharded_folder import MANIFEST
from kd_plugin.losses.answer import ProjectedAnswer, TeacherAnswer
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.engine import dispatch as engine
from kd_plugin.losses.engine import memory
from kd_plugin.losses.engine.memory import LinearHead
from kd_plugin.teachers.cached import CachedTeacher, decode
from tests.support import asked


def identity_of(**changes):
    fields = dict(
        kind="topk",
        k=3,
        temperature=1.0,
        vocab=500,
        seed=0,
        dtype="fp32",
        shard_tokens=2500,
        split="train",
        dictionary_sha256="d" * 64,
        max_positions=[1024, 1024],
        data={"source_sha256": "a" * 64, "target_sha256": "b" * 64, "sentences": 700, "tokens": 7000},
        teachers=[{"sha256": "c" * 64, "parameters": 7, "weight": 1.0}],
        overrides={},
    )
    return Identity(**{**fields, **changes})


def sizes_and_records(sentences=700, k=3, vocab=500, seed=0):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 20, sentences)
    tokens = int(sizes.sum())
    lprobs = -np.sort(generator.exponential(2.0, (tokens, k)), axis=1)
    rest = np.log(np.clip(1 - np.exp(lprobs).sum(axis=1), 1e-4, 1))
    records = Records(generator.integers(0, vocab, (tokens, k)), lprobs.astype("f4"), rest.astype("f4"))
    return sizes, records


def write(folder, identity, sizes, records, order=None, only=None):
    folder.mkdir(exist_ok=True)
    starts = np.cumsum(sizes) - sizes
    plans = plan_shards(sizes, identity.shard_tokens)
    for plan in plans if only is None else only:
        writer = ShardWriter(StoreFolder(folder, identity), plan, sizes)
        sentences = np.arange(plan.first, plan.last)
        if order is not None:
            order.shuffle(sentences)
        for batch in np.array_split(sentences, 5):
            at = np.concatenate([np.arange(starts[s], starts[s] + sizes[s]) for s in batch])
            writer.add(batch, Records(*(values[at] for values in records)))
        writer.finish()
    return merge(folder, identity, plans)


def merge(folder, identity, plans):
    """The manifest, once every shard is there."""
    store = StoreFolder(folder, identity)
    shards = store.all_finished(plans)
    return store.conclude(shards) if len(shards) == len(plans) else None


@pytest.fixture
def written(tmp_path):
    sizes, records = sizes_and_records()
    identity = identity_of(data={**identity_of().data, "tokens": int(sizes.sum())})
    assert write(tmp_path / "store", identity, sizes, records) is not None
    return tmp_path / "store", identity, sizes, records


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.integers(0, 30),
    k=st.integers(1, 40),
    vocab=st.sampled_from([40, 65_536, 65_537, 300_000]),
    seed=st.integers(0, 99),
)
def test_records_come_back_as_they_were_to_fp16(tokens, k, vocab, seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocab, (tokens, k))
    ids[:1] = vocab - 1
    records = Records(ids, -generator.exponential(5.0, (tokens, k)).astype("f4"), np.full(tokens, -np.inf, "f4"))
    layout = Layout(k, vocab)
    encoded = layout.encode(records)
    assert encoded.shape == (tokens, layout.width) and encoded.dtype == np.uint8
    back = layout.decode(encoded)
    assert (back.ids == ids).all() and (back.log_rest == -np.inf).all()
    assert (back.lprobs == records.lprobs.astype("f2")).all()


def test_sixteen_entries_take_66_bytes():
    assert Layout(16, 32_000).width == 66 and Layout(16, 65_537).width == 98


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_store_gives_back_every_token(tmp_path, shuffled):
    sizes, records = sizes_and_records()
    identity = identity_of()
    write(tmp_path / "store", identity, sizes, records, random.Random(1) if shuffled else None)
    store = Store(tmp_path / "store")
    assert len(store.manifest.shards) == 3 and store.manifest.tokens == sizes.sum()
    positions = np.random.default_rng(0).permutation(int(sizes.sum()))
    read = store.read(positions)
    assert (read.ids == records.ids[positions]).all()
    assert (read.lprobs == records.lprobs[positions].astype("f2")).all()
    assert (read.log_rest == records.log_rest[positions].astype("f2")).all()
    store.verify()
    again = pickle.loads(pickle.dumps(store))
    assert (again.read(positions[:9]).ids == read.ids[:9]).all()
    with pytest.raises(KDPluginError, match="no token"):
        store.read(np.array([sizes.sum()]))


def test_captured_mass_is_counted(written):
    folder, _, _, records = written
    manifest = Store(folder).manifest
    captured = 1 - np.exp(records.log_rest.astype("f8"))
    assert abs(manifest.captured - captured.mean()) < 1e-6
    content = json.loads((folder / MANIFEST).read_text())
    assert sum(content["captured_mass_histogram"]) == len(captured)
    assert content["captured_mass_histogram"][19] == (captured >= 0.95).sum()
    assert mass_histogram(np.array([0.0, -np.inf]))[0][[0, 19]].tolist() == [1, 1]


class Killed(BaseException):
    """As SIGKILL: no handler of Exception sees it."""


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_twenty_random_moments_the_store_is_the_same(tmp_path, monkeypatch):
    """Every system call of writing may be the last one; the next run goes on from the finished shards."""
    sizes, records = sizes_and_records()
    identity = identity_of()
    plans = plan_shards(sizes, identity.shard_tokens)
    write(tmp_path / "whole", identity, sizes, records)
    calls = {"left": 10**9}

    def counted(real):
        def call(*arguments):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise Killed
            return real(*arguments)

        return call

    monkeypatch.setattr(files.os, "fsync", counted(os.fsync))
    monkeypatch.setattr(files.os, "replace", counted(os.replace))
    generator = random.Random(0)
    moments = [generator.randint(1, 20) for _ in range(20)]
    assert len(set(moments)) > 10
    for number, moment in enumerate(moments):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        calls["left"] = moment
        done = 0
        with pytest.raises(Killed):
            for plan in plans:
                write(folder, identity, sizes, records, only=[plan])
                done += 1
        calls["left"] = 10**9
        if not (folder / MANIFEST).exists():
            kept = [plan for plan in plans if StoreFolder(folder, identity).finished(plan)]
            assert len(kept) >= done and merge(folder, identity, plans) is None or len(kept) == len(plans)
        (folder / ".shard-00001.bin.77.tmp").write_bytes(b"half")
        StoreFolder(folder, identity).remove_leftovers([plan.name for plan in plans])
        todo = [plan for plan in plans if StoreFolder(folder, identity).finished(plan) is None]
        write(folder, identity, sizes, records, only=todo)
        assert {k: v for k, v in tree(folder).items() if not k.startswith(".manifest")} == tree(tmp_path / "whole")


def test_full_disk_names_file_and_bytes_and_keeps_what_is_finished(tmp_path, monkeypatch):
    sizes, records = sizes_and_records()
    identity = identity_of()
    plans = plan_shards(sizes, identity.shard_tokens)
    write(tmp_path / "store", identity, sizes, records, only=plans[:1])
    before = tree(tmp_path / "store")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(KDPluginError, match=r"shard-00001.bin: could not write \d+ bytes: No space left"):
            write(tmp_path / "store", identity, sizes, records, only=plans[1:])
    assert tree(tmp_path / "store") == before
    assert write(tmp_path / "store", identity, sizes, records, only=plans[1:]) is not None


@pytest.mark.parametrize("suffix", ["bin", "crc"])
@pytest.mark.parametrize("damage", ["one bit", "truncated", "empty"])
def test_the_remedy_for_a_damaged_shard_mends_it(written, suffix, damage):
    folder, identity, sizes, records = written
    before = tree(folder)
    path = folder / f"shard-00001.{suffix}"
    content = path.read_bytes()
    kept = {"truncated": content[:-4], "empty": b""}
    path.write_bytes(kept.get(damage, bytes([content[0] ^ 1]) + content[1:]))
    with pytest.raises(
        KDPluginError, match=r"shard-00001.*delete shard-00001\.\* and run the same kd-plugin cache comm"
    ):
        Store(folder).verify()
    for path in folder.glob("shard-00001.*"):
        path.unlink()
    plans = plan_shards(sizes, identity.shard_tokens)
    todo = [plan for plan in plans if StoreFolder(folder, identity).finished(plan) is None]
    assert [plan.name for plan in todo] == ["shard-00001"]
    write(folder, identity, sizes, records, only=todo)
    assert tree(folder) == before


@pytest.mark.parametrize("suffix", ["bin", "crc"])
def test_shard_whose_files_have_lost_something_is_not_finished(written, suffix):
    folder, identity, sizes, _ = written
    path = folder / f"shard-00001.{suffix}"
    path.write_bytes(path.read_bytes()[:-4])
    plans = plan_shards(sizes, identity.shard_tokens)
    assert [plan.name for plan in plans if StoreFolder(folder, identity).finished(plan) is None] == ["shard-00001"]


def test_manifest_with_its_shards_in_another_order_is_refused(written):
    path = written[0] / MANIFEST
    content = json.loads(path.read_text())
    content["shards"].reverse()
    path.write_text(json.dumps(content))
    with pytest.raises(KDPluginError, match="manifest.json was changed after it was written"):
        Store(written[0])


@pytest.mark.parametrize("suffix", ["bin", "crc"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "swapped"])
def test_damaged_shard_is_refused_by_name_at_opening(written, suffix, damage):
    folder = written[0]
    path, other = folder / f"shard-00001.{suffix}", folder / f"shard-00000.{suffix}"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "longer":
        path.write_bytes(content + b"\0")
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    with pytest.raises(KDPluginError, match=rf"shard-0000[01]\.{suffix}"):
        store = Store(folder)
        store.read(np.arange(store.manifest.tokens))


def test_two_shards_swapped_with_their_checksums_are_refused(tmp_path):
    """Of equal size, so that no length tells."""
    sizes, records = sizes_and_records()
    sizes[:] = 10
    records = Records(*(np.resize(values, (7000, *values.shape[1:])) for values in records))
    identity = identity_of(shard_tokens=2000)
    write(tmp_path / "store", identity, sizes, records)
    contents = tree(tmp_path / "store")
    manifest = json.loads(contents[MANIFEST])
    for suffix in ("bin", "crc"):
        for here, there in ((0, 1), (1, 0)):
            (tmp_path / "store" / f"shard-0000{here}.{suffix}").write_bytes(contents[f"shard-0000{there}.{suffix}"])
    with pytest.raises(KDPluginError, match=r"shard-00000.crc is damaged"):
        Store(tmp_path / "store")
    # even with a forged manifest the checksums belong to their shard's name
    for here, there in ((0, 1), (1, 0)):
        digest = hashlib.sha256(contents[f"shard-0000{there}.crc"]).hexdigest()
        manifest["shards"][here]["checksums_sha256"] = digest
    (tmp_path / "store" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(KDPluginError, match=r"shard-00000.bin is damaged"):
        Store(tmp_path / "store").read(np.arange(3))


def test_every_flipped_bit_is_seen_before_its_records_are_given_away(written):
    folder, identity, sizes, _ = written
    generator = random.Random(0)
    path = folder / "shard-00001.bin"
    content = path.read_bytes()
    width, first = identity.layout.width, Store(folder).manifest.shards[0].tokens
    for _ in range(200):
        at = generator.randrange(len(content))
        damaged = bytearray(content)
        damaged[at] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        store = Store(folder)
        with pytest.raises(KDPluginError, match=r"shard-00001.bin is damaged: wrong checksum at byte"):
            store.read(np.array([first + at // width]))
        with pytest.raises(KDPluginError, match=r"shard-00001.bin is damaged"):
            store.verify()
        block = at // width // BLOCK_TOKENS
        elsewhere = first + (block + 1) % 2 * BLOCK_TOKENS
        store.read(np.array([0, elsewhere]))  # other blocks are still good


@pytest.mark.parametrize(
    "content,message",
    [
        ("{", "cannot be read"),
        ("[1]", "is not a JSON object"),
        ("{}", "version None"),
        ('{"version": 2}', "format None version 2"),
        ('{"format": "kd_plugin teacher cache", "version": 2}', "not a manifest"),
    ],
)
def test_manifest_that_is_none(written, content, message):
    (written[0] / MANIFEST).write_text(content)
    with pytest.raises(KDPluginError, match=message):
        Store(written[0])


@pytest.mark.parametrize("field,value", [("temperature", 2.0), ("k", 4), ("vocab", 501)])
def test_manifest_that_was_edited(written, field, value):
    content = json.loads((written[0] / MANIFEST).read_text())
    content["identity"][field] = value
    (written[0] / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(KDPluginError, match="was changed after it was written"):
        Store(written[0])


def test_somebody_elses_shards_are_refused(written):
    folder, identity, sizes, _ = written
    plan = plan_shards(sizes, identity.shard_tokens)[0]
    with pytest.raises(KDPluginError, match="another teacher, from other data or with other options"):
        StoreFolder(folder, identity._replace(temperature=2.0)).finished(plan)


def test_unfinished_cache_says_so(tmp_path):
    sizes, records = sizes_and_records()
    identity = identity_of()
    write(tmp_path / "cache", identity, sizes, records, only=[])
    with pytest.raises(KDPluginError, match="nothing was ever written"):
        open_stores(tmp_path)
    write(tmp_path / "cache", identity, sizes, records, only=plan_shards(sizes, 2500)[:1])
    with pytest.raises(KDPluginError, match="is unfinished"):
        open_stores(tmp_path)
    with pytest.raises(KDPluginError, match="no such folder"):
        open_stores(tmp_path / "nowhere")


def test_a_writer_refuses_records_that_do_not_fit(tmp_path):
    sizes, records = sizes_and_records()
    plan = plan_shards(sizes, 2500)[0]
    writer = ShardWriter(StoreFolder(tmp_path, identity_of()), plan, sizes)
    with pytest.raises(KDPluginError, match="do not match"):
        writer.add(np.array([0, 1]), Records(*(values[: sizes[0]] for values in records)))
    with pytest.raises(KDPluginError, match="sentences have no records"):
        writer.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_a_teacher_that_answers_nan_is_refused_and_its_sentences_named(tmp_path, kind, cpu_engine):
    logits = torch.randn(9, 500, generator=torch.Generator().manual_seed(0))
    logits[5, 77] = torch.nan
    sizes = np.array([4, 3, 2])
    writer = ShardWriter(StoreFolder(tmp_path, identity_of(kind=kind)), plan_shards(sizes, 100)[0], sizes)
    with pytest.raises(KDPluginError, match=r"the sentences \[1\] are NaN"):
        writer.add(np.arange(3), compress(logits, kind, 3, 1.0, torch.Generator().manual_seed(1)))
    assert not list(tmp_path.iterdir())


def test_shards_are_whole_sentences_and_no_token_is_lost():
    sizes = np.array([5, 5, 5, 100, 1, 1, 1])
    plans = plan_shards(sizes, 10)
    assert [(plan.first, plan.last, plan.size) for plan in plans] == [(0, 2, 10), (2, 3, 5), (3, 4, 100), (4, 7, 3)]
    assert plan_shards(np.array([], dtype=int), 10) == []


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k,vocab", [(1, 300), (7, 300), (150, 300), (300, 300), (16, 2500), (16, 32)])
@pytest.mark.parametrize("masked", [False, True])
def test_topk_are_the_teachers_best_and_the_rest_is_exact(temperature, k, vocab, masked, cpu_engine):
    logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    if masked:  # all but k - 3 entries: places are left for symbols of probability 0, each another one
        keep = torch.randperm(vocab, generator=torch.Generator().manual_seed(1))[: max(1, k - 3)]
        logits = torch.full_like(logits, -torch.inf).index_copy_(1, keep, logits[:, keep])
    records = compress(logits.float(), "topk", k, temperature)
    lprobs = torch.log_softmax(logits.float().double() / temperature, dim=-1)
    best, ids = lprobs.topk(k, dim=-1)
    assert all(len(set(row)) == k for row in records.ids.tolist())
    # of entries that are equal but for rounding, either may come first
    torch.testing.assert_close(lprobs.gather(-1, torch.from_numpy(records.ids)), best, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(records.lprobs).double(), best, rtol=1e-5, atol=1e-5)
    rest = lprobs.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
    torch.testing.assert_close(torch.from_numpy(records.log_rest).double(), rest, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["topk", "sampled"])
@pytest.mark.parametrize("answer", ["projection", "vocab below 2 k", "ensemble", "remapped", "logits"])
def test_an_answer_is_compressed_as_all_its_logits_are(answer, kind, temperature, cpu_engine, monkeypatch):
    """Whether its logits are made in tiles, in pieces of rows or at once."""
    rows, vocab, k = 40, 25 if "2 k" in answer else 5000, 16
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 4 * vocab * 7)
    kernels = engine.kernels_for("cpu")
    if kernels is not None:
        monkeypatch.setattr(kernels, "MIN_ENTRIES", 7 * kernels.TILE_COLUMNS)
    generator = torch.Generator().manual_seed(2)
    features, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, 8), (vocab, 8), (vocab,)))
    head, order = LinearHead(weight, bias), torch.randperm(vocab, generator=generator)
    if answer == "remapped":
        members = [(features, lambda x, allocate: head(x, allocate).index_select(1, order))]
    else:
        members = [(features, head)] * (2 if answer == "ensemble" else 1)
    whole = ProjectedAnswer(members, [-math.log(len(members))] * len(members))
    asked = TeacherAnswer(whole.logits) if answer == "logits" else whole
    records, expected = (
        compress_answer(a, rows, vocab, kind, k, temperature, torch.Generator().manual_seed(3))
        for a in (asked, TeacherAnswer(whole.logits))
    )
    np.testing.assert_array_equal(records.ids, expected.ids)
    np.testing.assert_allclose(records.lprobs, expected.lprobs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(records.log_rest, expected.log_rest, rtol=1e-5, atol=2e-5)
    all_at_once = compress(whole.logits, kind, k, temperature, torch.Generator().manual_seed(3))
    if kind == "topk":
        np.testing.assert_array_equal(records.ids, all_at_once.ids)


def test_draws_follow_the_teachers_distribution():
    logits = torch.tensor([[2.0, 0.0, 1.0, -torch.inf, -1.0]]).repeat(4000, 1)
    records = compress(logits, "sampled", 10, 2.0, torch.Generator().manual_seed(5))
    lprobs = torch.log_softmax(logits[0].double() / 2.0, dim=-1)
    counts = np.bincount(records.ids.ravel(), minlength=5) / 40_000
    errors = (lprobs.exp() * (1 - lprobs.exp()) / 40_000).sqrt().numpy()
    assert (np.abs(counts - lprobs.exp().numpy()) <= 4.5 * errors).all() and counts[3] == 0
    torch.testing.assert_close(torch.from_numpy(records.lprobs).double(), lprobs[records.ids], rtol=1e-5, atol=1e-5)
    row = records.ids[0]
    missing = [v for v in range(5) if v not in row]
    assert abs(np.exp(records.log_rest[0]) - lprobs.exp()[missing].sum().item()) < 1e-6


def test_what_nobody_could_be_asked_about_captures_nothing():
    records = unknown(4, 3)
    assert mass_histogram(records.log_rest) == (pytest.approx([4] + [0] * 19), 0.0)


@pytest.mark.parametrize(
    "flags,named",
    [
        (["--shard-id", "2", "--num-shards", "2"], "with --num-shards 2, the shards are 0 … 1"),
        (["--k", "0"], "--k 0: must be at least 1"),
        (["--shard-tokens", "0"], "--shard-tokens 0"),
        (["--temperature", "0"], "--temperature 0"),
        ([], "no such folder of binarised data"),
    ],
)
def test_command_with_flags_out_of_range(tmp_path, capsys, flags, named):
    command = ["cache", str(tmp_path / "nowhere"), "--teacher-path", "A.pt", "--cache-dir", str(tmp_path / "cache")]
    assert main([*command, *flags]) == 1
    assert named in capsys.readouterr().err and not (tmp_path / "cache").exists()


def cached_teacher(tmp_path, hashes=(), **changes):
    dictionary = Dictionary()
    for number in range(496):
        dictionary.add_symbol(f"word{number}")
    sizes, records = sizes_and_records()
    tmp_path.mkdir(exist_ok=True)
    identity = identity_of(dictionary_sha256=dictionary_sha256(dictionary.symbols), **changes)
    write(tmp_path / identity.split, identity, sizes, records)
    return CachedTeacher(str(tmp_path), dictionary, hashes)


@pytest.mark.parametrize(
    "kind,divergence,temperatures,top1_rank,named",
    [
        ("topk", "adaptive_kl", [1.0], 0, "--kd-divergence adaptive_kl.*forward_kl, reverse_kl, js, tvd"),
        ("topk", "skew_reverse_kl", [1.0], 0, "--kd-divergence skew_reverse_kl"),
        ("sampled", "js", [1.0], 0, "of kind sampled supports only forward_kl"),
        ("topk", "forward_kl", [1.0], 5, "--kd-top1-rank"),
        ("topk", "forward_kl", [1.5], 0, "written at temperature 1.0, but this run has --kd-temperature 1.5"),
        ("topk", "forward_kl", [1.0, 2.0], 0, "--kd-temperature 1 to 2"),
    ],
)
def test_what_stored_entries_cannot_give_is_refused(tmp_path, kind, divergence, temperatures, top1_rank, named):
    teacher = cached_teacher(tmp_path, kind=kind)
    teacher.check([Objective(0.5)])
    with pytest.raises(KDPluginError, match=named):
        teacher.check([Objective(0.5, t, 0.1, divergence, top1_rank=top1_rank) for t in temperatures])


def test_stores_of_two_teachers_in_one_folder_are_refused(tmp_path):
    cached_teacher(tmp_path)
    other = [{"sha256": "e" * 64, "parameters": 7, "weight": 1.0}]
    with pytest.raises(KDPluginError, match="train and valid differ in teachers"):
        cached_teacher(tmp_path, split="valid", teachers=other)


def test_expected_hash_is_compared_with_the_manifest(tmp_path):
    assert cached_teacher(tmp_path, hashes=["C" * 64]).signature_fields()[1] == "cache:topk:3:fp32"
    with pytest.raises(KDPluginError, match="the answers in"):
        cached_teacher(tmp_path, hashes=["f" * 64])


@pytest.mark.parametrize("vocab", [500, 70_000])
def test_records_are_decoded_on_the_device_as_numpy_does(vocab):
    layout = Layout(3, vocab)
    _, records = sizes_and_records(vocab=vocab)
    encoded = layout.encode(records)
    wanted = layout.decode(encoded)
    assert wanted.ids.max() > 0.9 * vocab
    for tokens in (0, 1, 2, len(encoded)):
        answer = decode(torch.from_numpy(encoded[:tokens]), layout, False)
        part = Records(*(values[:tokens] for values in wanted))
        assert answer.ids.shape == (tokens, 3) and (answer.ids.numpy() == part.ids).all()
        assert (answer.lprobs.numpy() == part.lprobs).all() and (answer.log_rest.numpy() == part.log_rest).all()


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_a_batch_without_answers_is_given_finite_ones(tmp_path, kind):
    teacher = cached_teacher(tmp_path, kind=kind)
    sample = {"target": torch.tensor([[5, 6, 2], [7, 2, 1]])}
    rows = torch.tensor([0, 1, 2, 3, 4])
    answer = asked(teacher, teacher.complete(sample), rows, torch.float32)
    mass = answer.lprobs.exp().sum(-1) + answer.log_rest.exp()
    torch.testing.assert_close(mass, torch.ones(5), rtol=0, atol=2e-3)
    assert (
        answer.ids.tolist() == [[0, 1, 2]] * 5
        and teacher.complete({**sample, "teacher_records": 1})["teacher_records"] == 1
    )


def test_too_few_open_files_are_named(written, monkeypatch):
    from kd_plugin.cache import store

    def none_left(*arguments, **others):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(store.mmap, "mmap", none_left)
    with pytest.raises(KDPluginError, match=r"shard-00000.bin.*ulimit -n.*--shard-tokens"):
        Store(written[0])


def test_as_many_files_may_be_open_as_there_are_shards(monkeypatch):
    resource = pytest.importorskip("resource", reason="this system has no such limit")
    from kd_plugin.cache.store import _allow_open_files

    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: set_to.append(limits))
    _allow_open_files(100)
    assert set_to == []
    _allow_open_files(900)
    assert set_to == [(4096, 4096)]


@pytest.mark.parametrize("subset", ["train,valid", " train , valid,", "train,train,valid"])
def test_a_subset_names_each_split_once(subset):
    from kd_plugin.cache.data import split_names

    assert split_names(subset) == ["train", "valid"]


@pytest.mark.parametrize("subset", ["", " ", ","])
def test_a_subset_without_names_is_refused(subset):
    from kd_plugin.cache.data import split_names

    with pytest.raises(KDPluginError, match="names no split"):
        split_names(subset)
