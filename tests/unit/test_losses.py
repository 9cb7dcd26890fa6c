"""distillation_loss against float64 references, and the properties that the definitions promise."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from kd_plugin.errors import KDPluginError
from kd_plugin.losses import DIVERGENCES, distillation_loss
from tests.reference import loss64

pytestmark = pytest.mark.usefixtures("cpu_engine")
PAD = 1
PARAMETERS = [
    (alpha, temperature, epsilon)
    for alpha in (0.0, 0.3, 1.0)
    for temperature in (0.7, 1.0, 2.0)
    for epsilon in (0.0, 0.1)
]


def batch(rows=7, vocab=11, seed=0, scale=3.0, dtype=torch.float64, padding=0):
    generator = torch.Generator().manual_seed(seed)
    student = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * scale).to(dtype)
    teacher = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * scale).to(dtype)
    target = torch.randint(2, vocab, (rows,), generator=generator)
    if padding:
        target[-padding:] = PAD
    return student, teacher, target


def value_and_gradient(student, teacher, target, **arguments):
    student = student.clone().requires_grad_()
    result = distillation_loss(student, teacher, target, **arguments)
    result.loss.backward()
    return result, student.grad


def reference_and_gradient(student, teacher, target, alpha, temperature, epsilon, padding_idx=None, **more):
    student = student.double().clone().requires_grad_()
    terms = loss64(student, teacher, target, alpha, temperature, epsilon, padding_idx, **more)
    terms[0].backward()
    return terms, student.grad


@pytest.mark.parametrize("alpha,temperature,epsilon", PARAMETERS)
@pytest.mark.parametrize("case", ["random", "masked_teacher", "huge", "one_row", "padded"])
def test_matches_float64_reference(alpha, temperature, epsilon, case):
    student, teacher, target = batch(rows=1 if case == "one_row" else 7, padding=3 if case == "padded" else 0)
    if case == "masked_teacher":
        teacher[:, 3:6] = -float("inf")
    if case == "huge":
        student, teacher = student.sign() * 1e4, teacher.sign() * -1e4
    arguments = dict(alpha=alpha, temperature=temperature, label_smoothing=epsilon, padding_idx=PAD)
    result, gradient = value_and_gradient(student, teacher, target, **arguments)
    terms, expected_gradient = reference_and_gradient(student, teacher, target, alpha, temperature, epsilon, PAD)
    for value, expected in zip(result, terms):
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_closed_form_of_the_gradient(temperature):
    """dL/dz = alpha (p_1 - smoothed one-hot) + (1 - alpha) tau (p_tau - q_tau), the formula of the literature."""
    student, teacher, target = batch()
    alpha, epsilon, vocab = 0.3, 0.1, student.size(1)
    _, gradient = value_and_gradient(
        student, teacher, target, alpha=alpha, temperature=temperature, label_smoothing=epsilon
    )
    smoothed = torch.full_like(student, epsilon / (vocab - 1))
    smoothed.scatter_(1, target.unsqueeze(1), 1 - epsilon)
    ce = torch.softmax(student, -1) - smoothed
    kd = temperature * (torch.softmax(student / temperature, -1) - torch.softmax(teacher / temperature, -1))
    torch.testing.assert_close(gradient, alpha * ce + (1 - alpha) * kd, rtol=1e-12, atol=1e-12)


def test_label_smoothing_is_fairseqs():
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

    student, teacher, target = batch(rows=20, padding=4)
    result = distillation_loss(student, teacher, target, alpha=1.0, label_smoothing=0.1, padding_idx=PAD)
    lprobs = torch.log_softmax(student, dim=-1)
    loss, nll_loss = label_smoothed_nll_loss(lprobs, target, 0.1, ignore_index=PAD)
    torch.testing.assert_close(result.ce_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.nll_loss, nll_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.loss, loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("case", ["random", "masked_teacher", "huge", "offset", "padded"])
@pytest.mark.parametrize("alpha,temperature", [(0.0, 1.0), (0.3, 1.0), (0.3, 2.0), (0.6, 0.7), (1.0, 2.0)])
def test_every_divergence_matches_its_float64_reference(divergence, case, alpha, temperature):
    student, teacher, target = batch(padding=3 if case == "padded" else 0)
    if case == "masked_teacher":
        teacher[:, 3:6] = -float("inf")
    if case == "huge":
        student, teacher = student.sign() * 1e4, teacher.sign() * -1e4
    if case == "offset":
        student, teacher = student + 1e4, teacher - 1e4
    parameters = dict(js_beta=0.3, skew_lambda=0.2, adaptive_mu=0.6, divergence=divergence)
    arguments = dict(alpha=alpha, temperature=temperature, label_smoothing=0.1, padding_idx=PAD, **parameters)
    result, gradient = value_and_gradient(student, teacher, target, **arguments)
    terms, expected = reference_and_gradient(student, teacher, target, alpha, temperature, 0.1, PAD, **parameters)
    # 1e-12 of the values' own size: a KL of 1e4 is not known to 1e-12 in float64
    for value, reference in zip(result, terms):
        torch.testing.assert_close(value, reference.detach(), rtol=1e-12, atol=1e-12)
    size = max(1.0, expected.abs().max().item()) * (1e4 if case == "offset" else 1.0)
    assert (gradient - expected).abs().max().item() <= 1e-12 * size


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ranking_term_matches_its_float64_reference(divergence, k, temperature):
    student, teacher, target = batch(vocab=300)  # more than a block of top_indices
    more = dict(divergence=divergence, top1_rank=k)
    result, gradient = value_and_gradient(student, teacher, target, alpha=0.3, temperature=temperature, **more)
    terms, expected = reference_and_gradient(student, teacher, target, 0.3, temperature, 0.0, **more)
    torch.testing.assert_close(result.kd_loss, terms[3].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    plain = distillation_loss(student, teacher, target, alpha=0.3, temperature=temperature, divergence=divergence)
    assert result.kd_loss > plain.kd_loss  # the term is there
    same, _ = value_and_gradient(teacher, teacher, target, alpha=0.3, **more)
    assert same.kd_loss.item() <= 1e-12


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(divergence, temperature, masked):
    student, teacher, target = batch(rows=3, vocab=5)
    if masked:
        teacher[:, 0] = -float("inf")
    if divergence == "adaptive_kl":
        teacher[:] = student + 1e-3 * teacher  # its weights are constants to the gradient: hardly moved by the check
    student.requires_grad_()

    def loss(logits):
        return distillation_loss(
            logits, teacher, target, alpha=0.4, temperature=temperature, label_smoothing=0.1, divergence=divergence
        ).loss

    if divergence != "adaptive_kl" or not masked:
        assert torch.autograd.gradcheck(loss, (student,), atol=1e-4 if divergence == "adaptive_kl" else 1e-5)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 5e-7), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_low_precision_inputs(dtype, tolerance, temperature, divergence):
    """Statistics are fp32: only the rounding of the gradient to the input's dtype is left."""
    student, teacher, target = batch(rows=20, vocab=1000, dtype=dtype)
    arguments = dict(alpha=0.3, temperature=temperature, label_smoothing=0.1, divergence=divergence)
    result, gradient = value_and_gradient(student, teacher, target, **arguments)
    terms, expected = reference_and_gradient(student, teacher, target, 0.3, temperature, 0.1, divergence=divergence)
    assert gradient.dtype == dtype and all(value.dtype == torch.float32 for value in result)
    # rounding grows with the entries: those of the reverse KL are above 1, all are multiples of the temperature
    size = max(temperature, 2 * expected.abs().max().item())
    assert (gradient.double() - expected).abs().max() <= tolerance * size
    for value, reference in zip(result, terms):
        assert value.double().item() == pytest.approx(reference.item(), rel=2e-6)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_fp32_gradient_at_a_vocabulary_of_32k(divergence):
    """Forward KL to 3e-7; the others relative to their largest entry, which the reverse KL's is above 1.

    The adaptive KL's weights jump by a word's share of the gap where its head's mass is within rounding of mu.
    """
    student, teacher, target = batch(rows=12, vocab=32000, dtype=torch.float32)
    _, gradient = value_and_gradient(
        student, teacher, target, alpha=0.4, label_smoothing=0.1, divergence=divergence, inplace=False
    )
    _, expected = reference_and_gradient(student, teacher, target, 0.4, 1.0, 0.1, divergence=divergence)
    error = (gradient.double() - expected).abs().max().item()
    limit = 1e-4 if divergence == "adaptive_kl" else 3e-7
    assert error <= limit * max(1.0, 2 * expected.abs().max().item())
    if divergence == "forward_kl":
        assert error <= 3e-7


