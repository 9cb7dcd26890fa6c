"""The engine around the arithmetic: where the gradient goes, how it is scaled, what it costs, what it falls back on."""

import math
import time
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd_plugin.compat import TORCH_VERSION
from kd_plugin.errors import KDPluginError
from kd_plugin.losses import DIVERGENCES, distillation_loss, divergences
from kd_plugin.losses.answer import ProjectedAnswer, TeacherAnswer
from kd_plugin.losses.best import largest, top_indices
from kd_plugin.losses.definition import Objective, terms_by_definition
from kd_plugin.losses.divergences import Divergence
from kd_plugin.losses.engine import memory
from kd_plugin.losses.engine import one_pass as engine_of_chunks
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.engine.inplace import may_overwrite
from tests.reference import loss64

pytestmark = pytest.mark.usefixtures("cpu_engine")

ROWS, VOCAB, DIMENSION = 13, 90, 8


def drawn(*shape, seed=0, dtype=torch.float64, scale=2.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def problem(dtype=torch.float64, rows=ROWS, vocab=VOCAB):
    target = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(9))
    return drawn(rows, vocab, seed=1, dtype=dtype), drawn(rows, vocab, seed=2, dtype=dtype), target


@pytest.fixture
def small_chunks(monkeypatch):
    """Three rows a chunk, so that a small batch has several, and a last one of another size."""
    monkeypatch.setitem(engine_of_chunks.CHUNK_BYTES, "cpu", 3 * VOCAB * 8)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_in_place_writes_the_same_gradient_over_the_logits(divergence, dtype, temperature, small_chunks):
    student, teacher, target = problem(dtype)
    target[[0, 4, 5, 12]] = 1  # padding, at both ends and inside: chunks with gaps
    arguments = dict(alpha=0.3, temperature=temperature, label_smoothing=0.1, divergence=divergence, padding_idx=1)
    leaf = student.clone().requires_grad_()
    expected = distillation_loss(leaf, teacher, target, **arguments)
    expected.loss.backward()

    leaf_in_place = student.clone().requires_grad_()
    logits = leaf_in_place * 1
    kept_teacher = teacher.clone()
    result = distillation_loss(logits, teacher, target, **arguments, inplace=True)
    assert not torch.equal(logits.detach(), student)
    result.loss.backward()
    assert torch.equal(leaf_in_place.grad, leaf.grad) and torch.equal(teacher, kept_teacher)
    assert all(torch.equal(a, b) for a, b in zip(result, expected))


@pytest.mark.parametrize("factor", [0.5, 3.0, 1 / 3])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [None, 5])  # 5: more tokens than symbols
def test_gradient_is_scaled_by_what_comes_after_the_loss(factor, inplace, dtype, vocab, small_chunks):
    student, teacher, target = problem(dtype, *([] if vocab is None else [400, vocab]))
    gradients = []
    for scale in (1.0, factor):
        leaf = student.clone().requires_grad_()
        (distillation_loss(leaf * 1, teacher, target, alpha=0.4, inplace=inplace).loss * scale).backward()
        gradients.append(leaf.grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(gradients[1], gradients[0] * factor, rtol=tolerance, atol=tolerance * 1e-2)


def test_fp16_gradients_under_loss_scaling_keep_what_plain_fp16_loses():
    """A scale of 2**14 brings entries of 1e-8 into fp16's range: they must not have been rounded away before."""
    student, teacher, target = problem(torch.float16, rows=4)
    student, teacher = student * 4, teacher * 4
    leaf = student.clone().requires_grad_()
    (distillation_loss(leaf, teacher, target, alpha=0.5).loss * 2.0**14).backward()
    _, expected = terms_by_definition(student.double(), teacher.double(), target, Objective(0.5))
    small = (expected.abs() < 1e-7) & (expected.abs() > 2e-8)
    assert small.sum() > 10
    scaled = leaf.grad.double() / 2.0**14
    torch.testing.assert_close(scaled[small], expected[small], rtol=0.05, atol=0)
    torch.testing.assert_close(scaled, expected, rtol=2e-3, atol=1e-8)


def test_graph_may_be_kept_and_is_otherwise_used_once():
    student, teacher, target = problem()
    leaf = student.clone().requires_grad_()
    loss = distillation_loss(leaf, teacher, target, alpha=0.4).loss
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 2, leaf)
    torch.testing.assert_close(second, 2 * first)
    if not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"):
        return  # this torch does not tell that a graph is used once: the gradient is copied, and may be had again
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_second_derivatives_are_refused_and_not_wrong():
    student, teacher, target = problem()
    leaf = student.clone().requires_grad_()
    loss = distillation_loss(leaf * 2, teacher, target, alpha=0.4).loss
    with pytest.raises(KDPluginError, match="no second derivatives"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_accumulated_backwards_add_up():
    """--update-freq: several losses, one gradient."""
    student, teacher, target = problem()
    leaf = student.clone().requires_grad_()
    for part in (slice(0, 5), slice(5, None)):
        distillation_loss(leaf[part] * 1, teacher[part], target[part], alpha=0.4, inplace=True).loss.backward()
    whole = student.clone().requires_grad_()
    distillation_loss(whole, teacher, target, alpha=0.4).loss.backward()
    torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-12, atol=1e-12)


