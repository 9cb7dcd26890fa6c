"""The GPU kernels against the definition in float64: in Triton's interpreter, or on the GPU where there is one."""

import sys

import pytest
import torch
from hypothesis import given, settings

from kd_plugin.losses import DIVERGENCES
from kd_plugin.losses.definition import AGREE, CE, KD, N_TERMS, NLL, RANK, TEACHER_NLL, Objective, terms_by_definition
from kd_plugin.losses.divergences import Divergence, forward_kl, head_weight
from kd_plugin.losses.engine.ranked import ranking
from kd_plugin.losses.engine.storage import new_scales
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, SparseAnswer
from tests.unit.test_gaps_and_masks import bucket64, compare, dense64, dense_cases, sparse_cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" in sys.modules:
    pytest.skip("Triton is there as a compiler already and cannot interpret", allow_module_level=True)
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")  # read on import and on the first call, and not left for other tests
    pytest.importorskip("triton", reason="Triton is not installed")
    from kd_plugin.losses.engine.triton import kernels

INF = float("inf")
# blocks of 8 entries in fp32 and 16 in half precision in the interpreter, which takes its time over each
BF16_ROUNDING = 2**-7 if DEVICE == "cpu" else 2**-8  # the interpreter cuts off
# the kernels' dtypes that gradients are rounded to as everywhere
EXACT = (torch.float32, torch.float16) if DEVICE == "cpu" else (torch.float32, torch.float16, torch.bfloat16)
LANES, VOCAB, HALF_VOCAB = (2, 12, 24) if DEVICE == "cpu" else (32, 300, 600)


def patch_the_language_once_a_kernel(monkeypatch):
    """Triton's interpreter does it at each call of a function within a kernel too, which takes half of the time."""
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope", "GridExecutor")):
        return  # another version: only slower
    patch_language, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    language, patched = (interpreter.tl, interpreter.tl.core), set()

    def patch_once(function):
        modules = {id(value) for value in function.__globals__.values() if any(value is module for module in language)}
        if modules <= patched:
            return interpreter._LangPatchScope()
        patched.update(modules)
        return patch_language(function)

    def launch_anew(*args, **kwargs):
        patched.clear()
        return launch(*args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_anew)


@pytest.fixture(autouse=True)
def interpreter_and_several_blocks(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        patch_the_language_once_a_kernel(monkeypatch)
    monkeypatch.setattr(kernels, "MIN_LANES", LANES)
    monkeypatch.setattr(kernels, "MAX_LANES", LANES)


def batch(rows=2, vocab=VOCAB, dtype=torch.float32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = ((torch.randn(rows, vocab, generator=generator) * scale).to(dtype) for _ in range(2))
    target = torch.randint(vocab, (rows,), generator=generator)
    return student.to(DEVICE), teacher.to(DEVICE), target.to(DEVICE)


def run(student, teacher, target, objective, gradient_dtype=None, **which):
    """Terms and d loss / d logits, unscaled and in float64, of the kernels."""
    gradient = torch.full_like(student, 7.0, dtype=gradient_dtype)
    scales = new_scales(gradient)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=gradient, scales=scales, **which)
    assert terms.dtype == torch.float32 and terms.shape == (target.numel(), N_TERMS)
    return terms, gradient.double() / (1.0 if scales is None else scales.double().unsqueeze(-1))


def definition(student, teacher, target, objective):
    return terms_by_definition(student.double(), None if teacher is None else teacher.double(), target, objective)


def check(student, teacher, target, objective, rtol=2e-6, atol=1e-6):
    terms, gradient = run(student, teacher, target, objective)
    expected_terms, expected_gradient = definition(student, teacher, target, objective)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=atol)
    return terms, gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_matches_the_definition(temperature, alpha, epsilon):
    check(*batch(rows=1), Objective(alpha, temperature, epsilon))


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES[1:])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
def test_every_divergence_matches_its_definition(divergence, temperature):
    check(*batch(rows=1), Objective(0.3, temperature, 0.1, divergence))


