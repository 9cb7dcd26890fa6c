"""Further decoder passes over the student's own words: TIE-KD, Zhang et al. 2023 (https://arxiv.org/abs/2305.08096).

All positions of a pass are computed at once: it reads what the student ranked first in the pass before, so nothing is
generated word by word.
"""

from typing import Any, Dict

import torch
from torch import Tensor


def own_words(sample: Dict[str, Any], best: Tensor, pad: int) -> Dict[str, Any]:
    """The batch with the student's words in place of the decoder's input; padding and the first symbol stay.

    Args:
        best: (sentences, length) int64, the student's first choice at every position of the target
    """
    previous = sample["net_input"]["prev_output_tokens"]
    real = previous.ne(pad)
    first = real & (real.cumsum(dim=1) == 1)
    shifted = torch.cat([best[:, :1], best[:, :-1]], dim=1)
    words = torch.where(real & ~first, shifted, previous)
    return {**sample, "net_input": {**sample["net_input"], "prev_output_tokens": words}}


class Encoded:
    """Keeps what a student's encoder gives in its forward pass, for further passes of the decoder alone."""

    def __init__(self, student: Any):
        self._student, self.output = student, None

    def __enter__(self) -> "Encoded":
        self._hook = self._student.encoder.register_forward_hook(self._keep)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self.output = output

    def decode(self, net_input: Dict[str, Any]) -> Any:
        """The decoder's output for another input."""
        return self._student.decoder(
            net_input["prev_output_tokens"], encoder_out=self.output, src_lengths=net_input["src_lengths"]
        )
