"""The task in this process: its teacher, its batches, what it hands to the criterion and leaves in a checkpoint."""

import logging
import os

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.data import BaseWrapperDataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask

from kd_plugin.cache.data import Split, describe_data, dictionary_sha256
from kd_plugin.cache.manifest import Identity
from kd_plugin.cache.records import Records
from kd_plugin.cache.writer import ShardWriter, StoreFolder, plan_shards
from kd_plugin.criterions import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.errors import KDPluginError
from kd_plugin.files.atomic import sha256_of
from kd_plugin.losses.selection import SelectGlobally
from kd_plugin.tasks.distillation_translation import DistillationTranslationConfig, DistillationTranslationTask
from kd_plugin.teachers.cached import CachedTeacher
from kd_plugin.teachers.online import OnlineTeacher
from tests.support import MODEL, PLUGIN, asked, make_checkpoint
from tests.unit.conftest import WORDS
from tests.unit.data_folders import binarise

LANGS = ["-s", "en", "-t", "de"]
# of unequal lengths, and no two targets with as many tokens in a row
TRAIN = [([4, 5], [6]), ([7], [8, 9, 10]), ([11, 12, 13], [14, 15]), ([16], [17, 18, 19, 20]), ([21], [22])]
TRAIN1 = [([5, 4], [9, 8]), ([6], [7, 6, 5, 4, 3]), ([4], [4])]
VOCAB, K = len(WORDS) + 4, 2


# what fairseq takes from other groups of its configuration
ELSEWHERE = dict(dataset_impl="mmap", train_subset="train", required_seq_len_multiple=1)


def task_of(data, **fields):
    fields = {"data": str(data), "source_lang": "en", "target_lang": "de", **ELSEWHERE, **fields}
    return DistillationTranslationTask.setup_task(DistillationTranslationConfig(**fields))


def sizes_of(pairs):
    return np.array([len(target) + 1 for _, target in pairs])


def write_store(cache, data, split, pairs, offset=0, **changes):
    """A store whose records say whose they are: token number n of the split has log_rest -(offset + n) / 8."""
    sizes, dictionary = sizes_of(pairs), task_of(data).target_dictionary
    texts = Split(str(data), split, "en", "de", changes.pop("truncated_to", None)).fingerprint()
    fields = dict(
        kind="topk", k=K, temperature=1.0, vocab=VOCAB, seed=0, dtype="fp32", shard_tokens=6, split=split,
        dictionary_sha256=dictionary_sha256(dictionary.symbols), max_positions=[9, 7],
        data=describe_data(texts, sizes), teachers=[{"sha256": "c" * 64, "parameters": 7, "weight": 1.0}], overrides={},
    )  # fmt: skip
    identity = Identity(**{**fields, **changes})
    folder = cache / f"{split}-{offset}"
    folder.mkdir(parents=True)
    store, plans, ends = StoreFolder(folder, identity), plan_shards(sizes, 6), np.cumsum(sizes)
    for plan in plans:
        writer = ShardWriter(store, plan, sizes)
        tokens = np.arange(ends[plan.last - 1] - plan.size, ends[plan.last - 1])
        ids = np.stack([tokens % VOCAB, (tokens + 1) % VOCAB], axis=1)
        writer.add(
            np.arange(plan.first, plan.last),
            Records(ids, np.full((len(tokens), K), -1.0, "f4"), (-(offset + tokens) / 8).astype("f4")),
        )
        writer.finish()
    store.conclude(store.all_finished(plans))


def token_numbers(task, sample):
    """Which tokens' answers a batch has brought, row by row without padding."""
    rows = sample["target"].ne(1).reshape(-1).nonzero(as_tuple=True)[0]
    answer = asked(task.teacher, sample, rows, torch.float32)
    numbers = (-8 * answer.log_rest).round().long()
    return [row.tolist() for row in numbers.split(sample["target"].ne(1).sum(1).tolist())]


def cached_task(tmp_path, **fields):
    task = task_of(tmp_path / "data", teacher_cache=str(tmp_path / "cache"), **fields)
    task._load_teacher()
    return task


@pytest.fixture
def data(tmp_path):
    for split, pairs in (("train", TRAIN), ("train1", TRAIN1), ("valid", TRAIN1[:2])):
        binarise(tmp_path / "data", WORDS, split, pairs)
    return tmp_path / "data"


