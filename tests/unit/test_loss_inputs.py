"""What distillation_loss refuses: a KDPluginError that names the argument, and never a crash or a wrong number."""

import math

import pytest
import torch
from torch import nn

from kd_plugin.errors import KDPluginError
from kd_plugin.losses import distillation_loss

pytestmark = pytest.mark.usefixtures("cpu_engine")


def given(**change):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 9, generator=generator) for _ in range(2))
    return {"student_logits": student, "teacher_logits": teacher, "target": torch.arange(5), "alpha": 0.5, **change}


ONES = torch.ones(5, 9)


@pytest.mark.parametrize(
    "change,named",
    [
        (dict(target=torch.arange(5.0)), "target must be int64.*float32"),
        (dict(target=torch.arange(5, dtype=torch.uint8)), "target must be int64.*uint8"),
        (dict(target=torch.ones(5, dtype=torch.bool)), "target must be int64.*bool"),
        (dict(target=torch.arange(5, dtype=torch.int32)), r"target must be int64.*Remedy: target.long\(\)"),
        (dict(target=torch.zeros(5, 1, dtype=torch.long)), r"target must be \(tokens,\).*\(5, 1\)"),
        (dict(target=torch.zeros((), dtype=torch.long)), r"target must be \(tokens,\)"),
        (dict(target=[0, 1, 2, 3, 4]), "target must be a torch.Tensor; got list"),
        (dict(target=torch.arange(5.0, requires_grad=True)), "target must be int64"),
        (dict(student_logits=torch.ones(5, 9, dtype=torch.long)), "student_logits must be fp16.*int64"),
        (dict(teacher_logits=torch.ones(5, 9, dtype=torch.cfloat)), "teacher_logits must be fp16.*complex64"),
        (dict(student_logits=ONES.numpy()), "student_logits must be a torch.Tensor; got ndarray"),
        (dict(teacher_logits=None), "teacher_logits must be a torch.Tensor; got NoneType"),
        (dict(student_logits=ONES.to_sparse()), "student_logits must be a dense tensor"),
        (dict(teacher_logits=ONES.to_sparse_csr()), "teacher_logits must be a dense tensor"),
        (dict(teacher_logits=ONES.to("meta")), "teacher_logits is on the meta device"),
        (dict(student_logits=ONES.to("meta"), teacher_logits=ONES.to("meta")), "student_logits is on the meta device"),
        (dict(target=torch.arange(5, device="meta")), "target is on the meta device"),
        (dict(student_logits=ONES[:, :1], teacher_logits=ONES[:, :1], target=torch.zeros(5).long()), "at least 2"),
        (dict(student_logits=ONES[:, :0], teacher_logits=ONES[:, :0], target=torch.zeros(5).long()), "at least 2"),
        (dict(student_logits=torch.ones(1, 5, 9), teacher_logits=torch.ones(1, 5, 9)), r"\(tokens, vocab\)"),
        (dict(top1_rank=2.0), "top1_rank must be 0.*whole number.*2.0"),
        (dict(top1_rank=1.5), "top1_rank"),
        (dict(top1_rank=True), "top1_rank"),
        (dict(top1_rank="3"), "top1_rank"),
        (dict(top1_rank=None), "top1_rank"),
        (dict(top1_rank=-1), "top1_rank"),
        (dict(top1_rank=10), "top1_rank 10 exceeds the vocabulary size, 9"),
        (dict(alpha="0.5"), "alpha must be a number; got '0.5'"),
        (dict(alpha=None), "alpha must be a number"),
        (dict(alpha=True), "alpha must be a number"),
        (dict(alpha=0.5j), "alpha must be a number"),
        (dict(alpha=torch.tensor(0.5)), r"alpha must be a number.*Remedy: float\(alpha\)"),
        (dict(alpha=math.inf), "alpha must lie"),
        (dict(temperature="2"), "temperature must be a number"),
        (dict(temperature=math.nan), "temperature must be a finite number"),
        (dict(temperature=-math.inf), "temperature must be a finite number"),
        (dict(temperature=1e-30), "temperature must lie"),
        (dict(temperature=1e30), "temperature must lie"),
        (dict(label_smoothing=math.nan), "label_smoothing"),
        (dict(label_smoothing="0.1"), "label_smoothing must be a number"),
        (dict(divergence=None), "divergence None is not one of"),
        (dict(divergence=["js"]), "divergence"),
        (dict(divergence="js", js_beta=math.nan), "js_beta"),
        (dict(divergence="js", js_beta="0.5"), "js_beta must be a number"),
    ],
)
def test_an_argument_that_cannot_be_is_named(change, named):
    with pytest.raises(KDPluginError, match=named):
        distillation_loss(**given(**change))


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    change = dict(alpha=numpy.float32(0.5), temperature=numpy.int64(2), top1_rank=numpy.int64(3))
    expected = distillation_loss(**given(alpha=0.5, temperature=2.0, top1_rank=3))
    assert distillation_loss(**given(**change)).loss == expected.loss


