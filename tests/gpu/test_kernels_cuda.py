"""The Triton kernels on a GPU, at the size of a real vocabulary; tests/unit/test_kernels_triton.py has the details."""

import pytest
import torch

from kd_plugin.losses.definition import AGREE, Objective, terms_by_definition
from kd_plugin.losses.engine import dispatch as engine
from kd_plugin.losses.engine import one_pass, storage
from kd_plugin.losses.sparse import BUCKET_DIVERGENCES, SparseAnswer

pytestmark = pytest.mark.gpu
VOCAB = 32_000
DIVERGENCES = ["forward_kl", "reverse_kl", "js", "skew_forward_kl", "skew_reverse_kl", "tvd"]


@pytest.fixture
def kernels():
    """Imported in tests alone: where there is no GPU, other tests interpret Triton, and must be first to import it."""
    pytest.importorskip("triton")
    from kd_plugin.losses.engine.triton import kernels

    return kernels


def batch(rows=64, vocab=VOCAB, dtype=torch.float32, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    student, teacher = ((torch.randn(rows, vocab, generator=generator, device="cuda") * 3).to(dtype) for _ in range(2))
    teacher += student / 2
    return student, teacher, torch.randint(vocab, (rows,), generator=generator, device="cuda")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocab", [VOCAB, VOCAB + 8, VOCAB + 1])
def test_gradient_error_in_fp32(kernels, temperature, vocab):
    student, teacher, target = batch(vocab=vocab)
    objective, gradient = Objective(0.3, temperature, 0.1), torch.empty_like(student)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=gradient)
    expected_terms, expected_gradient = terms_by_definition(student.double(), teacher.double(), target, objective)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=5e-6, atol=2e-6)
    assert (gradient - expected_gradient).abs().max() <= 3e-7


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype,rounding", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_in_place(kernels, divergence, temperature, dtype, rounding):
    """Every row is read to its end before it is overwritten, whatever the order of the threads."""
    student, teacher, target = batch(rows=300, dtype=dtype)
    objective, scales = Objective(0.3, temperature, 0.1, divergence), storage.new_scales(student)
    expected_terms, expected_gradient = terms_by_definition(student.double(), teacher.double(), target, objective)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=student, scales=scales)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=2e-6)
    scale = 1.0 if scales is None else scales.unsqueeze(-1)
    torch.testing.assert_close(student.double() / scale, expected_gradient, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("vocab", [50_257, 256_206])
@pytest.mark.parametrize("teachers", ["begin where the student's do", "begin elsewhere"])
@pytest.mark.parametrize("dtype,rounding", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_rows_that_begin_amid_16_bytes_in_place(kernels, vocab, teachers, dtype, rounding):
    """Edges are read by many threads, and overwritten by one after them all."""
    student, teacher, target = batch(rows=64, vocab=vocab, dtype=dtype)
    objective, scales = Objective(0.3, 2.0, 0.1, "js"), storage.new_scales(student)
    rows = torch.arange(0, 64, 3, device="cuda") if teachers == "begin elsewhere" else torch.arange(64, device="cuda")
    teacher, target = teacher[: len(rows)], target[: len(rows)]
    expected_terms, expected = terms_by_definition(student[rows].double(), teacher.double(), target, objective)
    terms = kernels.one_pass(student, teacher, target, objective, rows=rows, gradient=student, scales=scales)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=2e-6)
    scale = 1.0 if scales is None else scales[rows].unsqueeze(-1)
    torch.testing.assert_close(student[rows].double() / scale, expected, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_like_the_pytorch_engine(kernels, divergence):
    student, teacher, target = batch(rows=96, dtype=torch.bfloat16)
    teacher[:, 5:900] = -float("inf")
    target[:] = target.clamp(min=900)
    rows, teacher_rows = torch.arange(0, 96, 2, device="cuda"), torch.arange(48, 96, device="cuda")
    gradients = torch.zeros(2, *student.shape, device="cuda")
    mine, theirs = (
        run(
            student,
            teacher,
            target[:48],
            Objective(0.3, 2.0, 0.1, divergence),
            rows=rows,
            teacher_rows=teacher_rows,
            gradient=gradient,
        )
        for run, gradient in zip((kernels.one_pass, one_pass.one_pass), gradients)
    )
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-5)
    assert torch.equal(mine[:, AGREE], theirs[:, AGREE])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def sparse_answer(teacher, k=16, temperature=1.0):
    lprobs = torch.log_softmax(teacher.double() / temperature, dim=-1)
    best, ids = lprobs.topk(k, dim=-1)
    return SparseAnswer(ids, best.float(), lprobs.scatter(-1, ids, -float("inf")).logsumexp(dim=-1).float())


@pytest.mark.parametrize("divergence", BUCKET_DIVERGENCES)
@pytest.mark.parametrize("dtype,rounding", [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_stored_entries_in_place(kernels, divergence, dtype, rounding):
    student, teacher, target = batch(rows=300, dtype=dtype)
    answer, objective = sparse_answer(teacher, 16, 2.0), Objective(0.3, 2.0, 0.1, divergence)
    scales = storage.new_scales(student)
    expected_terms, expected = terms_by_definition(student.double(), answer, target, objective)
    terms = kernels.one_pass(student, answer, target, objective, gradient=student, scales=scales)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=1e-5)
    scale = 1.0 if scales is None else scales.unsqueeze(-1)
    torch.testing.assert_close(student.double() / scale, expected, rtol=rounding, atol=2e-6)


def test_adaptive_kl(kernels):
    """Its weights jump by a word's share of the gap where its head's mass is within rounding of mu."""
    student, teacher, target = batch(rows=100)
    objective, gradient = Objective(0.3, 2.0, 0.1, "adaptive_kl"), torch.empty_like(student)
    expected_terms, expected = terms_by_definition(student.double(), teacher.double(), target, objective)
    terms = kernels.one_pass(student, teacher, target, objective, gradient=gradient)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 50])