def test_autocast_does_not_reach_the_arithmetic():
    student, teacher, target = problem(torch.bfloat16)
    outside = distillation_loss(student, teacher, target, alpha=0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distillation_loss(student, teacher, target, alpha=0.4)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(inside, outside))


def test_activation_checkpointing_around_the_loss():
    from torch.utils.checkpoint import checkpoint

    student, teacher, target = problem()
    weight = drawn(VOCAB, VOCAB, seed=4)
    gradients = []
    for checkpointed in (False, True):
        leaf = student.clone().requires_grad_()

        def block(x):
            return distillation_loss(x @ weight, teacher, target, alpha=0.4, inplace=True).loss

        loss = checkpoint(block, leaf, use_reentrant=False) if checkpointed else block(leaf)
        loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.enable_grad])
def test_without_a_gradient_nothing_is_written(grad_mode):
    """Validation; and logits that need no gradient."""
    student, teacher, target = problem()
    logits = student.clone().requires_grad_(grad_mode is torch.no_grad)
    with grad_mode():
        loss = distillation_loss(logits, teacher, target, alpha=0.4, inplace=True).loss
    assert not loss.requires_grad and torch.equal(logits.detach(), student)


def test_overwriting_what_another_backward_needs_is_an_error_and_not_a_wrong_gradient():
    student, teacher, target = problem()
    leaf = student.clone().requires_grad_()
    logits = leaf.tanh()  # its backward reads its output
    loss = distillation_loss(logits, teacher, target, alpha=0.4, inplace=True).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_auto_overwrites_projections_alone():
    linear, bias = torch.nn.Linear(DIMENSION, VOCAB, bias=False), torch.nn.Linear(DIMENSION, VOCAB)
    x = torch.randn(2, 5, DIMENSION, requires_grad=True)
    assert may_overwrite(linear(x).reshape(-1, VOCAB)) and may_overwrite(bias(x).view(-1, VOCAB))
    assert may_overwrite(linear(x.transpose(0, 1)).transpose(0, 1).reshape(-1, VOCAB))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert may_overwrite(bias(x).view(-1, VOCAB))
    for other in (linear(x).tanh(), linear(x).softmax(-1), linear(x) * 2, torch.randn(5, VOCAB, requires_grad=True)):
        assert not may_overwrite(other.reshape(-1, VOCAB))
    assert not may_overwrite(linear(x)[0].t())
    model = torch.nn.Sequential(linear)
    assert may_overwrite(model(x), model)
    linear.register_forward_hook(lambda *_: None)  # may have kept the logits
    assert not may_overwrite(model(x), model)


