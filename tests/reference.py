"""Float64 references, written from the formulas and sharing no code with the package."""

import torch


def softmax64(logits, temperature=1.0):
    return torch.softmax(logits.double() / temperature, dim=-1)


def kl64(q, p):
    """sum_v q log(q / p), with 0 log 0 = 0."""
    ratio = torch.where(q > 0, q / p, torch.ones_like(q))
    return (q * torch.log(ratio)).sum(dim=-1)


def loss64(student, teacher, target, alpha, temperature, epsilon, padding_idx=None):
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
        log_p_tau = torch.log_softmax(student[row].double() / temperature, dim=-1)
        q = softmax64(teacher[row], temperature)
        log_q = torch.where(q > 0, q, torch.ones_like(q)).log()
        kd_sum = kd_sum + (q * torch.where(q > 0, log_q - log_p_tau, torch.zeros_like(q))).sum()
    return alpha * ce_sum + (1 - alpha) * temperature**2 * kd_sum, ce_sum, nll_sum, kd_sum
