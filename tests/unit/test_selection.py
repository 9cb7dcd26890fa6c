"""Which tokens are distilled: the share, the queue, the ranks."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kd_plugin.losses.selection import SELECTIONS, gather_from_ranks, top_threshold


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=60, unique=True), st.floats(0.01, 1.0))
def test_batch_selects_the_top_share(values, ratio):
    nll = torch.tensor(values)
    chosen = SELECTIONS["batch"](ratio)(nll, nll)
    assert int(chosen.sum()) == max(1, math.ceil(ratio * len(values) - 1e-9))
    if not chosen.all():
        assert nll[chosen].min() > nll[~chosen].max()


def test_a_share_of_a_round_number_is_that_number():
    assert int((torch.arange(30.0) >= top_threshold(torch.arange(30.0), 0.1)).sum()) == 3


def test_equal_values_are_selected_together():
    nll = torch.tensor([1.0, 5.0, 5.0, 2.0])
    assert SELECTIONS["batch"](0.25)(nll, nll).tolist() == [False, True, True, False]


def test_all_ranks_decide_by_the_same_threshold():
    ranks = [torch.tensor([1.0, 9.0, 3.0]), torch.tensor([8.0, 2.0])]
    everything = torch.cat(ranks)
    chosen = [SELECTIONS["batch"](0.4)(nll, everything).tolist() for nll in ranks]
    assert chosen == [[False, True, False], [True, False]]


def test_queue_is_first_in_first_out_and_judges_with_the_batch_inside():
    rule = SELECTIONS["global"](0.5, 4)
    first = torch.tensor([10.0, 11.0, 12.0])
    assert rule(first, first).tolist() == [False, True, True]
    second = torch.tensor([1.0, 11.5])
    assert rule(second, second).tolist() == [False, True]
    assert rule.queue.tolist() == [11.0, 12.0, 1.0, 11.5]
    long = torch.arange(6.0)
    rule(long, long)
    assert rule.queue.tolist() == [2.0, 3.0, 4.0, 5.0]


def test_queue_survives_in_its_state():
    rule, other = (SELECTIONS["global"](0.3, 50) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    batches = [torch.rand(9, generator=draw) for _ in range(8)]
    for batch in batches[:5]:
        rule(batch, batch)
    other.load_state_dict(rule.state_dict())
    for batch in batches[5:]:
        assert torch.equal(rule(batch, batch), other(batch, batch))
    assert torch.equal(rule.queue, other.queue)
    shorter = SELECTIONS["global"](0.3, 7)
    shorter.load_state_dict(rule.state_dict())
    assert torch.equal(shorter.queue, rule.queue[-7:])


@pytest.mark.parametrize("name", sorted(SELECTIONS))
def test_no_token_at_all(name):
    empty = torch.empty(0)
    chosen = SELECTIONS[name](0.5, 10)(empty, empty)
    assert chosen is None or chosen.numel() == 0


def test_gathering_tokens_of_different_numbers():
    ranks = [torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor([3.0, 4.0, 5.0])]
    counts = [torch.tensor([rank.numel()]) for rank in ranks]

    def all_gather(values):
        if values.dtype == torch.int64:
            return counts
        assert values.numel() == 3
        return [torch.cat([rank, torch.full((3 - rank.numel(),), -1.0)]) for rank in ranks]

    for rank in ranks:
        assert gather_from_ranks(rank, 3, all_gather).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert gather_from_ranks(ranks[0], 1, None) is ranks[0]