class NewBytes(TorchDispatchMode):
    """The most bytes that tensors made inside, other than views of those given, held at one time."""

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.tensors, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.tensors[id(tensor)] = (weakref.ref(tensor), storage.data_ptr(), storage.nbytes())
        self.tensors = {key: entry for key, entry in self.tensors.items() if entry[0]() is not None}
        alive = {pointer: size for _, pointer, size in self.tensors.values() if pointer not in self.given}
        self.peak = max(self.peak, sum(alive.values()))
        return result


@pytest.mark.skipif(not hasattr(torch.Tensor, "untyped_storage"), reason="torch < 2.0 cannot tell storages apart")
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("inplace", [True, False])
def test_memory_beside_logits_and_gradient_is_ten_chunks(divergence, inplace, monkeypatch):
    """Whatever the number of tokens: 0.02 of the logits from 500 chunks' rows on (4,000 tokens at 32k words)."""
    vocab, rows, chunk_rows = 5000, 60, 2
    monkeypatch.setitem(engine_of_chunks.CHUNK_BYTES, "cpu", chunk_rows * vocab * 4)
    student, teacher = torch.randn(rows, vocab, requires_grad=True), torch.randn(rows, vocab)
    logits, target = student * 1, torch.zeros(rows, dtype=torch.int64)
    with NewBytes(student, logits, teacher) as new:
        loss = distillation_loss(
            logits, teacher, target, alpha=0.4, temperature=2.0, divergence=divergence, inplace=inplace
        ).loss
    row_bytes = vocab * 4
    gradient = 0 if inplace else rows * row_bytes
    assert loss.requires_grad and new.peak - gradient <= (10 * chunk_rows + 1) * row_bytes


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("kind", ["logits", "features"])
def test_selected_rows_are_distilled_and_the_others_keep_their_cross_entropy(alpha, divergence, kind, small_chunks):
    target = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(9))
    features, weight = drawn(ROWS, DIMENSION, seed=5, scale=1.0), drawn(VOCAB, DIMENSION, seed=6, scale=1.0)
    teacher = drawn(ROWS, VOCAB, seed=2)
    distilled = torch.zeros(ROWS, dtype=torch.bool)
    distilled[[0, 3, 4, 5, 11]] = True
    objective = Objective(alpha, 2.0, 0.1, divergence)

    leaf, head = features.clone().requires_grad_(), weight.clone().requires_grad_()
    answer = TeacherAnswer(teacher[distilled])
    if kind == "logits":
        student = StudentLogits(leaf @ head.t(), torch.arange(ROWS), torch.arange(0), inplace=True)
    else:
        student = StudentFeatures(leaf, head)
    loss, terms = student.loss(answer, target, objective, distilled=distilled)
    loss.backward()

    again, head_again = features.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = loss64(
        again @ head_again.t(), teacher, target, alpha, 2.0, 0.1, divergence=divergence, distilled=distilled
    )
    expected[0].backward()
    torch.testing.assert_close(loss, expected[0], rtol=1e-12, atol=1e-12)
    for column, value in zip((0, 1, 2), expected[1:]):
        torch.testing.assert_close(terms[:, column].sum(), value.detach(), rtol=1e-12, atol=1e-12)
    assert (terms[~distilled][:, 2:] == 0).all() and (terms[distilled][:, 2] > 0).all()
    torch.testing.assert_close(leaf.grad, again.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.grad, head_again.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5), (0.2, 0.0, 0.8), (0.0, 1.0)])
