"""Reduces a teacher's logits to the few entries per distribution that a store keeps."""

from typing import Optional

import numpy as np
import torch
from torch import Tensor

from kd_plugin.cache.records import Records
from kd_plugin.losses.answer import TeacherAnswer, projected_rows
from kd_plugin.losses.best import compiled_finder, top_indices


@torch.no_grad()
def compress_answer(
    answer: TeacherAnswer,
    tokens: int,
    vocab: int,
    kind: str,
    k: int,
    temperature: float = 1.0,
    generator: Optional[torch.Generator] = None,
) -> Records:
    """`compress` for all logits of an answer, computed piece by piece."""
    if kind == "topk" and answer.product is not None:
        head, features = answer.product
        kernels = compiled_finder(features.device, vocab, k) if features.dtype == torch.float32 else None
        if kernels is not None:
            return Records(*(x.numpy() for x in kernels.top_of_product(head, features, k, temperature)))
    rows = projected_rows(vocab, 4, torch.device("cpu"))  # compressing makes several copies in fp32
    records = []
    for _, logits in answer.pieces(tokens, vocab):
        records += [compress(part, kind, k, temperature, generator) for part in logits.split(rows)]
        del logits  # free them before the next piece is computed
    return Records(*map(np.concatenate, zip(*records)))


@torch.no_grad()
def compress(
    logits: Tensor, kind: str, k: int, temperature: float = 1.0, generator: Optional[torch.Generator] = None
) -> Records:
    """The entries to keep of softmax(logits / temperature).

    Args:
        logits: (tokens, vocab), any float dtype
        kind: topk: the k best entries, best first; sampled: k draws from the distribution, sorted by id
        generator: for the draws; on the CPU, so that they do not depend on the device
    """
    logits = logits.float()
    kernels = compiled_finder(logits.device, logits.size(1), k) if kind == "topk" else None
    if kernels is not None:
        return Records(*(x.numpy() for x in kernels.top_entries(logits.contiguous(), k, temperature)))
    if temperature != 1.0:
        logits = logits / temperature
    logits = logits - logits.amax(dim=-1, keepdim=True)
    if kind == "topk":
        ids = top_indices(logits, k)
        kept = logits.gather(-1, ids)
        exps = logits.exp_()
        entries = kept.exp().sum(dim=-1)
    else:
        exps = logits.exp()
        ids = _draws(exps, k, generator)
        kept = logits.gather(-1, ids)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]  # ids are sorted
        entries = (kept.exp() * first).sum(dim=-1)
    # sum without the entries: a small rest computed as a difference would be inexact
    rest = exps.scatter_(-1, ids, 0.0).sum(dim=-1)
    log_total = (entries + rest).log()
    lprobs, log_rest = kept - log_total.unsqueeze(-1), rest.log() - log_total
    return Records(*(x.cpu().numpy() for x in (ids, lprobs, log_rest)))


def _draws(exps: Tensor, k: int, generator: Optional[torch.Generator]) -> Tensor:
    """(tokens, k) ascending indices, drawn with probabilities proportional to exps by inverting the cumulative
    distribution."""
    distribution = exps.double().cumsum(dim=-1)
    uniform = torch.rand(exps.size(0), k, generator=generator, dtype=torch.float64).to(exps.device)
    # right=True, so that a symbol of probability 0 is never drawn
    drawn = torch.searchsorted(distribution, uniform * distribution[:, -1:], right=True)
    return drawn.clamp_(max=exps.size(1) - 1).sort(dim=-1).values


def unknown(tokens: int, k: int) -> Records:
    """Records with all mass in the rest, for target tokens that the teacher cannot answer for."""
    ids = np.zeros((tokens, k), dtype=np.int64)
    return Records(ids, np.full((tokens, k), -np.inf, dtype=np.float32), np.zeros(tokens, dtype=np.float32))
