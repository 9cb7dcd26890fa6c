"""The distances between inner states: values and gradients beside float64 loops, and the properties that they have."""

import pytest
import torch

from kd_plugin.losses.representations import (
    attention_distance,
    cosine_distance,
    factor_distance,
    normalised,
    relation_distance,
    squared_distance,
)
from tests.reference import attention64, cosine64, normalised64, relation64

N, WIDTH, OTHER = 7, 12, 18
PLACES = torch.tensor([0, 1, 2, 5, 6, 11, 12])  # in (3, 5): sentences of 3, 2 and 2 positions, wherever they begin
SENTENCES = [(0, 1, 2), (3, 4), (5, 6)]


def states(width, seed, n=N):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probabilities(heads, keys=5, seed=3, n=N):
    """(n, heads, keys); the last two keys of the first rows are hidden."""
    scores = torch.randn(n, heads, keys, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    scores[:3, :, 3:] = -torch.inf
    return scores


def compared(of_positions, expected, *leaves):
    value = of_positions.sum()
    gradients = torch.autograd.grad(value, leaves, retain_graph=True)
    wanted = torch.autograd.grad(expected, leaves)
    assert of_positions.shape == (N,) and bool((of_positions >= 0).all())
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    for found, reference in zip(gradients, wanted):
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-11)


def test_squared_and_cosine_distance_and_their_gradients():
    student, teacher = states(WIDTH, 1).requires_grad_(), states(WIDTH, 2)
    loops = sum((s - t).square().sum() / WIDTH for s, t in zip(student, teacher))
    compared(squared_distance(student, teacher), loops, student)
    compared(cosine_distance(student, teacher), sum(1 - cosine64(s, t) for s, t in zip(student, teacher)), student)


def test_factor_distance_and_its_gradient():
    student, code = states(WIDTH, 1).requires_grad_(), states(WIDTH, 2)
    loops = sum((c / c.norm() - s / s.norm()).abs().sum() for s, c in zip(student, code))
    compared(factor_distance(student, code), loops, student)


def test_normalised_states_have_no_scale():
    values = states(WIDTH, 1)
    torch.testing.assert_close(normalised(values), torch.stack([normalised64(v) for v in values]))
    torch.testing.assert_close(normalised(values), normalised(1000 * values + 7), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3, 6])
def test_relation_distance_and_its_gradient(heads):
    """Between any two widths; only positions of the same sentence are related."""
    student, teacher = states(WIDTH, 1).requires_grad_(), states(OTHER, 2)
    found = relation_distance(student, teacher, heads, PLACES, (3, 5))
    compared(found, relation64(student, teacher, heads, SENTENCES), student)


def test_relations_do_not_depend_on_padding():
    student, teacher = states(WIDTH, 1), states(OTHER, 2)
    sentence, position = PLACES // 5, PLACES % 5
    narrow = relation_distance(student, teacher, 3, PLACES, (3, 5))
    wide = relation_distance(student, teacher, 3, sentence * 11 + position + 4, (3, 11))
    torch.testing.assert_close(narrow, wide)


@pytest.mark.parametrize("ours,theirs", [(2, 2), (2, 5), (4, 3)])
def test_attention_distance_and_its_gradient(ours, theirs):
    """Any two numbers of heads; hidden keys count nothing, in the gradient either."""
    scores = probabilities(ours).requires_grad_()
    weights = torch.rand(theirs, ours, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    student, mixing = scores.softmax(-1), weights.softmax(-1)
    teacher = probabilities(theirs, seed=4).softmax(-1)
    found = attention_distance(student, teacher, mixing)
    compared(found, attention64(student, teacher, mixing), scores, weights)
    longer = attention_distance(*(torch.nn.functional.pad(side, (0, 3)) for side in (student, teacher)), mixing)
    torch.testing.assert_close(longer, found)


def test_equal_states_have_distance_zero():
    one = states(WIDTH, 1).float()
    for distance in (squared_distance, cosine_distance, factor_distance):
        assert float(distance(one, one).sum()) < 1e-6
    assert float(relation_distance(one, one, 3, PLACES, (3, 5)).sum()) < 1e-6
    attention = probabilities(4).softmax(-1).float()
    assert float(attention_distance(attention, attention, torch.eye(4)).sum()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_fp32(dtype):
    """1,024 squares of 60 are beyond fp16, and the mean of bf16's is off by more than this."""
    student, teacher = torch.full((3, 1024), 60.0, dtype=dtype), torch.zeros(3, 1024, dtype=dtype)
    assert squared_distance(student, teacher).dtype == torch.float32
    torch.testing.assert_close(squared_distance(student, teacher), torch.full((3,), 3600.0))
    values = states(1024, 1, 3).to(dtype)
    assert float(cosine_distance(values, values).abs().max()) < 1e-5
    related = relation_distance(states(WIDTH, 1).to(dtype), states(OTHER, 2).to(dtype), 3, PLACES, (3, 5))
    exact = relation_distance(
        states(WIDTH, 1).to(dtype).double(), states(OTHER, 2).to(dtype).double(), 3, PLACES, (3, 5)
    )
    torch.testing.assert_close(related.double(), exact, rtol=1e-4, atol=1e-5)


def test_no_positions_give_nothing():
    empty = torch.zeros(0, WIDTH)
    nowhere = torch.zeros(0, dtype=torch.int64)
    assert squared_distance(empty, empty).sum() == 0
    assert relation_distance(empty, empty, 3, nowhere, (2, 4)).sum() == 0
    assert attention_distance(torch.zeros(0, 2, 4), torch.zeros(0, 2, 4), torch.eye(2)).sum() == 0
