"""Float64 references, written from the formulas and sharing no code with the package."""

import math

import torch


def divergence64(name, q, p, log_q, log_p, js_beta=0.5, skew_lambda=0.1, adaptive_mu=0.5):
    """A divergence of one token's (vocab,) distributions, teacher q and student p, from its formula in the papers.

    The logarithms of q and p come along, because log softmax is exact where softmax underflows.
    """

    def kl(a, log_a, log_b):
        return sum_where(a, log_a - log_b)

    def sum_where(a, values):
        kept = a > 0
        return (a[kept] * values[kept]).sum()

    def log_mix(weight):  # log(weight q + (1 - weight) p)
        return torch.logsumexp(torch.stack([log_q + math.log(weight), log_p + math.log(1 - weight)]), dim=0)

    if name == "forward_kl":
        return kl(q, log_q, log_p)
    if name == "reverse_kl":  # a masked entry of the teacher counts as e^-100
        return kl(p, log_p, torch.where(log_q == -float("inf"), torch.full_like(log_q, -100.0), log_q))
    if name == "js":
        log_m = log_mix(js_beta)
        return js_beta * kl(q, log_q, log_m) + (1 - js_beta) * kl(p, log_p, log_m)
    if name == "skew_forward_kl":
        return kl(q, log_q, log_mix(skew_lambda))
    if name == "skew_reverse_kl":
        return kl(p, log_p, log_mix(1 - skew_lambda))
    if name == "tvd":
        return 0.5 * (q - p).abs().sum()
    assert name == "adaptive_kl"
    order = q.argsort(descending=True).tolist()
    mass, head = 0.0, []
    for v in order:
        mass += q[v].item()
        if head and mass > adaptive_mu and q[v] < q[head[-1]]:
            break
        head.append(v)
    gap = (q - p).abs().detach()
    share = gap[head].sum() / gap.sum() if gap.sum() > 0 else torch.tensor(0.5).double()
    forward, reverse = (divergence64(n, q, p, log_q, log_p) for n in ("forward_kl", "reverse_kl"))
    return share * forward + (1 - share) * reverse


def rank64(q, p, k):
    """TIE-KD's hierarchical ranking term of one token, as double loops."""
    best_teacher = q.argsort(descending=True)[:k].tolist()
    best_student = p.argsort(descending=True)[:k].tolist()
    total = p.sum() * 0
    for i in best_teacher:
        total = total + (p[i] - p[best_teacher[0]]).clamp(min=0)
        for j in best_student:
            if q[i] > q[j]:
                total = total + (p[j] - p[i]).clamp(min=0)
    return total


def loss64(
    student, teacher, target, alpha, temperature, epsilon, padding_idx=None, divergence="forward_kl", top1_rank=0,
    distilled=None, **parameters,
):  # fmt: skip
    """(loss, ce, nll, kd), row by row, as LOSSES in the README state them."""
    ce_sum = nll_sum = kd_sum = student.double().sum() * 0.0
    vocab = student.size(-1)
    for row in range(student.size(0)):
        y = target[row].item()
        if y == padding_idx:
            continue
        log_p = torch.log_softmax(student[row].double(), dim=-1)
        eps_i = epsilon / (vocab - 1)
        smoothed = torch.full((vocab,), eps_i, dtype=torch.float64)
        smoothed[y] = 1.0 - epsilon
        nll_sum = nll_sum - log_p[y]
        ce_sum = ce_sum - (smoothed * log_p).sum() if epsilon > 0 else ce_sum - log_p[y]
        if distilled is not None and not distilled[row]:
            continue
        log_p = torch.log_softmax(student[row].double() / temperature, dim=-1)
        log_q = torch.log_softmax(teacher[row].double() / temperature, dim=-1)
        kd_sum = kd_sum + divergence64(divergence, log_q.exp(), log_p.exp(), log_q, log_p, **parameters)
        if top1_rank:
            kd_sum = kd_sum + rank64(log_q.exp(), log_p.exp(), top1_rank)
    return alpha * ce_sum + (1 - alpha) * temperature**2 * kd_sum, ce_sum, nll_sum, kd_sum


def symmetric_kl64(first, second):
    """R-Drop's term of two passes' (tokens, vocab) logits, token by token."""
    total = first.double().sum() * 0.0
    for one, other in zip(first.double(), second.double()):
        log_p, log_q = torch.log_softmax(one, dim=-1), torch.log_softmax(other, dim=-1)
        total = total + 0.5 * (log_p.exp() * (log_p - log_q)).sum() + 0.5 * (log_q.exp() * (log_q - log_p)).sum()
    return total


def cosine64(one, other):
    return (one * other).sum() / (one.square().sum().sqrt() * other.square().sum().sqrt())


def normalised64(vector):
    gap = vector - vector.mean()
    return gap / (gap.square().mean() + 1e-5).sqrt()


def relation64(student, teacher, heads, sentences):
    """MiniLMv2's term of one kind of state: sums over positions, means over relation heads. `sentences`: for each its
    positions."""
    total = student.sum() * 0.0
    for positions in sentences:
        for head in range(heads):
            sides = []
            for states in (student, teacher):
                width = states.size(1) // heads
                part = [states[n, head * width : (head + 1) * width] for n in positions]
                scores = [[(a * b).sum() / width**0.5 for b in part] for a in part]
                sides.append([torch.log_softmax(torch.stack(row), dim=0) for row in scores])
            for log_p, log_q in zip(*sides):
                total = total + (log_q.exp() * (log_q - log_p)).sum() / heads
    return total


def attention64(student, teacher, mixing):
    """The sum over positions of the mean over the teacher's heads of KL(A_T || C A_S)."""
    total = student.sum() * 0.0
    for ours, theirs in zip(student, teacher):
        for weights, target in zip(mixing, theirs):
            mixed = sum(weight * head for weight, head in zip(weights, ours))
            for q, p in zip(target, mixed):
                if q > 0:
                    total = total + q * (q.log() - p.log()) / len(theirs)
    return total
