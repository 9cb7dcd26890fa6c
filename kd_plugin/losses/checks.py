"""Checks of the arguments of `distillation_loss`, made before any computation; errors name the argument."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.divergences import DIVERGENCES

LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TEMPERATURES = (1e-6, 1e6)  # fp32 can represent their squares and inverses


def checked_objective(objective: Objective) -> Objective:
    """The objective with plain Python numbers. Raises KDPluginError for a non-number or a value out of range."""
    alpha, temperature, label_smoothing, divergence, parameters, top1_rank = objective
    alpha = _number("alpha", alpha)
    if not 0.0 <= alpha <= 1.0:
        raise KDPluginError(f"alpha must lie in [0, 1]: 1 is cross-entropy alone, 0 the teacher alone; got {alpha}")
    temperature = _number("temperature", temperature)
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise KDPluginError(f"temperature must be a finite number above 0; got {temperature}")
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise KDPluginError(
            f"temperature must lie in [{TEMPERATURES[0]:g}, {TEMPERATURES[1]:g}], beyond which fp32 overflows; got "
            f"{temperature}"
        )
    label_smoothing = _number("label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing < 1.0:
        raise KDPluginError(f"label_smoothing must lie in [0, 1); got {label_smoothing}")
    if not isinstance(divergence, str) or divergence not in DIVERGENCES:
        raise KDPluginError(f"divergence {divergence!r} is not one of {', '.join(DIVERGENCES)}")
    parameters = {name: _number(name, value) for name, value in parameters.items()}
    for name, value in parameters.items():
        if not 0.0 < value < 1.0:
            raise KDPluginError(f"{name} must lie in (0, 1); got {value}")
    if isinstance(top1_rank, bool) or not isinstance(top1_rank, Integral) or top1_rank < 0:
        raise KDPluginError(
            f"top1_rank must be 0 (off) or a whole number, how many best entries to rank; got {top1_rank!r}"
        )
    return Objective(alpha, temperature, label_smoothing, divergence, parameters, int(top1_rank))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        remedy = f". Remedy: float({name})" if isinstance(value, Tensor) else ""
        raise KDPluginError(f"{name} must be a number; got {value!r} ({type(value).__name__}){remedy}")
    return float(value)


def check_tensors(student_logits: Any, teacher_logits: Any, target: Any, top1_rank: int = 0) -> None:
    """Raises KDPluginError for tensors that the one-pass code cannot read or that do not fit together."""
    tensors = {"student_logits": student_logits, "teacher_logits": teacher_logits, "target": target}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    for name in ("student_logits", "teacher_logits"):
        if tensors[name].dtype not in LOGITS_DTYPES:
            raise KDPluginError(
                f"{name} must be fp16, bf16, fp32 or float64; got {tensors[name].dtype}. Remedy: {name}.float()"
            )
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise KDPluginError(
            "student_logits and teacher_logits must both be (tokens, vocab); got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if target.shape != student_logits.shape[:1]:
        raise KDPluginError(
            f"target must be (tokens,) = ({student_logits.size(0)},) to fit the logits; got {tuple(target.shape)}"
        )
    if target.dtype != torch.int64:
        raise KDPluginError(f"target must be int64, one index per token; got {target.dtype}. Remedy: target.long()")
    vocab = student_logits.size(1)
    if vocab < 2:
        raise KDPluginError(f"the vocabulary must have at least 2 entries; got {vocab}")
    if top1_rank > vocab:
        raise KDPluginError(f"top1_rank {top1_rank} exceeds the vocabulary size, {vocab}")
    devices = {name: tensor.device for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise KDPluginError(f"the tensors must be on one device; {where}. Remedy: .to(student_logits.device)")


def check_inplace(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raises KDPluginError if the gradient cannot overwrite the student's logits."""
    if any(stride == 0 and size > 1 for stride, size in zip(student_logits.stride(), student_logits.shape)):
        raise KDPluginError("inplace: rows of student_logits share memory (an expanded tensor). Remedy: inplace=False")
    if student_logits.numel() > 0 and _storage(student_logits) == _storage(teacher_logits):
        raise KDPluginError(
            "inplace: student_logits and teacher_logits share memory, and the teacher's would be overwritten. Remedy: "
            "inplace=False, or a copy"
        )


def _storage(tensor: Tensor) -> int:
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()  # torch < 2
    return int(storage.data_ptr())


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise KDPluginError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
    if _is_transformed(tensor):
        raise KDPluginError(
            f"{name}: torch.func transforms (vmap, grad, jvp) do not work with the loss, which computes its own "
            "gradient. Remedy: loss.backward() or torch.autograd.grad; instead of vmap, stack all batches as "
            "(tokens, vocab)"
        )
    if tensor.is_meta or hasattr(tensor, "fake_mode"):
        raise KDPluginError(f"{name} is on the meta device or a fake tensor, and has no values. Remedy: a real tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or getattr(tensor, "is_nested", False):
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.layout == torch.strided else tensor.layout
        raise KDPluginError(f"{name} must be a dense tensor; got a {kind} one. Remedy: {name}.to_dense() or similar")
    if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
        raise KDPluginError(
            f"{name}: the loss has no forward-mode derivatives. Remedy: loss.backward() or torch.autograd.grad"
        )


def _is_transformed(tensor: Tensor) -> bool:
    """Whether a torch.func transform has wrapped the tensor."""
    functorch = getattr(torch._C, "_functorch", None)
    names = ("is_batchedtensor", "is_gradtrackingtensor", "is_functionaltensor")
    checks = [getattr(functorch, name, None) for name in names]
    return any(check is not None and check(tensor) for check in checks)
