"""R-Drop: the symmetric KL between two passes of a student, and what two passes do to everything else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

from kd_plugin.distill.distiller import Distiller
from kd_plugin.distill.student import Student
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.losses.engine.two_passes import symmetric_kl
from kd_plugin.models import packed
from tests.reference import loss64, symmetric_kl64
from tests.unit.test_criterion import PAD, TARGET, TEACHER, VOCAB, Logits, Model, criterion_of, packed_criterion

KEPT = TARGET.view(-1).ne(PAD)


class TwoPasses(Model):
    """A student whose two passes differ as dropout would make them differ: by a mask that is the pass's own."""

    def __init__(self, logits, factors):
        super().__init__(logits)
        self.factors, self.calls = factors, 0

    def forward(self, src_tokens, src_lengths, prev_output_tokens):
        factor = self.factors[self.calls % 2] if self.training else 1.0
        self.calls += 1
        return self.logits * factor, None


def setup(factors=None, teacher=TEACHER, **flags):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*TARGET.shape, VOCAB, generator=generator) * 2
    if factors is None:
        factors = [torch.rand(*TARGET.shape, VOCAB, generator=generator) + 0.5 for _ in range(2)]
    model = TwoPasses(logits, factors)
    task = SimpleNamespace(target_dictionary=Dictionary(), num_updates=0)
    task.teacher = None if teacher is None else Counting(teacher.reshape(-1, VOCAB))
    tokens = torch.zeros(TARGET.shape, dtype=torch.int64)
    net_input = {"src_tokens": tokens, "src_lengths": tokens[:, 0], "prev_output_tokens": tokens}
    sample = {"id": torch.arange(10, 13), "net_input": net_input, "target": TARGET, "ntokens": 9}
    return model, criterion_of(task, **flags), sample


class Counting(Logits):
    asked = 0

    def answer(self, batch, request):
        self.asked += 1
        return super().answer(batch, request)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("inplace", ["auto", "on", "off"])
def test_value_and_gradient_match_the_reference(alpha, prefix, inplace):
    """CE and KD the mean of both passes, plus the symmetric KL; logged likewise, in sums over the same nine tokens."""
    flags = dict(kd_alpha=alpha, kd_temperature=2.0, kd_rdrop=3.0, ignore_prefix_size=prefix, kd_inplace=inplace)
    model, criterion, sample = setup(**flags)
    loss, sample_size, log = criterion.train()(model.train(), sample)
    loss.backward()
    assert model.calls == 2 and criterion.task.teacher.asked == 1 and sample_size == 9

    target = TARGET.clone()
    target[:, :prefix] = PAD
    kept = target.view(-1).ne(PAD)
    logits = model.logits.detach().double().requires_grad_()
    passes = [(logits * factor.double()).view(-1, VOCAB) for factor in model.factors]
    terms = [loss64(one, TEACHER.view(-1, VOCAB), target.view(-1), alpha, 2.0, 0.1, PAD) for one in passes]
    means = [0.5 * (first + second) for first, second in zip(*terms)]
    between = symmetric_kl64(passes[0][kept], passes[1][kept])
    total = means[0] + 3.0 * between
    total.backward()
    expected = dict(zip(("ce_loss", "nll_loss", "kd_loss"), means[1:]), loss=total, rdrop_loss=between)
    for name, value in expected.items():
        assert float(log[name]) == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    assert log["n_counted"] == log["n_distilled"] == int(kept.sum()) and log["n_batches"] == 1
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-5, atol=1e-6)


def test_without_a_teacher_it_is_cross_entropy_and_the_symmetric_kl():
    model, criterion, sample = setup(teacher=None, kd_alpha=1.0, kd_rdrop=2.0)
    loss, _, log = criterion.train()(model.train(), sample)
    loss.backward()
    logits = model.logits.detach().double().requires_grad_()
    passes = [(logits * factor.double()).view(-1, VOCAB) for factor in model.factors]
    ce = sum(loss64(one, one.detach(), TARGET.view(-1), 1.0, 1.0, 0.1, PAD)[0] for one in passes) / 2
    total = ce + 2.0 * symmetric_kl64(passes[0][KEPT], passes[1][KEPT])
    total.backward()
    assert float(loss) == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-5, atol=1e-6)
    assert not log.keys() & {"kd_loss", "kd_alpha"}


def test_validation_is_one_pass_with_the_same_nll_as_without_it():
    results = []
    for weight in (0.0, 5.0):
        model, criterion, sample = setup(kd_alpha=0.3, kd_rdrop=weight)
        loss, _, log = criterion.eval()(model.eval(), sample)
        assert model.calls == 1 and "rdrop_loss" not in log
        results.append((float(loss), float(log["nll_loss"]), log["ntokens"]))
    assert results[0] == results[1]


