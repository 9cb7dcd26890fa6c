"""Logits that lie far apart, or at -inf: a finite loss has a finite gradient, and both are those of float64."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings

from kd_plugin.compat import TORCH_VERSION
from kd_plugin.losses import DIVERGENCES
from kd_plugin.losses.answer import TeacherAnswer
from kd_plugin.losses.definition import CE, KD, Objective, terms_by_definition
from kd_plugin.losses.engine import storage
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, SparseAnswer
from tests.reference import divergence64

pytestmark = pytest.mark.usefixtures("cpu_engine")

INF = math.inf
GAPS = [0.0, 10.0, 47.0, 50.0, 86.0, 88.0, 92.0, 95.0, 103.0, 104.0, 200.0, 1e3, 1e4]
# what is left of an entry of the gradient after it was rounded
ROUNDING = {torch.float64: 1e-11, torch.float32: 3e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8}
dtypes = st.sampled_from(list(ROUNDING))
objectives = st.builds(
    Objective,
    alpha=st.sampled_from([0.0, 0.3, 0.9]),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
    parameters=st.just({}),
    top1_rank=st.just(0),
)


def lprobs64(leaf, temperature):
    """log softmax of a row some of whose logits are constants of -inf, which get no gradient."""
    there = ~torch.isneginf(leaf.detach())
    return torch.full_like(leaf, -INF).masked_scatter(there, torch.log_softmax(leaf[there] / temperature, dim=-1))


def distance64(name, log_q, log_p):
    """divergence64, without the outcomes that neither side has."""
    masked = torch.isneginf(log_p.detach())
    # such a probability may be 0 or not in fp32, and the KL to a masked student infinite or not
    assume(not (masked & (log_q < -87.0) & ~torch.isneginf(log_q)).any())
    there = ~(torch.isneginf(log_q) & masked)
    log_q, log_p = log_q[there], log_p[there]
    return divergence64(name, log_q.exp(), log_p.exp(), log_q, log_p)


def cross_entropy64(leaf, label, epsilon):
    log_p = lprobs64(leaf, 1.0)
    eps_i = epsilon / (len(leaf) - 1)
    return (1 - epsilon - eps_i) * -log_p[label] - (eps_i * log_p.sum() if epsilon else 0.0)


def bucket64(student, answer, label, objective):
    """(loss, CE, KD, gradient) of one row in float64, by autograd, from the inputs as they were rounded."""
    leaf = student.double().requires_grad_()
    log_p, log_q = lprobs64(leaf, objective.temperature), answer.lprobs[0].double()
    ids = answer.ids[0]
    outside = torch.ones(len(leaf), dtype=torch.bool)
    outside[ids] = False
    outside &= ~torch.isneginf(leaf.detach())
    rest = log_p[outside].logsumexp(0) if outside.any() else torch.tensor(-INF).double()
    kd = distance64(
        objective.divergence,
        torch.cat([log_q, answer.log_rest.double()]),
        torch.cat([log_p[ids], rest.unsqueeze(0)]),
    )
    ce = cross_entropy64(leaf, label, objective.label_smoothing)
    return total64(leaf, ce, kd, objective)


def dense64(student, teacher, label, objective):
    leaf = student.double().requires_grad_()
    log_q = torch.log_softmax(teacher.double() / objective.temperature, dim=-1)
    kd = distance64(objective.divergence, log_q, lprobs64(leaf, objective.temperature))
    ce = cross_entropy64(leaf, label, objective.label_smoothing)
    return total64(leaf, ce, kd, objective)


def total64(leaf, ce, kd, objective):
    kd = kd + (-kd.detach()).clamp(min=0)  # rounded to fp16, a teacher's entries do not sum up to 1
    # 0 * inf is 0 here too: without weight the cross-entropy has no gradient
    loss = (1 - objective.alpha) * objective.temperature**2 * kd
    loss = loss + objective.alpha * ce if objective.alpha > 0 else loss
    if not torch.isfinite(loss):
        return loss.detach(), ce.detach(), kd.detach(), None
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), ce.detach(), kd.detach(), gradient


def run(student, answer, label, objective, inplace=False):
    leaf = student.unsqueeze(0).clone().requires_grad_()
    rows = torch.zeros(1, dtype=torch.long)
    loss, terms = StudentLogits(leaf * 1, rows, rows[:0], inplace).loss(answer, torch.tensor([label]), objective)
    loss.backward()
    return loss.detach(), terms[0], leaf.grad[0]


def compare(outcome, expected, dtype, objective):
    loss, terms, gradient = outcome
    wanted, ce, kd, wanted_gradient = expected
    if wanted_gradient is None:
        assert not torch.isfinite(loss)
        return
    exact = 1e-11 if dtype == torch.float64 else 3e-6
    for value, reference in ((terms[CE], ce), (terms[KD], kd), (loss, wanted)):
        if torch.isfinite(reference):
            torch.testing.assert_close(value.double(), reference, rtol=exact, atol=exact * objective.temperature**2)
    # a difference of two terms, each as large as the temperature or, of the reverse KL, as the KL itself
    size = max(1.0, objective.temperature, wanted_gradient.abs().max().item())
    if objective.divergence in ("reverse_kl", "adaptive_kl"):
        size = max(size, objective.temperature * kd.item())
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=ROUNDING[dtype], atol=max(exact, 1e-9) * size)


def test_cached_forward_kl_where_the_mass_outside_the_entries_underflows():
    """Four entries 95 above the others: their exponentials are 0 in fp32, the bucket's gradient is -0.0175 each."""
    student = torch.zeros(12)
    student[:4] = 95.0
    answer = SparseAnswer(torch.arange(4)[None], torch.full((1, 4), math.log(0.2)), torch.tensor([math.log(0.2)]))
    objective = Objective(0.3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loss, terms, gradient = run(student.to(dtype), answer, 0, objective)
        expected = torch.tensor([-0.19] + [0.11] * 3 + [-0.0175] * 8)
        torch.testing.assert_close(gradient.float(), expected, rtol=ROUNDING[dtype], atol=1e-6)
        compare((loss, terms, gradient), bucket64(student, answer, 0, objective), dtype, objective)


@st.composite
def sparse_cases(draw):
    vocab = draw(st.integers(2, 24))
    k = draw(st.integers(1, vocab))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype, gap = draw(dtypes), draw(st.sampled_from(GAPS))
    teacher = torch.randn(vocab, generator=generator, dtype=torch.float64) * 2
    teacher[draw(st.integers(0, vocab - 1))] += draw(st.sampled_from([0.0, 20.0, 100.0, 1e3]))
    objective = draw(objectives.filter(lambda o: o.divergence in BUCKET_DIVERGENCES))
    lprobs, ids = torch.log_softmax(teacher / objective.temperature, dim=-1).topk(k)
    others = torch.ones(vocab, dtype=torch.bool)
    others[ids] = False
    log_rest = torch.log_softmax(teacher / objective.temperature, dim=-1)[others].logsumexp(0)
    empty = draw(st.sampled_from(["", "", "teacher's bucket", "teacher's last entry", "student's bucket"]))
    if empty == "teacher's bucket" or not others.any():
        log_rest = torch.tensor(-INF)
    if empty == "teacher's last entry" and k > 1:
        lprobs[-1] = -INF
    answer = SparseAnswer(ids[None], lprobs[None].half().float(), log_rest[None].half().float())

    student = torch.randn(vocab, generator=generator, dtype=torch.float64) * 2
    above = draw(st.sampled_from(["entries", "others", "some", "all but one", "one"]))
    chosen = {
        "entries": ~others,
        "others": others,
        "some": torch.rand(vocab, generator=generator) < 0.5,
        "all but one": torch.arange(vocab) != ids[0],
        "one": torch.arange(vocab) == ids[0],
    }[above]
    student[chosen] += gap
    label = draw(st.integers(0, vocab - 1))
    masked = torch.zeros(vocab, dtype=torch.bool)
    if empty == "student's bucket":
        masked = others.clone()
    elif draw(st.booleans()):
        masked = torch.rand(vocab, generator=generator) < 0.3
    masked[ids[0]] = False
    student[masked] = -INF
    student = student.to(dtype)
    return student, answer, label, objective


@settings(max_examples=80, deadline=None)
@given(case=sparse_cases(), inplace=st.booleans())
def test_cached_answers_equal_float64_at_any_gap_and_mask(case, inplace):
    student, answer, label, objective = case
    compare(run(student, answer, label, objective, inplace), bucket64(*case), student.dtype, objective)


@st.composite
def dense_cases(draw):
    """A row of either side's logits: far apart, some of them -inf, on one side or on both; the target is there."""
    vocab = draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(dtypes)
    sides = []
    for _ in range(2):
        logits = torch.randn(vocab, generator=generator, dtype=torch.float64) * 2
        logits[torch.rand(vocab, generator=generator) < 0.4] += draw(st.sampled_from(GAPS))
        sides.append(logits)
    label = draw(st.integers(0, vocab - 1))
    masks = [torch.rand(vocab, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.9])) for _ in range(2)]
    if draw(st.booleans()):
        masks[0] &= masks[1]  # else some divergences are infinite
    for logits, mask in zip(sides, masks):
        mask[label] = False
        logits[mask] = -INF
    return sides[0].to(dtype), sides[1].to(dtype), label, draw(objectives)