def test_mixture_of_teachers_at_once_and_in_pieces(shares, monkeypatch):
    """Of probabilities; also of symbols that some or all of them rule out; one's logits may lie where another's lay."""
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 4 * VOCAB * 4)
    members, expected = [], torch.zeros(ROWS, VOCAB, dtype=torch.float64)
    for i, share in enumerate(shares):
        features, weight, bias = drawn(ROWS, DIMENSION, seed=i), drawn(VOCAB, DIMENSION, seed=10 + i), drawn(VOCAB)
        bias[3] = bias[4 + i] = -torch.inf
        expected += share * (features @ weight.t() + bias).softmax(dim=-1)
        members.append((features.float(), memory.LinearHead(weight.float(), bias.float())))
    answer = ProjectedAnswer(members, [math.log(share) if share else -math.inf for share in shares])
    whole = answer.logits
    torch.testing.assert_close(whole.double().softmax(dim=-1), expected, rtol=1e-4, atol=1e-9)
    assert (whole[:, 3] == -torch.inf).all()
    sizes = []
    for at, piece in answer.pieces(ROWS, VOCAB):
        sizes.append(piece.size(0))
        torch.testing.assert_close(piece, whole[at], rtol=1e-5, atol=1e-5)
    assert sizes == [4, 4, 4, 1]


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("factor,teachers", [(1.0, 1), (1.0, 2), (64.0, 2)])
@pytest.mark.parametrize("kind", ["features", "logits", "logits, selected"])
def test_answer_that_is_projected_chunk_by_chunk(kind, dtype, tolerance, with_bias, factor, teachers, monkeypatch):
    """Several chunks, tied weights, also an ensemble's answer, a scaled loss; the student's logits at hand or not."""
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 4 * VOCAB * torch.empty(0, dtype=dtype).element_size())
    target = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(9))
    embedding = drawn(VOCAB, DIMENSION, seed=6, scale=1.0, dtype=dtype)
    bias = drawn(VOCAB, seed=7, scale=1.0, dtype=dtype) if with_bias else None
    words = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(3))
    heads = [drawn(VOCAB, DIMENSION, seed=seed, scale=1.0, dtype=dtype) for seed in (11, 12)]
    members = [
        (drawn(ROWS, DIMENSION, seed=s, scale=1.0, dtype=dtype), memory.LinearHead(h))
        for s, h in enumerate(heads[:teachers])
    ]
    answer = ProjectedAnswer(members, [-math.log(teachers)] * teachers)
    objective = Objective(0.3, 2.0, 0.1)
    expected_logits = answer.logits

    distilled = torch.arange(ROWS) % 3 > 0 if "selected" in kind else None
    asked, project = [], answer.chunk
    monkeypatch.setattr(
        answer, "chunk", lambda i, j, reuse=False, *how: (asked.append((i, j, reuse)), project(i, j, reuse, *how))[1]
    )

    def run(chunked, to):
        weight = embedding.clone().to(to).requires_grad_()
        leaf_bias = None if bias is None else bias.clone().to(to).requires_grad_()
        features = weight[words] * 0.5  # tied: the embedding is the projection
        if chunked and kind == "features":
            loss, _ = StudentFeatures(features, weight, leaf_bias).loss(answer, target, objective)
        else:
            logits = torch.nn.functional.linear(features, weight, leaf_bias)
            whole = answer if chunked else TeacherAnswer(expected_logits.to(to))
            student = StudentLogits(logits, torch.arange(ROWS), torch.arange(0))
            loss, _ = student.loss(whole, target, objective, distilled=distilled)
        (loss * factor).backward()
        return [loss, weight.grad] + ([] if bias is None else [leaf_bias.grad])

    n_asked = ROWS if distilled is None else int(distilled.sum())
    for value, expected in zip(run(True, dtype), run(False, torch.float64)):
        size = expected.abs().max().item()
        assert (value.double() - expected).abs().max().item() <= tolerance * max(1.0, size)
        assert value.dtype in (dtype, torch.float32)
    assert asked == [(i, min(i + 4, n_asked), True) for i in range(0, n_asked, 4)]


