"""The GPU kernels through Triton's compiler, which needs no GPU."""

import pytest

from tests.support import run

COMPILE = """
import re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from kd_plugin.losses.engine.triton import kernels
from kd_plugin.losses.engine.triton.dense import head_weight_kernel, row_kernel
from kd_plugin.losses.engine.triton.sparse import sparse_kernel

arch, lanes, registers, spilled, spilled_apart = (int(x) for x in sys.argv[1:])
dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

def check(kernel, constants, spilled=spilled, **types):
    # returns how many loads and stores of 16 bytes there are, and how many loads of an entry or two
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr" if name in constants else "fp32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, places, aligned)
    options = dict(num_warps=max(1, lanes // 64), maxnreg=registers)
    binary = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    assert ".v4" in binary.asm["ptx"], (kernel, "loads are narrow")
    # the few entries of an answer are compared with each other, nothing else moves between threads
    assert kernel is sparse_kernel or "convert_layout" not in binary.asm["ttgir"], kernel
    if dump.exists():
        Path("kernel.cubin").write_bytes(binary.asm["cubin"])
        usage = subprocess.check_output([dump, "--dump-resource-usage", "kernel.cubin"], text=True)
        stack, used = (int(re.search(rf"{name}:(\\d+)", usage).group(1)) for name in ("STACK", "REG"))
        assert used <= registers and stack <= spilled, (kernel, constants, used, stack)
    moves = re.findall(r"\\b(ld|st)\\.global[\\w.:]*?(v4\\.b32|\\.b16|\\.b32) ", binary.asm["ptx"])
    narrow = [move for move in moves if move[0] == "ld" and move[1] != "v4.b32"]
    return moves.count(("ld", "v4.b32")), moves.count(("st", "v4.b32")), len(narrow)

width = dict(VOCAB=32008, STUDENT_STRIDE=32008, LANES=lanes, VECTOR=8, EDGES=False)
sizes = dict(width, GRADIENT_STRIDE=32008, TEMPERED=True, SMOOTHED=True, ENTRIES=0, PADDED_ENTRIES=1)
types = dict(student="*bf16", target="*i64", rows="*i64", terms="*fp32", gradient="*bf16")
none = dict(teacher_rows=None, weights=None, ids=None, slopes=None, TEACHER_STRIDE=32008)
js = dict(sizes, **none, DIVERGENCE="js", scales=None)
loads, stores, narrow = check(row_kernel, js, **types, teacher="*bf16")
assert loads == 12 and stores == 2 and narrow <= 8  # two a visit and side

def of_vocabulary(vocab, constants):
    # rows back to back, of a vocabulary that is no multiple of 8
    changed = {name: vocab for name in constants if name == "VOCAB" or name.endswith("STRIDE")}
    return dict(constants, **changed, EDGES=True)

# beside the student's rows the teacher's begin elsewhere, perhaps: then they are loaded by the entry, by two in 256206
assert check(row_kernel, of_vocabulary(50257, js), spilled_apart, **types, teacher="*bf16")[:2] == (loads, stores)
# of a packed student they do not, and nothing is loaded by the entry but the label and the edges
same = {name: kind for name, kind in types.items() if name != "rows"}
for vocab in (50257, 256206) if arch == 90 else (50257,):
    constants = of_vocabulary(vocab, dict(js, rows=None))
    wide, stored, narrow = check(row_kernel, constants, max(spilled, 16), **same, teacher="*bf16")
    assert (wide, stored) == (loads, stores) and narrow <= 16, narrow
half = dict(types, student="*fp16", gradient="*fp16", scales="*fp32")
some = dict(sizes, DIVERGENCE="adaptive_kl", ENTRIES=10, PADDED_ENTRIES=16, teacher_rows=None, TEACHER_STRIDE=32008)
check(row_kernel, some, **half, teacher="*fp16", weights="*fp32", ids="*i64", slopes="*fp32")
entries = dict(sizes, DIVERGENCE="js", SAMPLED=False, ENTRIES=16, PADDED_ENTRIES=32, BLOCKS=32008 // (lanes * 8) + 1)
stored = dict(half, ids="*i64", answer="*fp16", log_rest="*fp16")
moved = check(sparse_kernel, entries, **stored)
assert check(sparse_kernel, of_vocabulary(50257, entries), **stored)[1] == moved[1] == 2
if arch == 90:
    apart = of_vocabulary(256206, dict(sizes, **none, DIVERGENCE="forward_kl", scales=None))
    assert check(row_kernel, apart, spilled_apart, **types, teacher="*bf16")[:2] == (8, 2)
    check(row_kernel, dict(sizes, **none, DIVERGENCE="forward_kl", scales=None), **types, teacher="*bf16")
    without = dict(none, teacher=None, gradient=None, scales=None, DIVERGENCE="")
    check(row_kernel, dict(sizes, **without), **{k: v for k, v in types.items() if k != "gradient"})
    sampled = dict(entries, SAMPLED=True, DIVERGENCE="forward_kl", scales=None)
    check(sparse_kernel, sampled, **types, ids="*i64", answer="*fp16", log_rest="*fp16")
    head, sides = dict(width, teacher_rows=None, TEACHER_STRIDE=32008), dict(student="*bf16", teacher="*bf16")
    loads = check(head_weight_kernel, head, **sides, rows="*i64", weights="*fp32")[0]
    assert check(head_weight_kernel, of_vocabulary(50257, head), **sides, rows="*i64", weights="*fp32")[0] == loads
    scale = dict(WIDTH=32008, STRIDE=32008, LANES=512, VECTOR=8, EDGES=False)
    check(kernels._scale_kernel, dict(scale, scales=None), tensor="*bf16", factor="*fp32", n_rows="i32")
    check(kernels._scale_kernel, scale, tensor="*fp16", factor="*fp32", scales="*fp32", n_rows="i32")
    odd = dict(scale, WIDTH=50257, STRIDE=50257, EDGES=True, scales=None)
    wide, stored, narrow = check(kernels._scale_kernel, odd, tensor="*bf16", factor="*fp32", n_rows="i32")
    assert wide == stored >= 1 and narrow <= 2  # the factor, an edge
"""


@pytest.mark.parametrize(
    "arch,lanes,registers,spilled,spilled_apart",
    [(80, 1024, 64, 64, 176), (90, 1024, 64, 32, 64), (100, 512, 80, 0, 0)],
    ids=["sm_80", "sm_90", "sm_100"],
)
def test_kernels_compile_where_there_is_no_gpu(arch, lanes, registers, spilled, spilled_apart, tmp_path, monkeypatch):
    """The interpreter takes what the compiler refuses. Loads are wide whatever the vocabulary, data stay in the thread
    that loaded them, and a thread's few registers spill next to nothing (bytes of stack), a little more where there are
    two ways to load the teacher's row."""
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 3):
        pytest.skip("Triton's compiler is called otherwise before 3.3")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "check.py").write_text(COMPILE)
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    run("python", tmp_path / "check.py", arch, lanes, registers, spilled, spilled_apart, env=cache, cwd=tmp_path)
    assert list((tmp_path / "cache").iterdir())  # else they were compiled before