@settings(max_examples=80, deadline=None)
@given(case=dense_cases(), inplace=st.booleans())
def test_dense_answers_equal_float64_at_any_gap_and_mask(case, inplace):
    student, teacher, label, objective = case
    outcome = run(student, TeacherAnswer(teacher.unsqueeze(0)), label, objective, inplace)
    compare(outcome, dense64(*case), student.dtype, objective)
    terms, gradient = terms_by_definition(student[None], teacher[None], torch.tensor([label]), objective)
    exact = torch.promote_types(student.dtype, torch.float32)
    compare((objective.total(terms[0]), terms[0], gradient[0]), dense64(*case), exact, objective)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("teacher_too", [False, True])
def test_a_masked_logit_has_no_gradient(divergence, teacher_too):
    """0 * inf is 0 in value and gradient, in every divergence that stays finite."""
    student, teacher = drawn(1, 9, 1), drawn(1, 9, 2)
    student[0, 4] = -INF
    if teacher_too:
        teacher[0, 4] = -INF
    elif divergence in ("forward_kl", "adaptive_kl"):
        return  # infinite
    for temperature in (1.0, 2.0):
        objective = Objective(0.3, temperature, 0.0, divergence)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            rows = torch.zeros(1, dtype=torch.long)
            leaf = student.to(dtype).clone().requires_grad_()
            loss, _ = StudentLogits(leaf, rows, rows[:0]).loss(TeacherAnswer(teacher.to(dtype)), rows, objective)
            loss.backward()
            assert loss.isfinite() and leaf.grad.isfinite().all() and leaf.grad[0, 4] == 0
            assert leaf.grad.abs().sum() > 0.1