@pytest.mark.parametrize("divergence,parameter", [("js", 0.2), ("skew_forward_kl", 0.4), ("skew_reverse_kl", 0.4)])
def test_takes_parameters(divergence, parameter):
    (name,) = DIVERGENCES[divergence].parameters
    check(*batch(rows=1), Objective(0.3, 2.0, 0.1, divergence, {name: parameter}))


@pytest.mark.parametrize("vocab", [1, 2, VOCAB + 1, VOCAB + 2])
def test_any_vocabulary(vocab, monkeypatch):
    """Also those whose rows cannot be loaded 16 bytes at a time."""
    monkeypatch.setattr(kernels, "MAX_LANES", 4 * LANES)
    check(*batch(rows=1, vocab=vocab), Objective(0.3, 2.0, 0.1 if vocab > 1 else 0.0, "js"))


def odd_batch(rows, dtype=torch.float32, vocab=VOCAB + 1, apart=0):
    """Rows that begin at every place in 16 bytes; apart: so many entries of nobody lie between them."""
    student, teacher, target = batch(rows, vocab + apart, dtype)
    return student[:, :vocab], teacher[:, :vocab], target % vocab


def test_rows_that_begin_amid_16_bytes():
    """At every place in them: the entries before the first whole vector and after the last, in place."""
    student, teacher, target = odd_batch(8, torch.bfloat16)
    objective = Objective(0.3, 2.0, 0.1, "js")
    expected_terms, expected = definition(student, teacher, target, objective)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=student)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(student.double(), expected, rtol=BF16_ROUNDING, atol=1e-6)


def test_rows_shorter_than_a_vector():
    student, teacher, target = odd_batch(4, vocab=3)
    check(student, teacher, target, Objective(0.3, 2.0, 0.0))


@pytest.mark.parametrize("teachers", ["back to back", "aligned", "aligned, the student's too"])
def test_the_teachers_rows_may_begin_elsewhere(teachers):
    """Rows of their own, selected, and whatever lies between rows is left alone; with the ranking term, in fp16."""
    vocab = HALF_VOCAB + 3
    student, _, target = odd_batch(6, torch.float16, vocab, 5 if teachers == "aligned, the student's too" else 0)
    teacher = odd_batch(6, torch.float16, vocab, 0 if teachers == "back to back" else 5)[1]
    rows, teacher_rows = torch.tensor([1, 3, 4], device=DEVICE), torch.tensor([0, 2, 5], device=DEVICE)
    target, objective = target[rows], Objective(0.3, 2.0, 0.1, "forward_kl", {}, 2)
    whole = student.as_strided((6, student.stride(0)), (student.stride(0), 1))
    before, teacher_before = whole.clone(), teacher.clone()
    expected_terms, expected = definition(student[rows], teacher[teacher_rows], target, objective)
    scales = new_scales(student)
    which = dict(rows=rows, teacher_rows=teacher_rows)
    ranked = ranking(student, teacher, rows, teacher_rows, len(target), objective)
    terms = kernels.one_pass(
        student, teacher, target, objective, gradient=student, scales=scales, ranked=ranked, **which
    )
    torch.testing.assert_close(terms.double(), expected_terms, rtol=5e-6, atol=5e-6)
    gradient = student[rows].double() / scales[rows].double().unsqueeze(-1)
    torch.testing.assert_close(gradient, expected, rtol=2**-11, atol=2e-6)
    assert torch.equal(whole[[0, 2, 5]], before[[0, 2, 5]]) and torch.equal(whole[:, vocab:], before[:, vocab:])
    assert torch.equal(teacher, teacher_before)


def test_a_gradient_whose_rows_begin_elsewhere():
    """Then vectors are as narrow as both can be moved in."""
    student, teacher, target = odd_batch(4)
    gradient = torch.full((4, VOCAB + 3), 7.0, device=DEVICE)
    objective = Objective(0.3, 2.0, 0.1)
    kernels.one_pass(student, teacher, target, objective, gradient=gradient[:, : VOCAB + 1])
    expected = definition(student, teacher, target, objective)[1]
    torch.testing.assert_close(gradient[:, : VOCAB + 1].double(), expected, rtol=2e-6, atol=1e-6)
    assert (gradient[:, VOCAB + 1 :] == 7).all()