def test_the_sample_is_left_as_it_is():
    model, criterion, sample = setup(kd_rdrop=1.0)
    before = copy.deepcopy(sample)
    criterion.train()(model.train(), sample)
    assert sample.keys() == before.keys() and sample["ntokens"] == before["ntokens"]
    assert torch.equal(sample["target"], before["target"]) and torch.equal(sample["id"], before["id"])
    for name, tensor in before["net_input"].items():
        assert torch.equal(sample["net_input"][name], tensor), name


def test_two_equal_passes_add_nothing():
    model, criterion, sample = setup(factors=[1.0, 1.0], kd_alpha=0.3, kd_rdrop=7.0)
    loss, _, log = criterion.train()(model.train(), sample)
    loss.backward()
    other, plain, _ = setup(factors=[1.0, 1.0], kd_alpha=0.3)
    expected, _, _ = plain.train()(other.train(), sample)
    expected.backward()
    assert float(log["rdrop_loss"]) == 0.0 and float(loss) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(model.logits.grad, other.logits.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["batch", "global"])
def test_selection_orders_tokens_by_the_mean_of_both_passes(rule):
    model, criterion, sample = setup(kd_alpha=0.3, kd_rdrop=1.0, kd_selection=rule, kd_select_ratio=0.4)
    loss, _, log = criterion.train()(model.train(), sample)
    loss.backward()
    logits, flat = model.logits.detach().double().requires_grad_(), TARGET.view(-1)
    passes = [(logits * factor.double()).view(-1, VOCAB) for factor in model.factors]
    nll = sum(torch.nn.functional.cross_entropy(one, flat, reduction="none") for one in passes).detach()
    chosen = (nll >= nll[KEPT].sort(descending=True).values[3]) & KEPT
    terms = [loss64(one, TEACHER.view(-1, VOCAB), flat, 0.3, 1.0, 0.1, PAD, distilled=chosen)[0] for one in passes]
    total = sum(terms) / 2 + symmetric_kl64(passes[0][KEPT], passes[1][KEPT])
    total.backward()
    assert int(log["n_distilled"]) == 4 and float(loss) == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-5, atol=1e-6)
    if rule == "global":
        assert criterion.distiller.selection.queue.numel() == 9  # not 18: a token enters once


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_students_of_all_kinds_give_the_same(fused, pack, dictionaries, tmp_path, monkeypatch):
    """With --kd-fused-head, --kd-packed-student and both: the loss and gradients of the plain student, which differ
    from the reference's only by dropout; here it is a factor on the embeddings, the same for every kind."""
    if pack and not packed.AVAILABLE:
        pytest.skip("torch < 2.2: no student is packed")
    results, of_student = [], Student.__call__
    for kinds in ((False, False), (fused, pack)):
        student, criteria, sample = packed_criterion(dictionaries, tmp_path, kd_alpha=0.3, kd_rdrop=2.0)
        bias = torch.nn.Parameter(torch.linspace(-1, 1, 32))
        student.decoder.output_projection.bias = bias
        criterion = criteria[kinds[1]].train()
        criterion.student.fused_head = kinds[0]
        calls = []

        def call(self, model, *rest, calls=calls):
            calls.append(0)
            model.decoder.embed_scale = len(calls)
            return of_student(self, model, *rest)

        monkeypatch.setattr(Student, "__call__", call)
        loss, _, log = criterion(student, sample)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
        results.append((gradients, {name: float(value) for name, value in log.items()}))
    (expected, expected_log), (found, log) = results
    assert log["rdrop_loss"] > 1e-3 and log == pytest.approx(expected_log, rel=1e-5, abs=1e-5)
    assert found.keys() == expected.keys() and "decoder.output_projection.bias" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