def drawn(rows, vocab, seed, scale=2.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.skipif(TORCH_VERSION < (2, 1), reason="this torch has no fp16 matrix product on CPUs")
@settings(max_examples=60, deadline=None)
@given(case=st.one_of(sparse_cases(), dense_cases()))
def test_fused_head_equals_float64_at_any_gap_and_mask(case):
    """The projection is the identity, so that the features' gradient is the logits'; a bias of -inf masks."""
    student, teacher, label, objective = case
    masked = torch.isneginf(student)
    features = student.masked_fill(masked, 0.0).unsqueeze(0).requires_grad_()
    weight = torch.eye(len(student), dtype=student.dtype)
    bias = torch.zeros_like(student).masked_fill(masked, -INF).requires_grad_()
    sparse = isinstance(teacher, SparseAnswer)
    answer = teacher if sparse else TeacherAnswer(teacher.unsqueeze(0))
    loss, terms = StudentFeatures(features, weight, bias).loss(answer, torch.tensor([label]), objective)
    loss.backward()
    expected = bucket64(*case) if sparse else dense64(*case)
    for gradient in (features.grad[0], bias.grad):
        compare((loss.detach(), terms[0], gradient), expected, student.dtype, objective)


@settings(max_examples=80, deadline=None)
@given(
    case=dense_cases(),
    parameter=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6]),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_no_entry_of_a_gradient_exceeds_its_bound(case, parameter, alpha):
    student, teacher, label, objective = case
    names = ("js_beta", "skew_lambda", "adaptive_mu")
    objective = objective._replace(alpha=alpha, parameters=dict.fromkeys(names, parameter))
    terms, gradient = terms_by_definition(
        student[None].double(), teacher[None].double(), torch.tensor([label]), objective
    )
    if torch.isfinite(objective.total(terms)).all():
        assert storage.bound_is_known(objective)
        # may be met exactly, by a target that the teacher takes for sure and the student rules out
        assert gradient.abs().max() <= storage.gradient_bound(objective, terms[0, KD]) * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    dtype=dtypes,
    seed=st.integers(0, 10**6),
    magnitude=st.floats(0.0, 38.0),
    temperature=st.sampled_from([1e-6, 0.5, 1.0, 4.0, 1e6]),
    alpha=st.sampled_from([0.0, 0.3]),
    divergence=st.sampled_from(sorted(DIVERGENCES)),
    masked=st.booleans(),
)
def test_a_finite_loss_has_a_finite_gradient_up_to_the_largest_logits(
    dtype, seed, magnitude, temperature, alpha, divergence, masked
):
    """As storage.gradient_bound proves of the exact one."""
    generator = torch.Generator().manual_seed(seed)
    largest = min(10.0**magnitude, 6e4 if dtype == torch.float16 else 1e38)

    def logits():
        spread = torch.rand(3, 1, generator=generator) ** 4 * largest  # small and large rows
        return (torch.randn(3, 9, generator=generator) * spread).clamp(-2 * largest, 2 * largest).to(dtype)

    student, teacher = logits(), logits()
    if masked:
        student[:, 0], teacher[:, 8] = -INF, -INF
    target, rows = torch.randint(1, 9, (3,), generator=generator), torch.arange(3)
    objective = Objective(alpha, temperature, 0.0, divergence)
    leaf = student.clone().requires_grad_()
    loss, terms = StudentLogits(leaf, rows, rows[:0]).loss(TeacherAnswer(teacher), target, objective)
    if torch.isfinite(loss):
        loss.backward()
        bound = torch.as_tensor(storage.gradient_bound(objective, terms[:, KD])).expand(3)
        held = torch.isfinite(leaf.grad).all(dim=-1)
        assert (held | (bound > torch.finfo(dtype).max)).all(), leaf.grad  # fp16 cannot hold every true gradient
        assert dtype == torch.float16 or held.all()