@pytest.mark.parametrize("dtype,rounding", [(torch.float16, 2**-11), (torch.bfloat16, BF16_ROUNDING)])
@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_low_precision(dtype, rounding, divergence):
    """Only the rounding of the gradient to its dtype is left; in fp16 it is stored 1024 times as large."""
    check(*batch(vocab=HALF_VOCAB, dtype=dtype), Objective(0.3, 2.0, 0.1, divergence), rtol=rounding)


@pytest.mark.parametrize("divergence,temperature", [("reverse_kl", 4.0), ("forward_kl", 20.0)])
def test_steep_gradients_in_fp16(divergence, temperature):
    """The reverse KL's slope is 25 times the temperature where the teacher is masked: each row has its own factor."""
    student, teacher, target = batch(vocab=HALF_VOCAB, dtype=torch.float16)
    student[0, 5], teacher[0, 5] = 15.0, -INF
    objective = Objective(0.05, temperature, 0.1, divergence)
    _, gradient = check(student, teacher, target, objective, rtol=2**-10, atol=1e-5)
    assert gradient.abs().max() > (20 if divergence == "reverse_kl" else 1)


@pytest.mark.parametrize("divergence", ["reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd"])
def test_a_masked_logit_of_the_student_has_no_gradient(divergence):
    student, teacher, target = batch(rows=1)
    student[0, 3], target[:] = -INF, 0
    _, gradient = check(student, teacher, target, Objective(0.3, 2.0, 0.0, divergence))
    assert gradient[0, 3] == 0


def test_scale_of_rows():
    tensor, scales = torch.full((3, 40), 8.0, device=DEVICE).half(), torch.tensor([8.0, 1024.0, 0.5], device=DEVICE)
    kernels.scale_(tensor, torch.tensor(8.0, device=DEVICE), scales)
    assert tensor.tolist() == [[8.0] * 40, [0.0625] * 40, [128.0] * 40]


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_mixed_precision(dtypes):
    student, teacher, target = batch(vocab=HALF_VOCAB)
    arguments = student.to(dtypes[0]), teacher.to(dtypes[1]), target, Objective(0.3, 2.0, 0.1)
    terms, gradient = run(*arguments, gradient_dtype=torch.float32)
    expected_terms, expected_gradient = definition(*arguments)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cross_entropy_alone(dtype):
    student, _, target = batch(vocab=HALF_VOCAB, dtype=dtype)
    terms, _ = check(student, None, target, Objective(0.3, 2.0, 0.1), rtol=BF16_ROUNDING)
    assert not terms[:, NLL + 1 :].any()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_without_gradient(divergence):
    student, teacher, target = batch()
    objective, untouched = Objective(0.3, 2.0, 0.1, divergence), student.clone()
    terms = kernels.one_pass(student, teacher, target, objective)
    torch.testing.assert_close(terms, run(student, teacher, target, objective)[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(student, untouched)


@pytest.mark.parametrize("divergence", ["forward_kl", "tvd"])
@pytest.mark.parametrize("inplace", [True, False])
def test_chosen_rows_and_no_others(divergence, inplace):
    """Of tensors whose rows do not lie back to back, too."""
    student, teacher, target = batch(rows=5, vocab=VOCAB + 8)
    student, teacher, target = student[:, :VOCAB], teacher[:, 4 : VOCAB + 4], target[:2] % VOCAB
    rows, teacher_rows = torch.tensor([1, 4], device=DEVICE), torch.tensor([0, 3], device=DEVICE)
    objective = Objective(0.3, 2.0, 0.1, divergence)
    expected_terms, expected_gradient = definition(student[rows], teacher[teacher_rows], target, objective)
    before, teacher_before = student.clone(), teacher.clone()
    gradient = student if inplace else torch.full_like(student, 7.0)
    terms = kernels.one_pass(
        student, teacher, target, objective, rows=rows, teacher_rows=teacher_rows, gradient=gradient
    )
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient[rows].double(), expected_gradient, rtol=2e-6, atol=1e-6)
    others = torch.tensor([0, 2, 3], device=DEVICE)
    assert torch.equal(gradient[others], before[others] if inplace else torch.full_like(before[others], 7.0))
    assert torch.equal(teacher, teacher_before) and (inplace or torch.equal(student, before))


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES)
def test_masked_teacher(divergence):
    student, teacher, target = batch()
    teacher[0, 3:6], teacher[1, :-1] = -INF, -INF  # a part, whole blocks
    target[:] = VOCAB - 1
    # the reverse KL's slope is around 100 there
    terms, _ = check(student, teacher, target, Objective(0.3, 1.0, 0.1, divergence), rtol=1e-5)
    assert torch.isfinite(terms).all()