@pytest.mark.skipif(not hasattr(torch, "func"), reason="torch < 2.0 has no torch.func")
@pytest.mark.parametrize("transform", ["vmap", "grad", "vjp", "jvp", "jacrev", "hessian"])
def test_transforms_of_torch_func_are_refused(transform):
    arguments = given()
    student = arguments.pop("student_logits")

    def loss(logits):
        return distillation_loss(logits, **arguments).loss

    runs = {
        "vmap": lambda: torch.func.vmap(loss)(student.expand(2, 5, 9)),
        "vjp": lambda: torch.func.vjp(loss, student),
        "jvp": lambda: torch.func.jvp(loss, (student,), (student,)),
    }
    with pytest.raises(KDPluginError, match="student_logits: torch.func transforms"):
        runs.get(transform, lambda: getattr(torch.func, transform)(loss)(student))()


def test_forward_mode_derivatives_are_refused():
    arguments = given()
    with torch.autograd.forward_ad.dual_level():
        arguments["student_logits"] = torch.autograd.forward_ad.make_dual(arguments["student_logits"], ONES)
        with pytest.raises(KDPluginError, match="forward-mode"):
            distillation_loss(**arguments)


def test_fake_tensors_are_refused():
    fake = pytest.importorskip("torch._subclasses.fake_tensor")
    with fake.FakeTensorMode():
        with pytest.raises(KDPluginError, match="fake tensor"):
            distillation_loss(torch.ones(5, 9), torch.ones(5, 9), torch.zeros(5, dtype=torch.long), alpha=0.5)


def test_in_place_over_memory_that_others_need_is_refused():
    logits = ONES.clone().requires_grad_() * 1
    with pytest.raises(KDPluginError, match="share memory"):
        distillation_loss(**given(student_logits=logits, teacher_logits=logits.detach()), inplace=True)
    row = torch.ones(1, 9, requires_grad=True) * 1
    with pytest.raises(KDPluginError, match="share memory"):
        distillation_loss(**given(student_logits=row.expand(5, 9)), inplace=True)
    assert distillation_loss(**given(student_logits=row.expand(5, 9))).loss.isfinite()


@pytest.mark.parametrize("inplace", [False, True])
def test_strided_logits_give_what_contiguous_ones_give(inplace):
    arguments, gradients = given(), []
    for strided in (False, True):
        leaf = arguments["student_logits"].clone().requires_grad_()
        logits = (leaf.t().contiguous().t() if strided else leaf) * 1
        teacher = arguments["teacher_logits"].t().contiguous().t() if strided else arguments["teacher_logits"]
        target = torch.stack([arguments["target"]] * 2, dim=1)[:, 0] if strided else arguments["target"]
        distillation_loss(logits, teacher, target, alpha=0.5, inplace=inplace).loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_parameters_are_tensors_too():
    """Logits that are a leaf of a model."""
    logits = nn.Parameter(given()["student_logits"])
    distillation_loss(**given(student_logits=logits)).loss.backward()
    assert logits.grad.abs().sum() > 0
