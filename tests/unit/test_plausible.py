"""A teacher that finds the references less likely than guessing by frequency is pointed out."""

import logging
import math

import pytest
import torch
from fairseq.data import Dictionary

from kd_plugin.distill.plausible import Plausible, bits_of_guessing


def dictionary_of(*counts):
    dictionary = Dictionary()
    for number, count in enumerate(counts):
        dictionary.add_symbol(f"word{number}", n=count)
    return dictionary


def warned(caplog, bits, batches=10, keys=("teacher_nll_loss",), counts=(8, 4, 2, 1, 1)):
    plausible = Plausible(dictionary_of(*counts))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(batches):
            logs = {"teacher_nll_loss": torch.tensor(bits * math.log(2) * 6), "n_distilled": torch.tensor(6)}
            plausible({key: value for key, value in logs.items() if key in (*keys, "n_distilled")})
    return [record.getMessage() for record in caplog.records]


def test_the_entropy_of_the_counts():
    assert bits_of_guessing(dictionary_of(8, 4, 2, 1, 1)) == pytest.approx(1.875)  # 1/2, 1/4, 1/8, 1/16, 1/16
    assert bits_of_guessing(dictionary_of(*[1] * 64)) == pytest.approx(6.0)


def test_it_warns_once_and_only_about_a_teacher_that_is_worse(caplog):
    assert warned(caplog, 1.8, batches=200) == []
    (message,) = warned(caplog, 2.5, batches=200)
    assert "2.5 bits per token" in message and "guessing by frequency would cost 1.9" in message and "Remedy" in message
    assert warned(caplog, 2.5, batches=9) == []  # too early to tell
    assert warned(caplog, 2.5, keys=(), batches=200) == []  # a cache does not say