def test_teacher_masked_by_the_lowest_number():
    student, teacher, target = batch()
    teacher[0, 3:6], teacher[1, :-1] = (torch.finfo(torch.float32).min,) * 2
    target[:] = VOCAB - 1
    check(student, teacher, target, Objective(0.3, 1.0, 0.1))


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES)
def test_masked_on_both_sides(divergence):
    student, teacher, target = batch(rows=1)
    student[:, 3:10], teacher[:, 3:10] = -INF, -INF
    target[:] = VOCAB - 1
    terms, gradient = run(student, teacher, target, Objective(0.3, 2.0, 0.0, divergence))
    keep = [*range(3), *range(10, VOCAB)]
    left = student[:, keep], teacher[:, keep], target - 7, Objective(0.3, 2.0, 0.0, divergence)
    expected_terms, expected_gradient = definition(*left)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient[:, keep], expected_gradient, rtol=2e-6, atol=1e-6)
    assert not gradient[:, 3:10].any()


def test_infinite_where_the_definition_is():
    """The student, or its target, masked where the teacher is not."""
    student, teacher, target = batch()
    student[0, 3], target[0] = -INF, 3
    terms, gradient = check(student, teacher, target, Objective(0.0, 1.0))
    assert terms[0, NLL] == INF and terms[0, KD] == INF and torch.isfinite(gradient).all()
    assert run(student, teacher, target, Objective(0.3, 1.0, 0.1))[0][0, CE] == INF


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES)
def test_nan_stays_seen(divergence):
    student, teacher, target = batch()
    student[0, 5], teacher[1, 5] = float("nan"), float("nan")
    terms, gradient = run(student, teacher, target, Objective(0.3, 2.0, 0.0, divergence))
    assert terms[:, KD].isnan().all() and gradient.isnan().all()


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES)
def test_huge_logits(divergence):
    student, teacher, target = batch(rows=1)
    check(student.sign() * 1e4, teacher.sign() * -1e4, target, Objective(0.3, 2.0, 0.1, divergence))


def test_large_common_offset():
    """Shifted logits, exactly so in fp32: neither a KL of differences nor label smoothing loses more than rounding."""
    student, teacher, target = batch()
    student, teacher = (student * 64).round() / 64, (teacher * 64).round() / 64
    check(student + 4096.0, teacher - 8192.0, target, Objective(0.3, 1.0, 0.1))


@pytest.mark.parametrize("divergence", kernels.KNOWN_DIVERGENCES)
def test_zero_for_equal_sides(divergence):
    student, _, target = batch(rows=1)
    terms, gradient = run(student, student.clone(), target, Objective(0.0, 2.0, 0.0, divergence))
    assert (terms[:, KD] >= 0).all() and (terms[:, KD] <= 2e-7).all()  # never below 0
    assert gradient.abs().max() <= 3e-7


def test_first_best_entry_agrees():
    """Ties go to the first index, across lanes and blocks."""
    student, teacher, target = batch(rows=1)
    student.zero_(), teacher.zero_()
    agree = {}
    for first, *others in [(0,), (1, 2), (3, 4), (5, 6, 11), (2, 8), (9, 10), (7, 8, 11)]:
        student[0], teacher[0] = 0, 0
        student[0, [first, *others]], teacher[0, first] = 5.0, 5.0
        agree[first] = kernels.one_pass(student, teacher, target, Objective(0.5))[0, AGREE].item()
        if others:
            teacher[0] = teacher[0].roll(others[0] - first)
            assert kernels.one_pass(student, teacher, target, Objective(0.5))[0, AGREE] == 0
    assert set(agree.values()) == {1.0}


