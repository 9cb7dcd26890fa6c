"""The one-pass engine's work on single rows, compiled by Numba for CPUs; kernels_numba.py is the entry point.

A row's whole working set (its logits, the teacher's, the exponentials, the slope) stays in the core's own cache: 0.6 MB
for a vocabulary of 32k in fp32. It takes five or six passes: best entries, softmaxes, divergence and slope, gradient.

dense.py has the loop over rows for a teacher's logits, sparse.py for a cache's entries, best.py the search for a row's
best entries. They share passes.py, divergences.py and functions.py.

Design decisions:
* Small functions over small blocks of a row, indexed from 0, so that LLVM vectorises their loops. It does not if an
  index might be negative (numpy's wrap-around), if a sum mixes fp32 and float64, if two sums share a condition, or for
  a maximum of floats (which might lose a NaN): maxima therefore compare integers.
* Sums within a block may be reordered (fastmath "reassoc"); blocks are added in float64. The best entries, whose
  exponential is 1, are counted rather than summed: beside them, small terms would lose their last bits.
* exp and log are polynomials (Cephes, Moshier 1989), accurate to 2 units in the last place, because LLVM has no vector
  form of its own; they must not be reordered. In float64, which only tests use, they are the C library's.
"""

from kd_plugin.losses.engine.compiled_rows.best import top_rows
from kd_plugin.losses.engine.compiled_rows.dense import dense_rows
from kd_plugin.losses.engine.compiled_rows.functions import BLOCK, DIVERGENCES, exact
from kd_plugin.losses.engine.compiled_rows.functions import exp as _exp
from kd_plugin.losses.engine.compiled_rows.functions import log as _log
from kd_plugin.losses.engine.compiled_rows.sparse import sparse_rows

__all__ = ["BLOCK", "DIVERGENCES", "_exp", "_log", "dense_rows", "exact", "sparse_rows", "top_rows"]