@pytest.mark.parametrize("upsample", [1, 3])
def test_each_sentence_brings_its_own_tokens_answers(data, tmp_path, upsample):
    """Alone, together, in any order, of the first file, its repetitions and the second file."""
    write_store(tmp_path / "cache", data, "train", TRAIN)
    write_store(tmp_path / "cache", data, "train1", TRAIN1, offset=100)
    task = cached_task(tmp_path, upsample_primary=upsample)
    task.load_dataset("train", combine=True)
    dataset, expected = task.datasets["train"], []
    for pairs, offset, times in ((TRAIN, 0, upsample), (TRAIN1, 100, 1)):
        sizes = sizes_of(pairs)
        starts = np.cumsum(sizes) - sizes
        expected += [list(range(offset + s, offset + s + n)) for s, n in zip(starts, sizes)] * times
    assert len(dataset) == len(expected)
    generator = np.random.default_rng(0)
    for size in (1, 2, 3, len(dataset), len(dataset)):
        chosen = generator.permutation(len(dataset))[:size]
        sample = dataset.collater([dataset[int(i)] for i in chosen])
        assert token_numbers(task, sample) == [expected[i] for i in sample["id"].tolist()]
        assert sorted(sample["id"].tolist()) == sorted(chosen.tolist())
        assert task.teacher.covers(sample)
    assert not dataset.collater([])  # fairseq's dummy batches begin empty