def test_first_best_entry_agrees_at_the_edges():
    """Of a row that begins and ends amid 16 bytes: ties within its edges, between them and with what lies between."""
    ties = [(0, VOCAB), (1, 6), (5, VOCAB), (VOCAB - 1, VOCAB), (2, 7, VOCAB), (0, 1)]
    student, teacher, target = (x.zero_() for x in odd_batch(len(ties)))
    for row, tied in enumerate(ties):
        student[row, list(tied)], teacher[row, tied[0]] = 5.0, 5.0
    assert (kernels.one_pass(student, teacher, target, Objective(0.5))[:, AGREE] == 1).all()
    for row, tied in enumerate(ties):
        teacher[row] = teacher[row].roll(tied[1] - tied[0])
    assert not kernels.one_pass(student, teacher, target, Objective(0.5))[:, AGREE].any()


def test_a_row_does_not_depend_on_its_neighbours():
    student, teacher, target = batch(rows=3)
    student[0], teacher[2] = float("nan"), float("nan")
    objective = Objective(0.3, 2.0, 0.1, "js")
    terms, gradient = run(student, teacher, target, objective)
    alone, gradient_alone = run(student[1:2], teacher[1:2], target[1:2], objective)
    assert torch.equal(terms[1:2], alone) and torch.equal(gradient[1:2], gradient_alone)


def test_no_rows():
    student, teacher, target = batch()
    none = torch.zeros(0, dtype=torch.long, device=DEVICE)
    terms, gradient = run(student, teacher, target[:0], Objective(0.5), rows=none, teacher_rows=none)
    assert terms.shape == (0, N_TERMS) and (gradient == 7.0).all()


def test_teacher_nll_is_without_temperature():
    student, teacher, target = batch()
    terms = kernels.one_pass(student, teacher, target, Objective(0.5, 4.0))
    expected = torch.nn.functional.cross_entropy(teacher, target, reduction="none")
    torch.testing.assert_close(terms[:, TEACHER_NLL], expected, rtol=2e-6, atol=2e-6)


def test_supports_what_it_can_do_and_leaves_the_rest(monkeypatch):
    student, teacher, _ = batch()

    def supports(student=student, teacher=teacher, **objective):
        return kernels.supports(student, teacher, Objective(0.5, **objective))

    assert all(supports(divergence=divergence) for divergence in kernels.KNOWN_DIVERGENCES)
    assert supports(student.bfloat16(), teacher.half())
    assert not supports(student.double()) and not supports(teacher=teacher.double())
    assert not supports(student.t()) and not supports(teacher=teacher[:, ::2])
    assert supports(top1_rank=5) and not supports(top1_rank=100)
    assert supports(teacher=None, divergence="adaptive_kl", top1_rank=5)  # cross-entropy alone
    monkeypatch.setitem(DIVERGENCES, "new", Divergence(forward_kl))
    assert not supports(divergence="new")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_scale(dtype):
    """As if in fp32, for any layout, and for a factor that the dtype does not have."""
    big = torch.randn(6, 40, device=DEVICE).to(dtype)
    factor = torch.tensor(1.0 + 2**-10, device=DEVICE)
    odd = big.flatten()[: 6 * 39].view(6, 39)
    for view in (
        big,
        big[:, :33],
        odd,
        big[::2],
        big[2:4].t(),
        big[0],
        big[0, ::2],
        big[0, 0],
        big.view(2, 3, 40),
        big[:0],
    ):
        tensor = view.clone(memory_format=torch.preserve_format)
        tensor = big.clone().as_strided(view.size(), view.stride(), view.storage_offset())
        expected = (tensor.to(torch.promote_types(dtype, torch.float32)) * factor).to(dtype)
        kernels.scale_(tensor, factor)
        assert torch.equal(tensor, expected)


def test_scale_leaves_what_lies_between():
    big = torch.ones(4, 40, device=DEVICE)
    kernels.scale_(big[:, :33], torch.tensor(3.0, device=DEVICE))
    assert (big[:, :33] == 3).all() and (big[:, 33:] == 1).all()