class FeaturesOnly(torch.nn.Module):
    """A student whose forward stops before its projection, as fairseq's with features_only."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(VOCAB, DIMENSION)
        self.head = torch.nn.Linear(DIMENSION, VOCAB, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        self.body = torch.nn.Linear(DIMENSION, DIMENSION)

    def forward(self, words):
        return self.body(self.embedding(words))


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_rows_that_lie_apart_change_no_number(dtype, tolerance, monkeypatch):
    """As on a GPU, where the vocabulary is odd: both sides' rows begin at 16 bytes, in every chunk."""
    monkeypatch.setitem(memory.CHUNK_BYTES, "cpu", 4 * VOCAB * torch.empty(0, dtype=dtype).element_size())
    target, vocab = torch.arange(ROWS), VOCAB - 1
    teacher = memory.LinearHead(drawn(vocab, DIMENSION, seed=1, scale=1.0, dtype=dtype))
    answer = ProjectedAnswer([(drawn(ROWS, DIMENSION, seed=2, scale=1.0, dtype=dtype), teacher)], [0.0])
    strides, project = [], memory.LinearHead.__call__
    monkeypatch.setattr(
        memory.LinearHead, "__call__", lambda *args: (strides.append((logits := project(*args)).stride(0)), logits)[1]
    )

    def run():
        features, weight = (drawn(n, DIMENSION, seed=n, scale=1.0, dtype=dtype).requires_grad_() for n in (ROWS, vocab))
        loss, terms = StudentFeatures(features, weight).loss(answer, target, Objective(0.3, 2.0, 0.1, "js"))
        (loss * 3).backward()
        return terms, features.grad, weight.grad

    expected, back_to_back = run(), set(strides)
    monkeypatch.setitem(memory.VECTOR_BYTES, "cpu", 16)
    strides.clear()
    for value, wanted in zip(run(), expected):
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)
    entries = 16 // torch.empty(0, dtype=dtype).element_size()
    assert back_to_back == {vocab} and set(strides) == {-(-vocab // entries) * entries} and len(strides) > 4


def test_rows_lie_apart_on_a_gpu_alone_and_only_where_it_helps():
    allocate, head = memory.aligned(memory.new_buffer), memory.LinearHead(torch.empty(13, 4, device="meta"))
    assert head(torch.empty(5, 4, device="meta"), allocate).stride() == (16, 1)
    assert allocate((5, 13), torch.bfloat16, torch.device("meta")).stride() == (16, 1)
    assert allocate((5, 24), torch.bfloat16, torch.device("meta")).is_contiguous()
    assert allocate((5, 13), torch.bfloat16, torch.device("cpu")).is_contiguous()
    # a chunk of rows that lie back to back begins where 16 bytes do
    assert memory.projected_rows(50257, 2, torch.device("cuda")) % 8 == 0
    assert [memory.projected_rows(2**n + 1, 2, torch.device("cuda")) for n in (25, 27)] == [3, 1]


@pytest.mark.parametrize("tied", [False, True])
def test_fused_head_behind_distributed_data_parallel(tied, tmp_path):
    """The projection is used outside of the wrapped forward: its gradient must pass through the reducer too."""
    target = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(9))
    words = torch.randint(0, VOCAB, (ROWS,), generator=torch.Generator().manual_seed(3))
    answer, objective = TeacherAnswer(drawn(ROWS, VOCAB, seed=2, dtype=torch.float32)), Objective(0.3, 2.0, 0.1)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, wrapped = FeaturesOnly(tied), torch.nn.parallel.DistributedDataParallel(FeaturesOnly(tied))
        for _ in range(3):  # the reducer rebuilds its buckets after the first, and complains of an unfinished one
            gradients = []
            for model, module in ((plain, plain), (wrapped, wrapped.module)):
                model.zero_grad()
                StudentFeatures(model(words), module.head.weight).loss(answer, target, objective)[0].backward()
                gradients.append([parameter.grad for parameter in module.parameters()])
            for one, other in zip(*gradients):
                torch.testing.assert_close(one, other)
    finally:
        # its destructor waits, with the interpreter's lock, for a thread that may still need the lock for the last
        # reduction's Python state: torch waits for ever then
        time.sleep(0.2)
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(TORCH_VERSION < (2, 1), reason="this torch has no fp16 matrix product on CPUs")
def test_fused_head_in_fp16_neither_underflows_nor_overflows():
    """A frequent word, large features: the sums of scaled gradients stay in fp16's range."""
    rows = 600
    features, weight = drawn(rows, DIMENSION, seed=5, scale=3.0, dtype=torch.float16), drawn(VOCAB, DIMENSION, seed=6)
    weight = weight.to(torch.float16)
    target, teacher = torch.full((rows,), 7), drawn(rows, VOCAB, seed=2, dtype=torch.float16)
    leaf, head = features.clone().requires_grad_(), weight.clone().requires_grad_()
    StudentFeatures(leaf, head).loss(TeacherAnswer(teacher), target, Objective(0.5))[0].backward()
    exact, exact_head = features.double().requires_grad_(), weight.double().requires_grad_()
    logits = exact @ exact_head.t()
    StudentLogits(logits, torch.arange(rows), torch.arange(0)).loss(
        TeacherAnswer(teacher.double()), target, Objective(0.5)
    )[0].backward()
    for gradient, expected in ((leaf.grad, exact.grad), (head.grad, exact_head.grad)):
        assert torch.isfinite(gradient).all()
        assert (gradient.double() - expected).norm() <= 2e-2 * expected.norm()


def test_a_new_divergence_needs_its_definition_alone(monkeypatch):
    """The five lines of CONTRIBUTING: autograd differentiates it, chunk by chunk, where it has no one-pass form."""

    def hellinger(student_lprobs, teacher_lprobs):
        return 1 - (0.5 * (student_lprobs + teacher_lprobs)).exp().sum(dim=-1)

    monkeypatch.setitem(divergences.DIVERGENCES, "hellinger", Divergence(hellinger))
    student, teacher, target = problem()
    for temperature in (1.0, 2.0):
        leaf = student.clone().requires_grad_()
        result = distillation_loss(
            leaf, teacher, target, alpha=0.3, temperature=temperature, divergence="hellinger", top1_rank=2
        )
        result.loss.backward()
        objective = Objective(0.3, temperature, 0.0, "hellinger", {}, 2)
        terms, gradient = terms_by_definition(student, teacher, target, objective)
        torch.testing.assert_close(result.kd_loss, terms[:, 2:4].sum(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-12, atol=1e-12)


def test_a_divergence_by_definition_alone_takes_the_student_first(monkeypatch):
    """One that is not symmetric: KL(p || m) of the student p and the middle m."""

    def to_the_middle(student_lprobs, teacher_lprobs):
        middle = torch.logaddexp(student_lprobs, teacher_lprobs) - math.log(2)
        return (student_lprobs.exp() * (student_lprobs - middle)).sum(dim=-1)

    monkeypatch.setitem(divergences.DIVERGENCES, "to_the_middle", Divergence(to_the_middle))
    student, teacher, target = problem()
    leaf, reference = (student.clone().requires_grad_() for _ in range(2))
    result = distillation_loss(leaf, teacher, target, alpha=0.0, divergence="to_the_middle")
    result.loss.backward()
    p, q = torch.softmax(reference, dim=-1), torch.softmax(teacher, dim=-1)
    expected = (p * (p / ((p + q) / 2)).log()).sum()
    expected.backward()
    torch.testing.assert_close(result.loss.detach(), expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(leaf.grad, reference.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
def test_one_pass_form_is_the_derivative_of_its_definition(divergence, small_chunks):
    """Every one-pass form beside autograd of the definition that stands above it."""
    student, teacher, target = problem()
    for temperature in (1.0, 1.7):
        objective = Objective(0.0, temperature, 0.0, divergence)
        gradient = torch.empty_like(student)
        terms = engine_of_chunks.one_pass(student, teacher, target, objective, gradient=gradient)
        expected_terms, expected = terms_by_definition(student, teacher, target, objective)
        torch.testing.assert_close(terms, expected_terms, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vocab", [5, 64, 129, 1000])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_top_entries_are_torchs(vocab, k):
    values = drawn(6, vocab)
    values[0] = 1.0  # ties
    assert torch.equal(values.gather(-1, top_indices(values, k)), values.topk(k, dim=-1).values)
    assert torch.equal(largest(values, k), values.topk(k, dim=-1).values)