def test_some_rows_get_their_own_answers(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    task.load_dataset("train")
    dataset = task.datasets["train"]
    sample = dataset.collater([dataset[0], dataset[1]])
    ids, width = sample["id"].tolist(), sample["target"].size(1)
    first = {0: 0, 1: 2}  # the number of each sentence's first token in the split
    rows = torch.tensor([1, width, width + 1])
    answer = asked(task.teacher, sample, rows, torch.float32)
    numbers = [first[ids[0]] + 1, first[ids[1]], first[ids[1]] + 1]
    assert (-8 * answer.log_rest).round().long().tolist() == numbers
    assert answer.ids.tolist() == [[n, n + 1] for n in numbers] and torch.equal(answer.lprobs, torch.full((3, K), -1.0))


def test_training_needs_answers_and_validation_does_not(data, tmp_path, caplog):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    with caplog.at_level(logging.INFO, "kd_plugin.teachers.cached"):
        task.load_dataset("valid")
        task.load_dataset("train")
    assert "valid: no answers" in caplog.text and "train: 5 sentences with answers from" in caplog.text
    dataset = task.datasets["valid"]
    sample = dataset.collater([dataset[0], dataset[1]])
    assert not task.teacher.covers(sample)
    completed = task.teacher.complete(sample)
    assert task.teacher.covers(completed) and "teacher_records" not in sample
    assert task.teacher.complete(completed) is completed
    other = cached_task(tmp_path, train_subset="valid")
    with pytest.raises(KDPluginError, match=r"no answers for .*valid.*\(it has no valid\).*--subset valid"):
        other.load_dataset("valid")
    with pytest.raises(KDPluginError, match=r"no answers for .*train1.*\(it has no train1\)"):
        cached_task(tmp_path).load_dataset("train", combine=True)


def test_answers_to_other_data_are_not_taken(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    binarise(data, WORDS, "train", [*TRAIN[1:], TRAIN[0]])
    from kd_plugin.cache import data as cache_data

    cache_data._hashes.cache_clear()  # within a process data do not change
    with pytest.raises(KDPluginError, match="is for other data, or for sources truncated differently"):
        cached_task(tmp_path).load_dataset("train")


def test_truncated_sources_have_answers_of_their_own(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN, truncated_to=3)
    cached_task(tmp_path, truncate_source=True, max_source_positions=3).load_dataset("train")
    for fields, flags in (
        (dict(max_source_positions=3), ""),
        (dict(truncate_source=True, max_source_positions=4), " --truncate-source --max-source-positions 4 "),
    ):
        with pytest.raises(KDPluginError, match=f"no answers for.*{flags}"):
            cached_task(tmp_path, **fields).load_dataset("train")


def test_each_epoch_of_several_folders_brings_its_own_folders_answers(tmp_path):
    for name, pairs, offset in (("one", TRAIN, 0), ("two", TRAIN1, 100)):
        binarise(tmp_path / name, WORDS, "train", pairs)
        write_store(tmp_path / "cache", tmp_path / name, "train", pairs, offset)
    binarise(tmp_path / "one", WORDS, "valid", TRAIN1[:2])
    folders = f"{tmp_path / 'one'}:{tmp_path / 'two'}"
    task = task_of(folders, teacher_cache=str(tmp_path / "cache"))
    task._load_teacher()
    for epoch, first in ((1, 0), (2, 100), (3, 0)):
        task.load_dataset("train", epoch=epoch)
        dataset = task.datasets["train"]
        assert token_numbers(task, dataset.collater([dataset[0]]))[0][0] == first
    task.load_dataset("valid", epoch=2)  # always of the first folder


def test_a_damaged_length_is_told_and_not_trained_on(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    task.load_dataset("train")
    dataset = task.datasets["train"]
    sample = dataset[0]
    sample["target"] = sample["target"][1:]  # as an option of the task that cuts targets would
    with pytest.raises(KDPluginError, match=r"2 records for 1 target tokens of the sentences \[0\]"):
        dataset.collater([sample])


@pytest.mark.parametrize(
    "fields,named",
    [
        (dict(teacher_cache="c", teacher_path="t.pt"), "--teacher-path excludes --teacher-cache"),
        (dict(teacher_cache="c", teacher_weights="1"), "--teacher-weights excludes --teacher-cache"),
        (
            dict(teacher_cache="c", teacher_overrides='{"dropout": 0}'),
            "--teacher-overrides: has no effect on the answers in",
        ),
        (dict(teacher_cache="c", teacher_dtype="bf16"), "--teacher-dtype: has no effect on the answers in"),
        (dict(teacher_cache="c", teacher_source_lang="en"), "--teacher-source-lang: has no effect on the answers in"),
        (
            dict(teacher_cache="c", teacher_missing_symbols="ignore"),
            "--teacher-missing-symbols: has no effect on the answers in",
        ),
        (dict(teacher_target_lang="de"), "--teacher-target-lang has no effect without --teacher-path"),
        (dict(teacher_missing_symbols="ignore"), "--teacher-missing-symbols has no effect without --teacher-path"),
        (dict(teacher_weights="1,2"), "--teacher-weights has no effect without --teacher-path"),
        (dict(teacher_sha256="ab"), "--teacher-sha256 has no effect without --teacher-path"),
        (dict(teacher_cache="nowhere"), "--teacher-cache nowhere: no such folder"),
        (dict(teacher_path="nowhere.pt"), "nowhere.pt: no such checkpoint file"),
    ],
)
def test_flags_of_the_teacher_that_exclude_each_other(fields, named, dictionaries):
    with pytest.raises(KDPluginError, match=named):
        task_of(dictionaries, **fields)._load_teacher()


def online_task(tmp_path, dictionaries, *extra, **fields):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *MODEL, *extra)
    return task_of(dictionaries, teacher_path=str(tmp_path / "teacher.pt"), **fields)


def criterion_cfg(name="kd_label_smoothed_cross_entropy", **fields):
    args = options.parse_args_and_arch(
        options.get_training_parser(), ["data", *map(str, PLUGIN[:4]), "--criterion", name, "--arch", "transformer"]
    )
    cfg = convert_namespace_to_omegaconf(args).criterion
    for field, value in fields.items():
        setattr(cfg, field, value)
    return cfg


def test_criterion_is_built_with_its_teacher_and_they_are_signed(tmp_path, dictionaries, caplog):
    task = online_task(tmp_path, dictionaries, teacher_dtype="fp32")
    with caplog.at_level(logging.INFO, "kd_plugin"):
        criterion = task.build_criterion(criterion_cfg(kd_selection="global", kd_alpha=0.25))
    assert isinstance(criterion, KDLabelSmoothedCrossEntropyCriterion) and isinstance(task.teacher, OnlineTeacher)
    assert task.teacher.dtype == "fp32" and task.selection is criterion.distiller.selection
    assert isinstance(task.selection, SelectGlobally)
    signed = [r.getMessage() for r in caplog.records if r.getMessage().startswith("kd|alpha:0.25|")]
    assert len(signed) == 1 and f"|teacher:sha256:{task.teacher.members[0].sha256[:8]}(" in signed[0]


def test_a_teacher_that_nobody_asks_is_refused(tmp_path, dictionaries):
    with pytest.raises(KDPluginError, match="the criterion LabelSmoothedCrossEntropyCriterion does not use one"):
        online_task(tmp_path, dictionaries).build_criterion(criterion_cfg("label_smoothed_cross_entropy"))
    assert task_of(dictionaries).build_criterion(criterion_cfg("label_smoothed_cross_entropy")) is not None


@pytest.mark.parametrize(
    "fields,named",
    [
        (dict(kd_divergence="adaptive_kl"), "--kd-divergence adaptive_kl: a --teacher-cache of kind"),
        (dict(kd_temperature=2.0), "written at temperature 1.0, but this run has --kd-temperature 2"),
        (dict(kd_top1_rank=5), "--kd-top1-rank needs the teacher's whole distribution"),
    ],
)
def test_what_a_cache_cannot_give_is_refused_before_data_are_read(fields, named, data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    assert task.build_criterion(criterion_cfg()) is not None
    with pytest.raises(KDPluginError, match=named):
        task.build_criterion(criterion_cfg(**fields))


def test_hashes_are_compared_with_the_caches(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    cached_task(tmp_path, teacher_sha256="c" * 64)
    with pytest.raises(KDPluginError, match="the answers in"):
        cached_task(tmp_path, teacher_sha256="d" * 64)


def test_longest_sentences_are_the_shorter_of_the_tasks_and_the_answers(data, tmp_path):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    assert tuple(cached_task(tmp_path).max_positions()) == (9, 7)
    assert tuple(cached_task(tmp_path, max_source_positions=5).max_positions()) == (5, 7)
    assert tuple(task_of(data).max_positions()) == (1024, 1024)


def test_an_update_tells_its_number_and_whether_its_gradient_counts(data, tmp_path, monkeypatch):
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    task.load_dataset("valid")
    task.load_dataset("train")
    seen = []

    def step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        seen.append((self.num_updates, self.is_dummy_batch, self.teacher.covers(sample), update_num, ignore_grad))
        return "loss", 1, {}

    monkeypatch.setattr(TranslationTask, "train_step", step)
    batches = {split: task.datasets[split].collater([task.datasets[split][0]]) for split in ("train", "valid")}
    assert task.train_step(batches["train"], None, None, None, 41) == ("loss", 1, {})
    task.train_step(batches["valid"], None, None, None, 42, ignore_grad=True)
    task.train_step(batches["valid"], None, None, None, 43)
    # the batch of validation that a rank without data goes through gets invented answers, no other batch does
    assert seen == [(41, False, True, 41, False), (42, True, True, 42, True), (43, False, False, 43, False)]


def test_both_files_together_do_not_crash_at_fairseqs_own_default(data):
    task = task_of(data, upsample_primary=-1)
    task.load_dataset("train", combine=True)
    assert len(task.datasets["train"]) == len(TRAIN) + len(TRAIN1)
    task = task_of(data, upsample_primary=2)
    task.load_dataset("train", combine=True)
    assert len(task.datasets["train"]) == 2 * len(TRAIN) + len(TRAIN1)


def test_iterators_carry_the_queue_and_give_it_back(data):
    def iterator_of(task):
        task.load_dataset("train")
        return task.get_batch_iterator(task.datasets["train"], max_tokens=100, max_sentences=2)

    task = task_of(data)
    task.selection = SelectGlobally(0.5, 10)
    task.selection.queue = torch.arange(4.0)
    iterator = iterator_of(task)
    iterator.next_epoch_itr()
    state = iterator.state_dict()
    assert torch.equal(state["kd_selection"]["queue"], torch.arange(4.0)) and "epoch" in state
    assert task.get_batch_iterator(task.datasets["train"], max_tokens=100, max_sentences=2) is iterator

    resumed = task_of(data)
    resumed.selection = SelectGlobally(0.5, 10)
    iterator_of(resumed).load_state_dict(state)
    assert torch.equal(resumed.selection.queue, torch.arange(4.0))
    stock = task_of(data)  # a checkpoint of a run without the plugin
    stock.selection = SelectGlobally(0.5, 10)
    iterator_of(stock).load_state_dict({k: v for k, v in state.items() if k != "kd_selection"})
    assert stock.selection.queue.numel() == 0


def test_from_the_first_epoch_on_the_configuration_is_a_stock_students(tmp_path, dictionaries):
    make_checkpoint(tmp_path / "teacher.pt", dictionaries, *LANGS, *MODEL)
    arguments = [
        dictionaries,
        *PLUGIN,
        "--arch",
        "transformer_student_micro",
        "--teacher-path",
        tmp_path / "teacher.pt",
    ]
    args = options.parse_args_and_arch(options.get_training_parser(), [*map(str, arguments), *LANGS])
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.build_criterion(cfg.criterion)
    assert cfg.task._name == "distillation_translation"
    task.begin_epoch(1, torch.nn.Linear(2, 2))
    assert (cfg.task._name, cfg.criterion._name) == ("translation", "label_smoothed_cross_entropy")
    assert cfg.common.user_dir is None and cfg.model.arch == "transformer"
    everything = str(cfg)
    for private in ("teacher.pt", "teacher_path", "kd_alpha", "kd_selection"):
        assert private not in everything, private
    assert task.state_dict()["kd_signature"].startswith("kd|alpha:0.5|T:1.0|")


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink"])
def test_a_teacher_that_the_training_would_write_over_is_refused(link, tmp_path, dictionaries):
    """fairseq writes checkpoint_best.pt into --save-dir whatever is there."""
    save_dir, teacher = tmp_path / "save [1]", tmp_path / "save [1]" / "checkpoint_best.pt"
    make_checkpoint(teacher, dictionaries, *LANGS, *MODEL)
    if link:
        moved = teacher.rename(tmp_path / "teacher.pt")
        teacher.symlink_to(moved) if link == "symlink_to" else os.link(str(moved), str(teacher))
        teacher = moved
    arguments = [dictionaries, *PLUGIN, "--arch", "transformer", "--teacher-path", teacher, *LANGS]
    for extra, refused in (
        (["--save-dir", save_dir], True),
        (["--save-dir", save_dir, "--no-save"], False),
        (["--save-dir", tmp_path / "other"], False),
    ):
        args = options.parse_args_and_arch(options.get_training_parser(), [*map(str, [*arguments, *extra])])
        cfg = convert_namespace_to_omegaconf(args)
        task = tasks.setup_task(cfg.task)
        if refused:
            with pytest.raises(KDPluginError, match="which this training would overwrite .* another --save-dir"):
                task.build_criterion(cfg.criterion)
        else:
            task.build_criterion(cfg.criterion)


def test_a_task_without_a_training_around_it_begins_an_epoch(dictionaries):
    task = task_of(dictionaries)
    task.begin_epoch(1, torch.nn.Linear(2, 2))
    assert task.state_dict() == {"kd_signature": ""}


def test_wrappers_around_the_target_are_looked_through(data, tmp_path):
    """As --num-batch-buckets puts one around the target side."""
    write_store(tmp_path / "cache", data, "train", TRAIN)
    task = cached_task(tmp_path)
    TranslationTask.load_dataset(task, "train")
    dataset = task.datasets["train"]
    dataset.tgt = BaseWrapperDataset(dataset.tgt)
    assert isinstance(task.teacher, CachedTeacher)
    task.teacher.attach(dataset, Split(str(data), "train", "en", "de"), True)
    sample = dataset.collater([dataset[3]])
    assert token_numbers(task, sample) == [[9, 10, 11, 12, 13]]


def test_an_ensembles_flags_reach_each_member(tmp_path, dictionaries):
    hashes = []
    for seed in (0, 1):
        make_checkpoint(tmp_path / f"{seed}.pt", dictionaries, *LANGS, *MODEL, seed=seed)
        hashes.append(sha256_of(tmp_path / f"{seed}.pt"))
    paths = f"{tmp_path / '0.pt'}:{tmp_path / '1.pt'}"
    overrides = '{"dropout": 0.77}'
    task = task_of(
        dictionaries, teacher_path=paths, teacher_sha256=":".join(hashes), teacher_weights="3,1",
        teacher_overrides=overrides, teacher_dtype="bf16",
    )  # fmt: skip
    task._load_teacher()
    assert task.teacher.weights() == [pytest.approx(0.75), pytest.approx(0.25)] and task.teacher.dtype == "bf16"
    assert [member.sha256 for member in task.teacher.members] == hashes
    assert [member.model.encoder.dropout_module.p for member in task.teacher.members] == [0.77, 0.77]
    for wrong, named in (
        (hashes[0], "--teacher-sha256 names 1 hashes for 2 teachers"),
        (":".join([*hashes, hashes[0]]), "--teacher-sha256 names 3 hashes for 2 teachers"),
        (":".join(reversed(hashes)), f"0.pt: sha256 is {hashes[0]}, expected {hashes[1]}"),
    ):
        with pytest.raises(KDPluginError, match=named):
            task_of(dictionaries, teacher_path=paths, teacher_sha256=wrong)._load_teacher()