def test_scale_by_one_changes_nothing():
    tensor = torch.tensor([[1.5, float("nan"), INF]], device=DEVICE)
    before = tensor.clone()
    kernels.scale_(tensor, torch.tensor(1.0, device=DEVICE))
    assert torch.equal(tensor[:, ::2], before[:, ::2]) and tensor[0, 1].isnan()


def sparse_answer(teacher, k, temperature, kind="topk"):
    lprobs = torch.log_softmax(teacher.double() / temperature, dim=-1)
    if kind == "sampled":
        ids = torch.multinomial(lprobs.exp(), k, replacement=True).sort(dim=-1).values
        return SparseAnswer(ids, lprobs.gather(-1, ids).float(), torch.zeros(len(ids), device=DEVICE), sampled=True)
    best, ids = lprobs.topk(k, dim=-1)
    log_rest = lprobs.scatter(-1, ids, -INF).logsumexp(dim=-1)
    return SparseAnswer(ids, best.float(), log_rest.float())


def check_sparse(student, answer, target, objective, rtol=2e-6):
    expected_terms, expected = terms_by_definition(student.double(), answer, target, objective)
    terms, gradient = run(student, answer, target, objective)
    torch.testing.assert_close(terms.double(), expected_terms.double(), rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(gradient, expected, rtol=rtol, atol=2e-6)


@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 4, VOCAB - 1, VOCAB])
def test_stored_entries(divergence, temperature, k):
    student, teacher, target = batch(rows=2)
    k = min(k, kernels.MAX_ENTRIES)
    check_sparse(student, sparse_answer(teacher, k, temperature), target, Objective(0.3, temperature, 0.1, divergence))


@pytest.mark.parametrize("dtype,rounding", [(torch.float16, 2**-11), (torch.bfloat16, BF16_ROUNDING)])
@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
def test_stored_entries_in_low_precision(dtype, rounding, divergence):
    student, teacher, target = batch(vocab=HALF_VOCAB, dtype=dtype)
    check_sparse(student, sparse_answer(teacher, 5, 2.0), target, Objective(0.3, 2.0, 0.1, divergence), rounding)


@pytest.mark.parametrize("alpha,temperature", [(0.0, 1.0), (0.3, 2.0)])
def test_draws(alpha, temperature):
    student, teacher, target = batch(rows=3)
    answer = sparse_answer(teacher, 16, temperature, "sampled")
    assert (answer.ids[:, 1:] == answer.ids[:, :-1]).any()
    check_sparse(student, answer, target, Objective(alpha, temperature, 0.1))