def pair(dtype, fused, vocab=70, tokens=11, size=3.0):
    """Two passes over the same rows, their parameters, and float64 logits of the same numbers."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: (torch.randn(*shape, generator=generator) * size).to(dtype).requires_grad_()  # noqa: E731
    if not fused:
        rows = torch.arange(tokens)[torch.arange(tokens) % 3 != 0]
        others = torch.arange(tokens)[torch.arange(tokens) % 3 == 0]
        leaves = [draw(tokens, vocab), draw(tokens, vocab)]
        return [StudentLogits(z, rows, others) for z in leaves], leaves, lambda z: [one[rows] for one in z]
    leaves = [draw(tokens, 4), draw(tokens, 4), draw(vocab, 4), draw(vocab)]
    first, second, weight, bias = leaves
    passes = [StudentFeatures(one, weight, bias) for one in (first, second)]
    return passes, leaves, lambda z: [one @ z[2].t() + z[3] for one in z[:2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_symmetric_kl_matches_float64_in_every_dtype(dtype, fused, monkeypatch):
    """In fp16 and bf16 too, as the trainer's loss scaling would ask for it; chunks of a few rows."""
    monkeypatch.setattr("kd_plugin.losses.engine.two_passes.rows_per_chunk", lambda *_: 3)
    monkeypatch.setattr("kd_plugin.losses.engine.two_passes.projected_rows", lambda *_: 5)
    passes, leaves, logits_of = pair(dtype, fused, size=1.0 if fused else 3.0)
    value, of_rows = symmetric_kl(*passes)
    (value * 128).backward()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    if fused and dtype in (torch.bfloat16, torch.float16):  # the projection rounds its logits; the rest is exact
        with torch.no_grad():
            rounded = [(logits - logits.to(dtype).double()).detach() for logits in logits_of(exact)]
    else:
        rounded = [0.0, 0.0]
    ours = [logits - error for logits, error in zip(logits_of(exact), rounded)]
    expected = symmetric_kl64(*ours)
    (expected * 128).backward()
    loose = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert float(value) == pytest.approx(expected.item(), rel=loose)
    assert float(of_rows.sum()) == pytest.approx(float(value), rel=1e-5)
    for found, wanted in zip(leaves, exact):
        largest = wanted.grad.abs().max()
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=loose, atol=float(loose * largest))


def test_small_gradients_survive_fp16():
    """Probabilities of 1e-6: an fp16 gradient without scaling would be 0 for nearly all of them."""
    generator = torch.Generator().manual_seed(1)
    logits = [(0.2 * torch.randn(4, 50_000, generator=generator)).half().requires_grad_() for _ in range(2)]
    passes = [StudentLogits(z, torch.arange(4), torch.arange(0)) for z in logits]
    (symmetric_kl(*passes)[0] * 1024).backward()
    exact = [z.detach().double().requires_grad_() for z in logits]
    (symmetric_kl64(*exact) * 1024).backward()
    for found, wanted in zip(logits, exact):
        error = (found.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert error < 2e-3


def test_masked_symbols_are_no_infinity():
    logits = [torch.randn(3, 8, dtype=torch.float64).requires_grad_() for _ in range(2)]
    masked = [z.index_fill(1, torch.tensor([2, 5]), -torch.inf) for z in logits]
    value, _ = symmetric_kl(*(StudentLogits(z, torch.arange(3), torch.arange(0)) for z in masked))
    value.backward()
    kept = [0, 1, 3, 4, 6, 7]
    exact = [z.detach()[:, kept].requires_grad_() for z in logits]
    expected = symmetric_kl64(*exact)
    expected.backward()
    torch.testing.assert_close(value, expected)
    for found, wanted in zip(logits, exact):
        torch.testing.assert_close(found.grad[:, kept], wanted.grad)


def test_batch_of_padding_alone_gives_zero():
    model, criterion, sample = setup(kd_rdrop=1.0)
    sample["target"] = torch.full_like(TARGET, PAD)
    loss, _, log = criterion.train()(model.train(), sample)
    loss.backward()
    assert loss.item() == 0.0 and float(log["rdrop_loss"]) == 0.0
    assert torch.equal(model.logits.grad, torch.zeros_like(model.logits))


def test_not_finite_student_is_named():
    model, criterion, sample = setup(kd_rdrop=1.0)
    model.logits.data[1, 2, 3] = float("nan")
    with pytest.raises(KDPluginError, match=r"rdrop_loss not finite at update 1: .*sample ids \[11\]"):
        criterion.train()(model.train(), sample)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_values_out_of_range_are_refused_by_flag(value):
    with pytest.raises(KDPluginError, match=f"--kd-rdrop {value}"):
        setup(kd_rdrop=value)


def test_find_unused_parameters_is_refused_by_name():
    model, criterion, sample = setup(kd_rdrop=1.0)
    model.find_unused_parameters = True
    with pytest.raises(KDPluginError, match="--kd-rdrop: with --find-unused-parameters"):
        criterion.train()(model.train(), sample)
    criterion.eval()(model.eval(), sample)


def test_the_signature_tells_it_and_zero_leaves_no_trace():
    assert isinstance(setup()[1].distiller, Distiller)
    assert "|select:all|rdrop:5|teacher:" in setup(kd_rdrop=5.0)[1].distiller.signature
    assert setup(kd_rdrop=0.0)[1].distiller.signature == setup()[1].distiller.signature
    assert [term.name for term in setup()[1].distiller.terms] == ["tokens"]