@pytest.mark.parametrize("dtype,rounding", [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_ranking(kernels, k, dtype, rounding):
    student, teacher, target = batch(rows=100, dtype=dtype)
    objective, scales = Objective(0.3, 2.0, 0.1, top1_rank=k), storage.new_scales(student)
    expected_terms, expected = terms_by_definition(student.double(), teacher.double(), target, objective)
    terms = engine.row_losses(student, teacher, target, objective, gradient=student, scales=scales)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=1e-5)
    scale = 1.0 if scales is None else scales.unsqueeze(-1)
    torch.testing.assert_close(student.double() / scale, expected, rtol=rounding, atol=5e-6)


@pytest.mark.parametrize("kind", ["stored entries", "ranking", "adaptive_kl"])
def test_cache_ranking_and_adaptive_kl_wait_for_nothing(kernels, kind):
    student, teacher, target = batch(dtype=torch.bfloat16)
    answer = sparse_answer(teacher) if kind == "stored entries" else teacher
    divergence = "adaptive_kl" if kind == "adaptive_kl" else "forward_kl"
    objective = Objective(0.3, 1.0, 0.1, divergence, {}, 5 if kind == "ranking" else 0)
    assert kernels.supports(student, answer, objective)
    gradient = torch.empty_like(student)
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            engine.row_losses(student, answer, target, objective, gradient=gradient)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_engine_runs_the_kernels_and_waits_for_nothing(kernels, monkeypatch):
    calls = []

    def seen(name):
        original = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, **kw: calls.append(name) or original(*args, **kw))

    seen("one_pass")
    seen("scale_")
    student, teacher, target = batch(dtype=torch.bfloat16)
    rows, factor = torch.arange(len(target), device="cuda"), torch.tensor(128.0, device="cuda")
    arguments = dict(rows=rows, teacher_rows=rows, gradient=torch.empty_like(student))
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            engine.row_losses(student, teacher, target, Objective(0.3, 2.0, 0.1), **arguments)
            engine.scale_(arguments["gradient"], factor)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert calls == ["one_pass", "scale_"] * 2


def test_engine_leaves_the_rest_to_pytorch(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "one_pass", None)  # calling it would raise
    student, teacher, target = batch(rows=4, vocab=1000)
    for logits, objective in (
        (student.double(), Objective(0.3)),
        (student, Objective(0.3, top1_rank=100)),
    ):
        assert torch.isfinite(engine.row_losses(logits, teacher, target, objective)).all()


@pytest.mark.parametrize("width", [1000, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scale(kernels, dtype, width):
    tensor = torch.randn(3000, width, device="cuda").to(dtype)
    for value in (1.0, 1.0 + 2**-10, 0.5):
        expected = (tensor.float() * value).to(dtype)
        kernels.scale_(tensor, torch.tensor(value, device="cuda"))
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_memory_in_place(kernels, divergence):
    """Nothing of the size (tokens, vocab) is made."""
    student, teacher, target = batch(rows=1024, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.one_pass(student, teacher, target, Objective(0.3, 2.0, 0.1, divergence), gradient=student)
    assert torch.cuda.max_memory_allocated() - before <= 0.02 * student.numel() * student.element_size()
