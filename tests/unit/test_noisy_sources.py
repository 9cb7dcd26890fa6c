"""Data sets with noise: text leads to symbols and back, teachers keep the clean source, batches keep their limits."""

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset, ListDataset, iterators
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kd_plugin.corpus.noise import parsed
from kd_plugin.corpus.noisy_sources import CLEAN, add_noise, as_clean, counts_of, is_noisy, source_text
from kd_plugin.errors import KDPluginError
from tests.unit.sentencepiece_models import encoded, sentences, train

TAG = "__de__"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("spm") / "spm.model", sentences("en", lines=200))


def bpe(model, **more):
    fields = {"_name": "sentencepiece", "sentencepiece_model": str(model), "sentencepiece_enable_sampling": False}
    return OmegaConf.create({**fields, **more})


@pytest.fixture(scope="module")
def dictionary(model):
    found = Dictionary()
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for index in range(3, processor.get_piece_size()):
        found.add_symbol(processor.id_to_piece(index))
    found.add_symbol(TAG)
    return found


@pytest.fixture(scope="module")
def text(dictionary, model):
    return source_text(dictionary, bpe(model))


def tokens_of(dictionary, model, line, before=()):
    return torch.tensor([*map(dictionary.index, [*before, *encoded(model, [line])[0]]), dictionary.eos()])


def dataset_of(dictionary, model, lines):
    data = [tokens_of(dictionary, model, line, [TAG] if at % 2 else []) for at, line in enumerate(lines)]
    sizes = np.array([len(one) for one in data])
    both = ListDataset(data, sizes), ListDataset([one.flip(0) for one in data], sizes)
    return LanguagePairDataset(both[0], sizes, dictionary, both[1], sizes, dictionary, shuffle=False)


LINE = st.text(st.sampled_from("thean ing.b"), max_size=25)


@settings(max_examples=60)
@given(LINE)
def test_text_and_symbols_lead_to_each_other_or_the_sentence_stays(dictionary, model, text, line):
    tokens = tokens_of(dictionary, model, line, [TAG])
    assert text.changed(tokens, str) is tokens
    more = text.changed(tokens, lambda given: given + " the")
    if line.strip():
        assert more.tolist() == tokens_of(dictionary, model, line + " the", [TAG]).tolist()
    else:
        assert more is tokens


def test_segmentations_of_another_model_are_recognised(dictionary, model, text):
    letters = torch.tensor([*(dictionary.index(piece) for piece in ("\u2581", "t", "h", "e")), dictionary.eos()])
    assert text.changed(letters, str.upper) is None
    assert text.changed(torch.tensor([dictionary.unk(), 20, dictionary.unk(), 21, 2]), str.upper) is None
    assert text.changed(torch.tensor([2]), str.upper).tolist() == [2]  # an empty sentence


def clean_and_noisy(dictionary, model, text, spec, lines, longest=None, budget=None, epoch=1, seed=7):
    plain, noisy = (dataset_of(dictionary, model, lines) for _ in range(2))
    add_noise(noisy, text, parsed(spec), seed, longest, budget)
    noisy.set_epoch(epoch)
    return [one.collater([one[at] for at in range(len(lines))]) for one in (plain, noisy)]


def by_id(batch, name, pad):
    return {
        index: [token for token in row if token != pad]
        for index, row in zip(batch["id"].tolist(), batch["net_input"][name].tolist())
    }


LINES = sentences("en", lines=24)


@pytest.mark.parametrize("spec", ["upper:1", "typo:1:0.3", "lower:0.5,typo:0.5"])
def test_a_teacher_reads_the_clean_source_of_each_sentence(dictionary, model, text, spec):
    pad = dictionary.pad()
    plain, noisy = clean_and_noisy(dictionary, model, text, spec, LINES)
    clean = as_clean(noisy)
    for name in ("src_tokens", "prev_output_tokens"):
        assert by_id(clean, name, pad) == by_id(plain, name, pad)
    lengths = clean["net_input"]["src_lengths"].tolist()
    assert lengths == [len(row) for row in by_id(clean, "src_tokens", pad).values()]
    own, before = by_id(noisy, "src_tokens", pad), by_id(plain, "src_tokens", pad)
    changed = [index for index in own if own[index] != before[index]]
    assert counts_of(noisy) == {"n_augmented": len(changed), "n_augment_left": 0, "n_augment_read": len(LINES)}
    assert len(LINES) // 3 < len(changed) and noisy["ntokens"] == plain["ntokens"]
    assert {row[0] for index, row in own.items() if index % 2} == {dictionary.index(TAG)}


def test_a_batch_without_noise_is_fairseqs(dictionary, model, text):
    plain, noisy = clean_and_noisy(dictionary, model, text, "upper:1e-9", LINES)
    assert CLEAN not in noisy and torch.equal(plain["net_input"]["src_tokens"], noisy["net_input"]["src_tokens"])


def test_no_batch_outgrows_its_limits(dictionary, model, text):
    """Upper case is unknown here, and takes a symbol for each word or letter."""
    longest = max(len(tokens_of(dictionary, model, line)) for line in LINES)
    for limits in ({"longest": longest - 3}, {"budget": (longest + 2) * len(LINES)}):
        _, noisy = clean_and_noisy(dictionary, model, text, "typo:1:1", LINES, **limits)
        _, free = clean_and_noisy(dictionary, model, text, "typo:1:1", LINES)
        lengths = dict(zip(noisy["id"].tolist(), noisy["net_input"]["src_lengths"].tolist()))
        clean = {index: len(row) for index, row in by_id(as_clean(noisy), "src_tokens", dictionary.pad()).items()}
        limit = limits.get("longest", longest + 2)
        assert all(length <= max(limit, clean[index]) for index, length in lengths.items())
        assert 0 < noisy["n_augment_left"] < len(LINES) and max(free["net_input"]["src_lengths"]) > limit


