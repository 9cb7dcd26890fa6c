"""Records: what a store keeps of a teacher's answer for one target token, in a fixed number of bytes."""

from typing import NamedTuple, Tuple

import numpy as np

WIDE_VOCAB = 65_536  # above it, uint16 is too small and ids take four bytes


class Records(NamedTuple):
    """Answers for some target tokens.

    ids:      (tokens, k) int64, indices into the student's dictionary
    lprobs:   (tokens, k) fp32, the teacher's log-probabilities of the ids, in nats, never renormalised
    log_rest: (tokens,) fp32, the logarithm of the mass of all other symbols; -inf: none
    """

    ids: np.ndarray
    lprobs: np.ndarray
    log_rest: np.ndarray


class Layout(NamedTuple):
    """k ids, k log-probabilities in fp16, the log of the rest in fp16: 66 bytes for k = 16 and 2-byte ids.

    Numbers are little-endian.
    """

    k: int
    vocab: int

    @property
    def id_type(self) -> np.dtype:
        return np.dtype("<u2" if self.vocab <= WIDE_VOCAB else "<u4")

    @property
    def width(self) -> int:
        """Bytes per record."""
        return self.k * (self.id_type.itemsize + 2) + 2

    def encode(self, records: Records) -> np.ndarray:
        """(tokens, width) uint8."""
        lprobs = np.concatenate([records.lprobs, records.log_rest[:, None]], axis=1).astype("<f2")
        encoded = np.empty((len(lprobs), self.width), dtype=np.uint8)
        ids_width = self.k * self.id_type.itemsize
        encoded[:, :ids_width] = records.ids.astype(self.id_type).view(np.uint8).reshape(-1, ids_width)
        encoded[:, ids_width:] = lprobs.view(np.uint8).reshape(-1, 2 * (self.k + 1))
        return encoded

    def decode(self, encoded: np.ndarray) -> Records:
        """From (tokens, width) uint8."""
        ids_width = self.k * self.id_type.itemsize
        ids = np.ascontiguousarray(encoded[:, :ids_width]).view(self.id_type).astype(np.int64)
        lprobs = np.ascontiguousarray(encoded[:, ids_width:]).view("<f2").astype(np.float32)
        return Records(ids, lprobs[:, : self.k], lprobs[:, self.k])


class WholeLayout(NamedTuple):
    """Every output of a model that labels, in fp32: logits, or the numbers that it predicts. -inf: it has no answer.

    In `Records`, these are the lprobs; there are no ids and no rest.
    """

    outputs: int

    @property
    def width(self) -> int:
        """Bytes per record."""
        return 4 * self.outputs

    def encode(self, records: Records) -> np.ndarray:
        """(tokens, width) uint8."""
        values = np.ascontiguousarray(records.lprobs.astype("<f4"))
        return values.view(np.uint8).reshape(-1, self.width)

    def decode(self, encoded: np.ndarray) -> Records:
        """From (tokens, width) uint8."""
        values = np.ascontiguousarray(encoded).view("<f4").astype(np.float32).reshape(-1, self.outputs)
        return whole_records(values)


def whole_records(values: np.ndarray) -> Records:
    """Records of (tokens, outputs) values, for a WholeLayout."""
    nothing = np.full(len(values), -np.inf, dtype=np.float32)
    return Records(np.zeros((len(values), 0), dtype=np.int64), values.astype(np.float32), nothing)


def mass_histogram(log_rest: np.ndarray) -> Tuple[np.ndarray, float]:
    """The teacher's mass captured by the k entries: (20,) counts of tokens in steps of 5 %, and the sum over tokens."""
    captured = 1.0 - np.exp(np.minimum(log_rest.astype(np.float64), 0.0))
    counts, _ = np.histogram(captured, bins=np.linspace(0.0, 1.0, 21))
    return counts, float(captured.sum())