@settings(max_examples=100, deadline=None)
@given(bound=st.floats(0.0, 1e30))
def test_factor_of_a_row_is_the_largest_power_of_two_that_keeps_it_small(bound):
    scale = storage.scale_for(torch.tensor([bound])).item()
    assert math.frexp(scale)[0] == 0.5 and scale * bound <= 4096.0 * (1 + 1e-6)
    assert scale == 1024.0 or scale * bound >= 2047.0


@pytest.mark.parametrize(
    "divergence,temperature,rank",
    [("reverse_kl", 4.0, 0), ("reverse_kl", 100.0, 0), ("adaptive_kl", 8.0, 0), ("forward_kl", 100.0, 0)]
    + [("forward_kl", 1.0, 400)],
)
def test_steep_gradients_in_fp16(divergence, temperature, rank):
    """A masked teacher counts as e^-100: the reverse KL's slope reaches 25 times the temperature there."""
    student, teacher = drawn(3, 500, 1).half(), drawn(3, 500, 2).half()
    student[:, 7] += 7 * temperature
    teacher[:2, 7] = -INF
    target, rows = torch.tensor([7, 8, 9]), torch.arange(3)
    objective = Objective(0.05, temperature, 0.1, divergence, {}, rank)
    leaf = student.clone().requires_grad_()
    loss, _ = StudentLogits(leaf, rows, rows[:0]).loss(TeacherAnswer(teacher), target, objective)
    (loss * 2.0).backward()
    _, expected = terms_by_definition(student.double(), teacher.double(), target, objective)
    assert expected.abs().max() > (20 if rank else 64)
    torch.testing.assert_close(leaf.grad.double() / 2, expected, rtol=2**-10, atol=2e-5)