def test_seed_epoch_and_sentence_decide_and_workers_do_not(dictionary, model, text):
    def batches(workers, epoch, seed=7):
        dataset = dataset_of(dictionary, model, LINES)
        add_noise(dataset, text, parsed("typo:0.7,upper:0.1"), seed, None, None)
        found = iterators.EpochBatchIterator(
            dataset, dataset.collater, [[0, 1, 2, 3, 4], [5, 6], [*range(7, 24)]], num_workers=workers, epoch=epoch,
        ).next_epoch_itr(shuffle=False)  # fmt: skip
        return [by_id(batch, "src_tokens", dictionary.pad()) for batch in found]

    one = batches(0, 1)
    assert one == batches(2, 1)
    assert one != batches(0, 2) and batches(0, 2) == batches(2, 2) and one != batches(0, 1, seed=8)
    together, alone = dict(one[2]), clean_and_noisy(dictionary, model, text, "typo:0.7,upper:0.1", LINES)[1]
    everything = by_id(alone, "src_tokens", dictionary.pad())
    assert all(everything[index] == row for index, row in together.items())  # whatever the batch


def filled(dataset, epoch, budget):
    """As fairseq's trainer makes an epoch's batches."""
    dataset.set_epoch(epoch)
    with np.errstate(all="raise"):
        batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=budget, required_batch_size_multiple=1)
    return [[dataset[at] for at in batch] for batch in batches]


@pytest.mark.parametrize("spec", ["upper:1", "upper:0.2", "typo:0.5:0.1,punct:0.3"])
def test_full_batches_have_room_for_noise(dictionary, model, text, spec):
    """Batches filled to --max-tokens with clean sentences had none: nearly all sentences that noise lengthens stayed
    clean."""
    lines = sentences("en", lines=400)
    dataset = dataset_of(dictionary, model, lines)
    plain = dataset_of(dictionary, model, lines)
    add_noise(dataset, text, parsed(spec), 3, 60, 240)
    chance, read = 1 - np.prod([1 - p for p in parsed(spec).chances.values()]), []
    for epoch in (1, 2):
        batches = filled(dataset, epoch, 240)
        assert sorted(int(one["id"]) for batch in batches for one in batch) == list(range(400))
        found = [dataset.collater(batch) for batch in batches]
        sums = {key: sum(counts_of(batch)[key] for batch in found) for key in counts_of(found[0])}
        assert sums["n_augment_left"] < 0.1 * 400 * chance
        assert sums["n_augmented"] == pytest.approx(400 * chance, rel=0.25)
        for batch in found:
            rows, length = batch["net_input"]["src_tokens"].shape
            assert rows * length <= 240
        read.append(sorted(map(len, batches)))
        assert np.array_equal(dataset.src_sizes, plain.src_sizes)  # for --max-source-positions
    # sentences that become long are together, not one in each batch, which would be mostly padding
    real = sum(int(batch["net_input"]["src_lengths"].sum()) for batch in found)
    assert real > 0.75 * sum(batch["net_input"]["src_tokens"].numel() for batch in found)
    assert (read[0] != read[1]) == (spec != "upper:1")


def test_batches_are_made_anew_in_each_epoch(dictionary, model, text):
    dataset, plain = (dataset_of(dictionary, model, LINES) for _ in range(2))
    add_noise(dataset, text, parsed("typo:0.5"), 1, None, 99)
    assert is_noisy(dataset) and not is_noisy(plain)
    import pickle

    copy = pickle.loads(pickle.dumps(dataset))  # as workers do where processes are spawned
    for one in (copy, dataset):
        one.set_epoch(4)
    assert np.array_equal(copy.num_tokens_vec(np.arange(24)), dataset.num_tokens_vec(np.arange(24)))
    assert [copy.num_tokens(at) for at in range(24)] == copy.num_tokens_vec(np.arange(24)).tolist()
    assert (dataset.num_tokens_vec(np.arange(24)) >= plain.num_tokens_vec(np.arange(24))).all()
    batches = [one.collater([one[at] for at in range(5)])["net_input"]["src_tokens"] for one in (copy, dataset)]
    assert torch.equal(*batches)


def test_models_that_do_not_fit_are_refused(dictionary, model, tmp_path):
    other = train(tmp_path / "other.model", sentences("de", lines=200))
    for config, message in (
        (None, "symbols of sentencepiece.*Remedy: --bpe sentencepiece --sentencepiece-model FILE"),
        (bpe(other), "is not the one that segmented"),
        (bpe(tmp_path / "none"), "no such file"),
        (bpe(model, sentencepiece_enable_sampling=True), "--sentencepiece-enable-sampling"),
        (bpe("???"), "there is no model"),
        (
            OmegaConf.create({"_name": "subword_nmt", "bpe_codes": str(tmp_path / "none")}),
            "--bpe subword_nmt: .*Remedy",
        ),
    ):
        with pytest.raises(KDPluginError, match=message):
            source_text(dictionary, config)
    bytes_of = OmegaConf.create({"_name": "bytes"})
    with pytest.raises(KDPluginError, match="segments none of 24 sentences"):
        add_noise(dataset_of(dictionary, model, LINES), source_text(dictionary, bytes_of), parsed("upper:1"), 1, 9, 9)