@pytest.mark.parametrize("padding_idx", [PAD, None])
@pytest.mark.parametrize("rows", [0, 4])
def test_no_row_left_gives_zero_and_zero_gradient(rows, padding_idx):
    student, teacher, target = batch(rows=rows)
    target.fill_(PAD)
    if padding_idx is None:
        student, teacher, target = student[:0], teacher[:0], target[:0]
    result, gradient = value_and_gradient(
        student, teacher, target, alpha=0.5, label_smoothing=0.1, padding_idx=padding_idx
    )
    assert [value.item() for value in result] == [0.0] * 4
    assert torch.equal(gradient, torch.zeros_like(student))


def test_nan_in_padded_rows_reaches_neither_loss_nor_gradient():
    student, teacher, target = batch(padding=2)
    student[-2:], teacher[-2:] = float("nan"), float("nan")
    result, gradient = value_and_gradient(student, teacher, target, alpha=0.5, padding_idx=PAD)
    assert torch.isfinite(torch.stack(list(result))).all() and torch.isfinite(gradient).all()
    assert torch.equal(gradient[-2:], torch.zeros_like(gradient[-2:]))


def test_only_the_loss_carries_a_gradient_and_none_reaches_the_teacher():
    student, teacher, target = batch()
    student.requires_grad_()
    teacher.requires_grad_()
    result = distillation_loss(student, teacher, target, alpha=0.5)
    assert result.loss.requires_grad
    assert not any(value.requires_grad for value in result[1:])
    result.loss.backward()
    assert teacher.grad is None