def test_small_entries_beside_large_ones_keep_their_digits_in_fp16():
    """A row with a slope of 100 and one without, under a loss scale: both as exact as fp16 lets them be."""
    student, teacher = drawn(2, 300, 1, scale=4.0).half(), drawn(2, 300, 2, scale=4.0).half()
    student[0, 5], teacher[0, 5] = 24.0, -INF
    target, rows, objective = torch.tensor([3, 4]), torch.arange(2), Objective(0.1, 4.0, 0.0, "reverse_kl")
    leaf = student.clone().requires_grad_()
    loss, _ = StudentLogits(leaf, rows, rows[:0]).loss(TeacherAnswer(teacher), target, objective)
    (loss * 256.0).backward()
    _, expected = terms_by_definition(student.double(), teacher.double(), target, objective)
    assert expected[0].abs().max() > 64 and (expected.abs() < 1e-5).any()
    torch.testing.assert_close(leaf.grad.double() / 256, expected, rtol=2**-9, atol=2e-6)


@pytest.mark.skipif(TORCH_VERSION < (2, 1), reason="this torch has no fp16 matrix product on CPUs")
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_sums_of_the_fused_head_in_fp16_do_not_overflow(size):
    """Thousands of tokens of one word, large features and weights, steep slopes."""
    rows, vocab = 3000, 40
    features, weight = drawn(1, 8, 3).half().repeat(rows, 1), (drawn(vocab, 8, 4) * size).half()
    teacher = drawn(rows, vocab, 5).half()
    teacher[:, 3] = -INF
    target, objective = torch.full((rows,), 3), Objective(0.5, 2.0, 0.1, "reverse_kl")
    leaf, head = features.clone().requires_grad_(), weight.clone().requires_grad_()
    bias = torch.zeros(vocab).half().requires_grad_()
    loss, _ = StudentFeatures(leaf, head, bias).loss(TeacherAnswer(teacher), target, objective)
    (loss * 2.0**-8).backward()
    exact, exact_head = features.double().requires_grad_(), weight.double().requires_grad_()
    exact_bias = torch.zeros(vocab).double().requires_grad_()
    StudentLogits((exact @ exact_head.t() + exact_bias).half().double(), torch.arange(rows), torch.arange(0)).loss(
        TeacherAnswer(teacher.double()), target, objective
    )[0].backward()
    for gradient, expected in ((leaf.grad, exact.grad), (head.grad, exact_head.grad), (bias.grad, exact_bias.grad)):
        assert gradient.isfinite().all()
        assert (gradient.double() * 2.0**8 - expected).norm() <= 1e-2 * expected.norm()


def test_a_term_without_weight_does_not_count_even_if_it_is_infinite():
    """alpha 0: the target, or with label smoothing any other symbol, masked for the student."""
    student, teacher = drawn(1, 9, 1), drawn(1, 9, 2)
    student[0, 4] = teacher[0, 4] = -INF
    for label, epsilon in ((4, 0.0), (3, 0.1)):
        objective = Objective(0.0, 1.0, epsilon)
        loss, terms, gradient = run(student[0], TeacherAnswer(teacher), label, objective)
        assert terms[CE] == INF and loss == terms[KD] and gradient.isfinite().all() and gradient.abs().sum() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_infinite_divergence_at_alpha_one_leaves_the_cross_entropys_gradient(divergence, dtype):
    """The student rules out what the teacher expects: its divergence is logged and must not reach the gradient."""
    student = torch.tensor([[1.0, 2.0, -INF, 0.5, -1.0]], dtype=dtype)
    teacher = torch.tensor([[0.0, 1.0, 3.0, -INF, 1.0]], dtype=dtype)
    objective, gradients = Objective(1.0, 2.0, 0.0, divergence), []
    for answer in (TeacherAnswer(teacher), None):
        leaf, rows = student.clone().requires_grad_(), torch.zeros(1, dtype=torch.long)
        StudentLogits(leaf, rows, rows[:0]).loss(answer, torch.tensor([1]), objective)[0].backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
    assert gradients[0].isfinite().all() and gradients[0].abs().sum() > 0.1
