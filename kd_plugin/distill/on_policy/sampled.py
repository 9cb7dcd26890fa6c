"""The student's own translations as targets: GKD, Agarwal et al. 2024 (https://arxiv.org/abs/2306.13649).

No gradient flows through the sampling.
"""

import collections
import contextlib
import hashlib
import time
from typing import Any, Deque, Dict, Iterator, List, Tuple

import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.search import Sampling
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from kd_plugin.models.packed import unwrapped

Batch = Dict[str, Any]


class Sampler:
    """Draws translations from the student by fairseq's own generator, with its incremental state and without dropout.

    What is drawn depends on the seed, the update and the sentences' ids, not on the rank, and leaves dropout's random
    numbers as they are.

    Args:
        cfg: the criterion's flags
        task: the student's; its dictionary and padding
        seed: of the training
    """

    def __init__(self, cfg: Any, task: Any, seed: int):
        self._dictionary, self._seed = task.target_dictionary, seed
        self._left_pad = bool(getattr(task.cfg, "left_pad_target", False))
        self._prefix = int(cfg.ignore_prefix_size)
        self._temperature, self._topk = float(cfg.kd_on_policy_temperature), int(cfg.kd_on_policy_topk)
        self._limit = float(cfg.kd_on_policy_max_len_a), int(cfg.kd_on_policy_max_len_b)
        self._draws = int(cfg.kd_on_policy_buffer)
        self._buffer: Deque[Batch] = collections.deque()

    def __call__(self, model: Any, sample: Batch, update: int) -> Tuple[Batch, Dict[str, Any]]:
        """A batch with the student's translations as targets, and its sums for the log.

        Of several draws at a time, one is returned now, the others by the next calls, in place of their batches.
        """
        drawn = {"n_drawn_tokens": 0, "drawing_seconds": 0.0}
        if not self._buffer:
            start = time.perf_counter()
            batches = self._draw(unwrapped(model), sample, update)
            drawn = {
                "n_drawn_tokens": sum(batch["ntokens"] for batch in batches),
                "drawing_seconds": time.perf_counter() - start,
            }
            self._buffer.extend(batches)
        device = sample["target"].device
        batch = utils.apply_to_sample(lambda tensor: tensor.to(device), self._buffer.popleft())
        return batch, {**_counts(batch["target"], self._dictionary.pad()), **drawn}

    def _draw(self, student: Any, sample: Batch, update: int) -> List[Batch]:
        """All draws in one batch, which the generator translates at once."""
        sources = {name: sample["net_input"][name] for name in ("src_tokens", "src_lengths")}
        net_input = {name: value.repeat_interleave(self._draws, dim=0) for name, value in sources.items()}
        prefix = None
        if self._prefix:
            prefix = sample["target"][:, : self._prefix].repeat_interleave(self._draws, dim=0)
        ids = sample["id"].tolist() if "id" in sample else []
        digest = hashlib.sha256(f"{self._seed} {update} {ids}".encode()).digest()
        with _sampling(student, sources["src_tokens"].device):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            # the generator sets the student to eval mode
            found = self._generator(student).generate([student], {"net_input": net_input}, prefix_tokens=prefix)
        tokens = [hypotheses[0]["tokens"] for hypotheses in found]
        return [self._with_targets(sample, tokens[number :: self._draws]) for number in range(self._draws)]

    def _generator(self, student: Any) -> SequenceGenerator:
        a, b = self._limit
        search = Sampling(self._dictionary, self._topk if self._topk > 0 else -1)
        return SequenceGenerator(
            [student],
            self._dictionary,
            beam_size=1,
            max_len_a=a,
            max_len_b=b,
            unk_penalty=float("inf"),
            temperature=self._temperature,
            search_strategy=search,
        )

    def _with_targets(self, sample: Batch, targets: List[Tensor]) -> Batch:
        device = sample["target"].device
        pad, eos = self._dictionary.pad(), self._dictionary.eos()
        targets = [target.to(device) for target in targets]
        target, previous = (
            data_utils.collate_tokens(targets, pad, eos, self._left_pad, move_eos_to_beginning=moves)
            for moves in (False, True)
        )
        net_input = {**sample["net_input"], "prev_output_tokens": previous}
        return {**sample, "net_input": net_input, "target": target, "ntokens": sum(map(len, targets))}

    def state_dict(self) -> Dict[str, Any]:
        """The draws to come."""
        return {"buffer": list(self._buffer)} if self._draws > 1 else {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restores them."""
        self._buffer = collections.deque(state.get("buffer", ()))


@contextlib.contextmanager
def _sampling(student: Any, device: torch.device) -> Iterator[None]:
    """Without gradient and dropout; afterwards every module and the random numbers are as before."""
    modes = [(module, module.training) for module in student.modules()]
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _counts(target: Tensor, pad: int) -> Dict[str, Any]:
    """Tokens, sentences, pairs of neighbouring tokens, and those pairs that their sentence has had before."""
    tokens = int(target.ne(pad).sum())
    repeated = 0
    for row in target.tolist():
        words = [token for token in row if token != pad]
        pairs = list(zip(words, words[1:]))
        repeated += len(pairs) - len(set(pairs))
    sentences = target.size(0)
    return dict(n_own_tokens=tokens, n_own_sentences=sentences, n_own_pairs=tokens - sentences, n_own_repeated=repeated)