shapes = dict(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 8),
    vocab=st.integers(3, 30),
    temperature=st.floats(0.3, 5.0),
    scale=st.sampled_from([0.1, 3.0, 50.0]),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
)


@settings(max_examples=60, deadline=None)
@given(**shapes)
def test_divergence_is_not_negative_and_zero_for_equal_distributions(seed, rows, vocab, temperature, scale, divergence):
    student, teacher, target = batch(rows, vocab, seed, scale)
    arguments = dict(alpha=0.0, temperature=temperature, divergence=divergence)
    assert distillation_loss(student, teacher, target, **arguments).kd_loss >= 0
    equal, gradient = value_and_gradient(student, student, target, **arguments)
    assert 0.0 <= equal.kd_loss.item() <= 1e-13 and equal.loss.item() <= 1e-12
    if divergence in ("forward_kl", "reverse_kl", "tvd"):  # no logarithm of a mixture, which rounds
        assert equal.kd_loss.item() == 0.0
    assert gradient.abs().max() <= 1e-12


@settings(max_examples=60, deadline=None)
@given(shift=st.floats(-100, 100), **shapes)
def test_invariant_to_shifts_permutations_splits_and_padding(shift, seed, rows, vocab, temperature, scale, divergence):
    student, teacher, target = batch(rows, vocab, seed, scale)
    arguments = dict(alpha=0.4, temperature=temperature, label_smoothing=0.1, divergence=divergence)
    expected = torch.stack(list(distillation_loss(student, teacher, target, **arguments)))

    def same(result, tolerance=1e-9):
        torch.testing.assert_close(torch.stack(list(result)), expected, rtol=tolerance, atol=tolerance)

    same(distillation_loss(student + shift, teacher, target, **arguments))
    same(distillation_loss(student, teacher - shift, target, **arguments))
    order = torch.randperm(vocab, generator=torch.Generator().manual_seed(seed))
    same(distillation_loss(student[:, order], teacher[:, order], order.argsort()[target], **arguments))
    cut = rows // 2
    parts = [
        distillation_loss(student[s], teacher[s], target[s], **arguments) for s in (slice(0, cut), slice(cut, None))
    ]
    same([a + b for a, b in zip(*parts)])
    padded = [torch.cat([x, x.new_full((3, vocab), 7.0)]) for x in (student, teacher)]
    same(distillation_loss(*padded, torch.cat([target, target.new_full((3,), PAD)]), **arguments, padding_idx=PAD))


@pytest.mark.parametrize(
    "change,named",
    [
        (dict(alpha=1.5), "alpha"),
        (dict(alpha=-0.1), "alpha"),
        (dict(alpha=float("nan")), "alpha"),
        (dict(temperature=0.0), "temperature"),
        (dict(temperature=float("inf")), "temperature"),
        (dict(label_smoothing=1.0), "label_smoothing"),
        (dict(divergence="kl_forward"), "forward_kl"),
        (dict(target=torch.zeros(3, dtype=torch.int64)), "target"),
        (dict(teacher_logits=torch.zeros(7, 12)), r"\(7, 12\)"),
        (dict(target=torch.full((7,), 11)), "targets 11 … 11 are outside the vocabulary, 0 … 10"),
        (dict(target=torch.tensor([2, 3, 4, 5, 6, 7, -100])), "padding_idx"),
    ],
)
def test_refuses_by_name(change, named):
    student, teacher, target = batch()
    arguments = dict(student_logits=student, teacher_logits=teacher, target=target, alpha=0.5)
    arguments.update(change)
    with pytest.raises(KDPluginError, match=named):
        distillation_loss(**arguments)
