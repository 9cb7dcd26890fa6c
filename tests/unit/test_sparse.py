"""A teacher's k entries and their bucket, and its draws: against float64, and what the two promise."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kd_plugin.losses.definition import AGREE, CE, KD, NLL, Objective
from kd_plugin.losses.engine import memory
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, SparseAnswer
from tests.reference import divergence64, loss64

pytestmark = pytest.mark.usefixtures("cpu_engine")

ROWS, VOCAB = 7, 40


def drawn(*shape, seed=0, scale=2.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def problem(scale=2.0, vocab=VOCAB):
    target = torch.randint(0, vocab, (ROWS,), generator=torch.Generator().manual_seed(9))
    return drawn(ROWS, vocab, seed=1, scale=scale), drawn(ROWS, vocab, seed=2, scale=scale), target


def top_answer(teacher, k, temperature=1.0, dtype=torch.float64):
    lprobs = torch.log_softmax(teacher / temperature, dim=-1)
    best, ids = lprobs.topk(k, dim=-1)
    others = lprobs.scatter(-1, ids, -math.inf)
    return SparseAnswer(ids, best.to(dtype), others.logsumexp(dim=-1).to(dtype))


def run(student, answer, target, objective, inplace=False, factor=1.0):
    leaf = student.clone().requires_grad_()
    rows = torch.arange(len(target))
    loss, terms = StudentLogits(leaf * 1, rows, rows[:0], inplace=inplace).loss(answer, target, objective)
    (loss * factor).backward()
    return loss.detach(), terms, leaf.grad


def reference(student, answer, target, objective, name):
    """From the definitions on k + 1 outcomes, or the mean over draws, by autograd."""
    leaf = student.clone().double().requires_grad_()
    alpha, temperature, eps = objective.alpha, objective.temperature, objective.label_smoothing
    ce = loss64(leaf, student, target, 1.0, 1.0, eps, None)[1]
    lprobs = torch.log_softmax(leaf / temperature, dim=-1)
    kd = 0.0
    for row in range(len(target)):
        ids, lq = answer.ids[row], answer.lprobs[row].double()
        lp = lprobs[row, ids]
        if answer.sampled:
            kd = kd + (lq - lp).mean()
            continue
        others = torch.tensor([v for v in range(leaf.size(1)) if v not in ids.tolist()], dtype=torch.long)
        if len(others):
            lp = torch.cat([lp, lprobs[row, others].logsumexp(0, keepdim=True)])
            lq = torch.cat([lq, answer.log_rest[row : row + 1].double()])
        parameters = {"js_beta": objective.parameters["js_beta"]} if objective.parameters else {}
        kd = kd + divergence64(name, lq.exp(), lp.exp(), lq, lp, **parameters)
    loss = alpha * ce + (1 - alpha) * temperature**2 * kd
    loss.backward()
    return loss.detach(), ce.detach(), kd.detach(), leaf.grad


@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
@pytest.mark.parametrize("k", [1, 5, VOCAB - 1, VOCAB])
@pytest.mark.parametrize("alpha,temperature", [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0), (0.6, 0.7)])
@pytest.mark.parametrize("inplace", [False, True])
def test_matches_its_float64_reference(divergence, k, alpha, temperature, inplace):
    student, teacher, target = problem()
    objective = Objective(alpha, temperature, 0.1, divergence, {"js_beta": 0.3})
    answer = top_answer(teacher, k, temperature)
    loss, terms, gradient = run(student, answer, target, objective, inplace)
    expected_loss, ce, kd, expected = reference(student, answer, target, objective, divergence)
    for value, wanted in ((loss, expected_loss), (terms[:, CE].sum(), ce), (terms[:, KD].sum(), kd)):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert terms[:, AGREE].tolist() == (student.argmax(-1) == teacher.argmax(-1)).double().tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_draws_match_their_float64_reference(temperature, alpha):
    student, teacher, target = problem()
    lprobs = torch.log_softmax(teacher / temperature, dim=-1)
    ids = torch.multinomial(lprobs.exp(), 12, replacement=True, generator=torch.Generator().manual_seed(1))
    assert any(len(set(row)) < 12 for row in ids.tolist())
    answer = SparseAnswer(ids, lprobs.gather(-1, ids), torch.zeros(ROWS), sampled=True)
    objective = Objective(alpha, temperature, 0.1)
    loss, terms, gradient = run(student, answer, target, objective)
    expected_loss, _, kd, expected = reference(student, answer, target, objective, "forward_kl")
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms[:, KD].sum(), kd, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_draws_are_unbiased_in_value_and_gradient():
    student, teacher, target = problem(scale=1.0, vocab=12)
    objective = Objective(0.0)
    lprobs = torch.log_softmax(teacher, dim=-1)
    wanted = loss64(leaf := student.clone().requires_grad_(), teacher, target, 0.0, 1.0, 0.0, None)[0]
    wanted.backward()
    repeats, k = 3000, 8
    generator = torch.Generator().manual_seed(3)
    ids = torch.multinomial(lprobs.exp().repeat(repeats, 1), k, replacement=True, generator=generator)
    answer = SparseAnswer(
        ids, lprobs.repeat(repeats, 1).gather(-1, ids), torch.zeros(len(ids), dtype=torch.float64), sampled=True
    )
    _, terms, gradient = run(student.repeat(repeats, 1), answer, target.repeat(repeats), objective)
    values = terms[:, KD].reshape(repeats, ROWS).sum(dim=1)
    error = values.std().item() / math.sqrt(repeats)
    assert abs(values.mean().item() - wanted.item()) < 4 * error
    gradients = gradient.reshape(repeats, ROWS, -1)
    errors = gradients.std(dim=0) / math.sqrt(repeats)
    # of 84 entries the largest deviation lies below 4.5 standard errors, but for one run in a thousand
    assert ((gradients.mean(dim=0) - leaf.grad).abs() < 4.5 * errors + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 8.0),
    temperature=st.sampled_from([0.7, 1.0, 3.0]),
    divergence=st.sampled_from(BUCKET_DIVERGENCES),
    masked=st.sampled_from([0, 1, 8]),
)
def test_lower_bound_that_grows_with_k_to_the_whole(seed, scale, temperature, divergence, masked):
    """Also where the teacher gives symbols no probability, but for reverse_kl, whose log 0 is -100 instead."""
    student, teacher = drawn(3, 20, seed=seed, scale=scale), drawn(3, 20, seed=seed + 1, scale=scale)
    if divergence != "reverse_kl":
        teacher[:, 20 - masked :] = -torch.inf
    target = torch.zeros(3, dtype=torch.long)
    objective = Objective(0.0, temperature, divergence=divergence)
    values = []
    for k in range(1, 21):
        _, terms, _ = run(student, top_answer(teacher, k, temperature), target, objective)
        values.append(terms[:, KD])
    whole = loss64(student, teacher, target, 0.0, temperature, 0.0, None, divergence=divergence)[3]
    size = max(1.0, values[-1].abs().max().item())
    for smaller, larger in zip(values, values[1:]):
        assert (larger - smaller >= -1e-11 * size).all()
    torch.testing.assert_close(values[-1].sum(), whole, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
def test_all_entries_in_fp16_give_the_loss_on_logits_to_its_rounding(divergence):
    student, teacher, target = problem()
    objective = Objective(0.3, 2.0, 0.1, divergence)
    answer = top_answer(teacher, VOCAB, 2.0)
    rounded = SparseAnswer(answer.ids, answer.lprobs.half().float(), answer.log_rest.float())
    loss, _, gradient = run(student.float(), rounded, target, objective)
    leaf = student.clone().requires_grad_()
    wanted = loss64(leaf, teacher, target, 0.3, 2.0, 0.1, None, divergence=divergence)[0]
    wanted.backward()
    # a log-probability of -8 is known to 2^-8
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_student_in_other_dtypes_and_a_scaled_loss(dtype):
    student, teacher, target = problem()
    student = student.to(dtype)
    objective = Objective(0.3, 2.0, 0.1)
    answer = top_answer(teacher, 6, 2.0, torch.float32)
    _, terms, gradient = run(student, answer, target, objective, factor=8.0)
    _, ce, kd, expected = reference(student, answer, target, objective, "forward_kl")
    torch.testing.assert_close(terms[:, KD].sum().double(), kd, rtol=1e-5, atol=1e-5)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(gradient.double() / 8, expected, rtol=tolerance, atol=tolerance * 1e-2 + 2e-6)


@pytest.mark.parametrize("peak", [60.0, 200.0])
def test_a_bucket_that_underflows_stays_finite(peak):
    student, teacher, target = problem()
    student[:, 3] += peak
    teacher[:, 3] += peak
    for divergence in BUCKET_DIVERGENCES:
        loss, _, gradient = run(
            student.float(), top_answer(teacher, 4, 1.0, torch.float32), target, Objective(0.5, 1.0, 0.1, divergence)
        )
        assert loss.isfinite() and gradient.isfinite().all()


def test_rows_that_are_not_distilled_and_no_gradient():
    student, teacher, target = problem()
    objective = Objective(0.3, 1.0, 0.1)
    distilled = torch.tensor([True, False, True, True, False, False, True])
    answer = top_answer(teacher, 5).take(distilled.nonzero(as_tuple=True)[0])
    rows = torch.arange(ROWS)
    _, terms = StudentLogits(student, rows, rows[:0]).loss(answer, target, objective, distilled=distilled)
    _, every, _ = run(student, top_answer(teacher, 5), target, objective)
    torch.testing.assert_close(terms[:, [CE, NLL]], every[:, [CE, NLL]])
    torch.testing.assert_close(terms[distilled][:, KD], every[distilled][:, KD])
    assert (terms[~distilled][:, KD] == 0).all()


def test_fused_head_with_a_sparse_answer(monkeypatch):
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 3 * VOCAB * 8)
    _, teacher, target = problem()
    features, weight = drawn(ROWS, 8, seed=5, scale=1.0).requires_grad_(), drawn(VOCAB, 8, seed=6, scale=1.0)
    weight.requires_grad_()
    objective, answer = Objective(0.3, 2.0, 0.1), top_answer(teacher, 5, 2.0)
    loss, _ = StudentFeatures(features, weight).loss(answer, target, objective)
    gradients = torch.autograd.grad(loss, [features, weight])
    rows = torch.arange(ROWS)
    expected, _ = StudentLogits(features @ weight.t(), rows, rows[:0]).loss(answer, target, objective)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(expected, [features, weight])):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
