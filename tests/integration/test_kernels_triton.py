"""The GPU kernels through Triton's compiler, which needs no GPU."""

import subprocess
import sys

import pytest

COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from kd_plugin.losses.engine import kernels_triton

def check(kernel, constants, **types):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "fp32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, places, aligned)
    binary = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=16, maxnreg=64))
    assert ".v4" in binary.asm["ptx"] and "convert_layout" not in binary.asm["ttgir"]

sizes = dict(VOCAB=32008, STUDENT_STRIDE=32008, TEACHER_STRIDE=32008, GRADIENT_STRIDE=32008, LANES=1024, VECTOR=8)
types = dict(student="*bf16", target="*i64", rows="*i64", terms="*fp32")
for divergence in ("forward_kl", "js"):
    check(
        kernels_triton._row_kernel,
        dict(sizes, DIVERGENCE=divergence, TEMPERED=True, SMOOTHED=True, teacher_rows=None, scales=None),
        **types, teacher="*bf16", gradient="*bf16",
    )
check(
    kernels_triton._row_kernel,
    dict(sizes, DIVERGENCE="reverse_kl", TEMPERED=True, SMOOTHED=True, teacher_rows=None),
    **dict(types, student="*fp16"), teacher="*fp16", gradient="*fp16", scales="*fp32",
)
without = dict(teacher=None, teacher_rows=None, gradient=None, scales=None)
check(kernels_triton._row_kernel, dict(sizes, DIVERGENCE="", TEMPERED=False, SMOOTHED=False, **without), **types)
check(
    kernels_triton._scale_kernel, dict(WIDTH=32008, STRIDE=32008, BLOCK=4096, scales=None),
    tensor="*bf16", factor="*fp32", n_rows="i32",
)
check(
    kernels_triton._scale_kernel, dict(WIDTH=32008, STRIDE=32008, BLOCK=4096),
    tensor="*fp16", factor="*fp32", scales="*fp32", n_rows="i32",
)
"""


def test_kernels_compile_for_an_h100_where_there_is_none(tmp_path, monkeypatch):
    """The interpreter takes what the compiler refuses. Loads are wide, and data stay in the thread that loaded them."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 3):
        pytest.skip("Triton's compiler is called otherwise before 3.3")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "check.py").write_text(COMPILE)
    result = subprocess.run([sys.executable, str(tmp_path / "check.py")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
