"""What all compiled code is made of: how to compile it, constants, exp, log, and an order of floats."""

import hashlib
import math
from pathlib import Path
from types import CellType, FunctionType

import numba
import numpy as np
from numba.extending import overload

from kd_plugin.losses import definition, divergences, sparse

CE, NLL, KD, RANK, TEACHER_NLL, AGREE = range(definition.N_TERMS)
DIVERGENCES = divergences.COMPILED_DIVERGENCES
FORWARD_KL, REVERSE_KL, JS, SKEW_FORWARD_KL, SKEW_REVERSE_KL, TVD, ADAPTIVE_KL = range(len(DIVERGENCES))
BLOCK = 2048  # entries of a row

# typed constants: Python floats would promote fp32 to float64
ZERO, QUARTER, HALF, ONE = (np.float32(x) for x in (0.0, 0.25, 0.5, 1.0))
MASKED_LPROB, TINY = np.float32(divergences.MASKED_LPROB), np.finfo(np.float32).tiny
ROUNDER = np.float32(12582912.0)
SMALL_MASS = sparse.SMALL_MASS
LOWEST_EXP = np.float32(-87.3)  # below it exp is subnormal and counts as 0

exact = numba.njit(fastmath={"contract"}, cache=True)
# without "contract": p - q must be exactly 0 where they are equal
reordered = numba.njit(fastmath={"reassoc", "nsz"}, cache=True)


def entry_point(function):  # type: ignore[no-untyped-def]
    """Compiles a function that Python calls; the other files' code goes into it.

    Numba keeps machine code on disk. It notices changes to the function's own file and to the values in its closure,
    not to other files. Therefore a closure holds the hash of everything that the machine code is made of.
    """
    made_of = CellType(_sources())
    code = function.__code__.replace(co_freevars=("made_of",))
    keyed = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, (made_of,))
    return numba.njit(nogil=True, cache=True)(keyed)


def _sources() -> str:
    """The hash of this folder's files and of the constants from elsewhere."""
    found = hashlib.sha256(repr((DIVERGENCES, MASKED_LPROB, SMALL_MASS)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0. Only a name: Numba compiles what _exp_of returns for the type. So for the next two."""
    raise NotImplementedError


def log(x):  # type: ignore[no-untyped-def]
    """log(x) for a normal x > 0."""
    raise NotImplementedError


def sort_key(x):  # type: ignore[no-untyped-def]
    """An integer that orders as x does, because LLVM vectorises a maximum of integers but not of floats.

    -0 sorts before 0. A NaN may sort first or last; it still shows up in the sums.
    """
    raise NotImplementedError


def _exp32(x):  # type: ignore[no-untyped-def]
    # adding 1.5 * 2^23 rounds a float to an integer, which then sits in the last bits
    shifted = x * np.float32(1.44269504) + ROUNDER
    n = shifted - ROUNDER
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log 2 in two parts
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * (r * r) + r + ONE
    exponent = np.float32(shifted).view(np.int32) << np.int32(23)
    y = np.int32(np.float32(y).view(np.int32) + exponent).view(np.float32)
    return ZERO if x < LOWEST_EXP else y


def _log32(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.int32)
    n = np.float32(np.int32((bits >> np.int32(23)) - np.int32(126)))
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
    small = mantissa < np.float32(0.70710678)
    n = n - ONE if small else n
    r = (mantissa + mantissa if small else mantissa) - ONE
    y = np.float32(7.0376836292e-2)
    y = y * r + np.float32(-1.1514610310e-1)
    y = y * r + np.float32(1.1676998740e-1)
    y = y * r + np.float32(-1.2420140846e-1)
    y = y * r + np.float32(1.4249322787e-1)
    y = y * r + np.float32(-1.6668057665e-1)
    y = y * r + np.float32(2.0000714765e-1)
    y = y * r + np.float32(-2.4999993993e-1)
    y = y * r + np.float32(3.3333331174e-1)
    square = r * r
    y = y * r * square + n * np.float32(-2.12194440e-4) - HALF * square
    return ZERO * x + (r + y + n * np.float32(0.693359375))  # a NaN stays one


def _key32(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.int32)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp_of(x):  # type: ignore[no-untyped-def]
    return _exp32 if x == numba.types.float32 else lambda x: math.exp(x)


@overload(log, jit_options={"fastmath": {"contract"}})
def _log_of(x):  # type: ignore[no-untyped-def]
    return _log32 if x == numba.types.float32 else lambda x: math.log(x)


@overload(sort_key)
def _key_of(x):  # type: ignore[no-untyped-def]
    return _key32 if x == numba.types.float32 else lambda x: x
