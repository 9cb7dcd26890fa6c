"""A student with some of its teacher's symbols, in another order: ids are matched by symbol, the rest renormalised."""

import random

import numpy as np
import pytest
import torch

from kd_plugin.cache.compress import compress_answer
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import KD, TEACHER_NLL, Objective
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.teachers.base import Request
from kd_plugin.teachers.fairseq import fit, load_teacher
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.vocabulary import IGNORE
from tests.reference import divergence64
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import ARCHITECTURES, LANGS, batch, student_task

MORE = [*WORDS, *(f"more{number}" for number in range(20))]
ROWS = torch.tensor([0, 1, 2, 4, 5, 6, 7])


@pytest.fixture(params=["post_norm", "fconv", "adaptive"])
def taught(request, tmp_path):
    """A teacher's path and model, and the folder of a student with its words in another order."""
    options = [*MODEL, "--adaptive-softmax-cutoff", "12,24"] if request.param == "adaptive" else None
    folder = write_dictionaries(tmp_path / "teacher", MORE)
    path = tmp_path / "teacher" / "teacher.pt"
    model = make_checkpoint(path, folder, *LANGS, *(options or ARCHITECTURES[request.param]))
    words = random.Random(3).sample(WORDS, len(WORDS))
    return str(path), model, write_dictionaries(tmp_path / "student", words)


def expected_lprobs(model, member):
    """Of the student's symbols in float64, renormalised; and the mass of the others."""
    sample = batch()
    source, target = member.source_indices, member.target_indices
    net_input = {
        "src_tokens": source[sample["net_input"]["src_tokens"]],
        "src_lengths": sample["net_input"]["src_lengths"],
        "prev_output_tokens": target[sample["net_input"]["prev_output_tokens"]],
    }
    with torch.no_grad():
        lprobs = model.double().get_normalized_probs(model.double()(**net_input), log_probs=True)
    lprobs = lprobs.reshape(-1, lprobs.size(-1))[ROWS].double()
    kept = lprobs[:, target]
    if member.target.missing is not None:
        kept[:, member.target.missing] = -torch.inf
    return torch.log_softmax(kept, dim=-1), 1 - kept.exp().sum(dim=-1)


def test_loss_gradient_and_dropped_mass_equal_float64(taught, cpu_engine):
    path, model, student = taught
    member = load_teacher(path, student_task(student))
    answer = OnlineTeacher([member]).answer(batch(), Request(ROWS, torch.float32))
    lprobs, dropped = expected_lprobs(model, member)
    assert answer.dropped.tokens == len(ROWS)
    torch.testing.assert_close(answer.dropped.mass.double(), dropped.sum(), rtol=1e-4, atol=1e-6)
    target = batch()["target"].reshape(-1)[ROWS]
    for divergence in ("forward_kl", "reverse_kl", "js", "tvd"):
        logits = torch.randn(len(ROWS), 32, generator=torch.Generator().manual_seed(5), requires_grad=True)
        everywhere = torch.arange(len(ROWS))
        objective = Objective(0.0, 2.0, 0.0, divergence, {"js_beta": 0.5})
        loss, terms = StudentLogits(logits, everywhere, everywhere[:0]).loss(answer.distribution, target, objective)
        loss.backward()
        double = logits.detach().double().requires_grad_()
        q, p = torch.log_softmax(lprobs / 2, dim=-1), torch.log_softmax(double / 2, dim=-1)
        expected = [divergence64(divergence, a.exp(), b.exp(), a, b) for a, b in zip(q, p)]
        torch.testing.assert_close(terms[:, KD].double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        (4 * sum(expected)).backward()
        torch.testing.assert_close(logits.grad.double(), double.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            terms[:, TEACHER_NLL].double(), -lprobs.gather(1, target[:, None])[:, 0], rtol=1e-4, atol=1e-5
        )


def test_the_fused_head_and_the_cache_say_the_same(taught):
    path, model, student = taught
    member = load_teacher(path, student_task(student))
    lprobs, _ = expected_lprobs(model, member)
    answer = OnlineTeacher([member]).answer(batch(), Request(ROWS, torch.float32)).distribution
    records = compress_answer(answer, len(ROWS), 32, "topk", 5)
    best = lprobs.topk(5, dim=-1)
    assert np.array_equal(records.ids, best.indices.numpy())
    np.testing.assert_allclose(records.lprobs, best.values.numpy(), rtol=0, atol=1e-4)
    rest = np.log1p(-np.exp(best.values.numpy()).sum(axis=1))
    np.testing.assert_allclose(records.log_rest, rest, rtol=0, atol=1e-3)


def test_symbols_of_the_students_own(tmp_path):
    """Refused by name; --teacher-missing-symbols ignore: read as unknown, and masked."""
    folder = write_dictionaries(tmp_path / "teacher", MORE)
    path = tmp_path / "teacher" / "teacher.pt"
    make_checkpoint(path, folder, *LANGS, *ARCHITECTURES["post_norm"])
    student = student_task(write_dictionaries(tmp_path / "student", [*WORDS[:-1], "of-its-own"]))
    with pytest.raises(KDPluginError, match="only the student 'of-its-own'.*--teacher-missing-symbols ignore"):
        load_teacher(str(path), student)
    from kd_plugin.checkpoints.open import open_beside

    (checkpoint,) = open_beside([str(path)], ["en", "de"], {})
    member = fit(checkpoint, student, IGNORE)
    index = student.target_dictionary.index("of-its-own")
    assert member.target.missing.tolist() == [index] and member.source_indices[index] == 3
    answer = OnlineTeacher([member]).answer(batch(), Request(ROWS, torch.float32)).distribution
    assert answer.logits[:, index].isneginf().all() and answer.logits.isinf().sum() == len(ROWS)
    assert not answer.knows_target  # the log leaves the teacher's cross-entropy out
    records = compress_answer(answer, len(ROWS), 32, "topk", 31)
    assert not (records.ids == index).any() and np.isfinite(records.lprobs).all()


def test_the_whole_vocabulary_is_what_it_was(tmp_path):
    """The same symbols in the same order: nothing is looked up and nothing is dropped."""
    folder = write_dictionaries(tmp_path / "teacher", WORDS)
    path = tmp_path / "teacher" / "teacher.pt"
    model = make_checkpoint(path, folder, *LANGS, *ARCHITECTURES["post_norm"])
    member = load_teacher(str(path), student_task(folder))
    answer = OnlineTeacher([member]).answer(batch(), Request(ROWS, torch.float32))
    assert member.source_indices is member.target_indices is answer.dropped is None
    assert answer.distribution.product[0].weight is member.model.decoder.output_projection.weight
    assert model.decoder.output_projection.weight.shape == (32, 16)