@pytest.mark.parametrize("kind,k", [("topk", 5), ("sampled", 16)])
def test_stored_entries_of_rows_that_begin_amid_16_bytes(kind, k):
    """Entries at the edges and between them, in place."""
    student, teacher, target = odd_batch(4)
    teacher[1, VOCAB], teacher[2, 0] = 9.0, 9.0
    answer = sparse_answer(teacher, min(k, kernels.MAX_ENTRIES), 2.0, kind)
    objective = Objective(0.3, 2.0, 0.1, "forward_kl")
    expected_terms, expected = terms_by_definition(student.double(), answer, target, objective)
    terms = kernels.one_pass(student, answer, target, objective, gradient=student)
    torch.testing.assert_close(terms.double(), expected_terms.double(), rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(student.double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
def test_an_unknown_answer_has_one_symbol_many_times(divergence):
    student, _, target = batch(rows=1)
    answer = SparseAnswer(
        torch.full((1, 4), 3, device=DEVICE),
        torch.tensor([[-1.0, -INF, -INF, -INF]], device=DEVICE),
        torch.tensor([-1.0], device=DEVICE).exp().neg().log1p(),
    )
    check_sparse(student, answer, target, Objective(0.3, 2.0, 0.1, divergence))


@pytest.mark.parametrize("inplace", [False, True])
def test_stored_entries_for_chosen_rows(inplace):
    student, teacher, target = batch(rows=5)
    rows = torch.tensor([1, 4], device=DEVICE)
    answer, objective = sparse_answer(teacher[rows], 3, 1.0), Objective(0.3, 1.0, 0.1, "js")
    _, expected = terms_by_definition(student[rows].double(), answer, target[:2], objective)
    gradient = student.clone() if inplace else torch.full_like(student, 7.0)
    before = gradient.clone()
    kernels.one_pass(gradient if inplace else student, answer, target[:2], objective, rows=rows, gradient=gradient)
    torch.testing.assert_close(gradient[rows].double(), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(gradient[[0, 2, 3]], before[[0, 2, 3]])


@settings(max_examples=40, deadline=None)
@given(case=sparse_cases().filter(lambda case: case[0].dtype in EXACT))
def test_stored_entries_equal_float64_at_any_gap_and_mask(case):
    compare_case(case, bucket64(*case))


@settings(max_examples=40, deadline=None)
@given(case=dense_cases().filter(lambda case: case[0].dtype in EXACT))
def test_logits_equal_float64_at_any_gap_and_mask(case):
    compare_case(case, dense64(*case))


def compare_case(case, expected):
    student, teacher, label, objective = case
    student = student.unsqueeze(0).to(DEVICE)
    if isinstance(teacher, SparseAnswer):
        teacher = SparseAnswer(*(x.to(DEVICE) for x in (teacher.ids, teacher.lprobs, teacher.log_rest)))
    else:
        teacher = teacher.unsqueeze(0).to(DEVICE)
    terms, gradient = run(student, teacher, torch.tensor([label], device=DEVICE), objective)
    terms = terms[0].cpu()
    compare((objective.total(terms), terms, gradient[0].cpu()), expected, student.dtype, objective)


@pytest.mark.parametrize(
    "divergence,dtype,k,inplace",  # each with each
    [
        ("forward_kl", torch.float32, 1, False), ("forward_kl", torch.float16, 1, True),
        ("forward_kl", torch.bfloat16, 5, False), ("js", torch.float32, 1, False), ("js", torch.float16, 1, True),
        ("js", torch.bfloat16, 5, True), ("reverse_kl", torch.float32, 5, True),
        ("reverse_kl", torch.float16, 5, False), ("reverse_kl", torch.bfloat16, 1, True),
    ],
)  # fmt: skip
def test_ranking_beside_a_divergence(divergence, k, dtype, inplace):
    student, teacher, target = batch(vocab=HALF_VOCAB, dtype=dtype)
    objective = Objective(0.3, 2.0, 0.1, divergence, {}, k)
    ranked = ranking(student, teacher, None, None, len(target), objective)
    expected_terms, expected = definition(student, teacher, target, objective)
    assert (expected_terms[:, RANK] > 0).any()
    gradient = student if inplace else torch.empty_like(student)
    scales = new_scales(gradient)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=gradient, scales=scales, ranked=ranked)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=5e-6, atol=5e-6)
    gradient = gradient.double() / (1.0 if scales is None else scales.double().unsqueeze(-1))
    rounding = {torch.float32: 5e-6, torch.float16: 2**-11, torch.bfloat16: BF16_ROUNDING}[dtype]
    torch.testing.assert_close(gradient, expected, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("mu,temperature", [(0.01, 2.0), (0.3, 1.0), (0.5, 2.0), (0.9, 1.0), (0.999, 2.0)])
def test_head_of_the_teacher(temperature, mu):
    """Found without sorting: among ties all or none, the best entry always. Also in rows that begin amid 16 bytes."""
    student, teacher, target = batch(rows=3)
    if mu in (0.3, 0.5):
        student, teacher, target = odd_batch(3)
        teacher[:, -1] = teacher.amax(dim=-1) + 0.3  # the head begins at an edge
    teacher[1] = teacher[1].round()  # ties
    teacher[2, 4:] = -INF
    objective = Objective(0.3, temperature, 0.0, "adaptive_kl", {"adaptive_mu": mu})
    sides = [torch.softmax(x.double() / temperature, dim=-1) for x in (student, teacher)]
    assert len(set(head_weight(*sides, mu).tolist())) == 3
    check(student, teacher, target, objective, rtol=1e-5, atol=1e-5)
