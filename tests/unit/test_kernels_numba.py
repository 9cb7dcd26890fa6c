"""The kernels compiled for CPUs: in fp32, at every shape of row, with numbers that are none, on several threads."""

import numpy as np
import pytest
import torch

from kd_plugin.losses.definition import AGREE, CE, KD, NLL, Objective, terms_by_definition

pytest.importorskip("numba", reason="numba is not installed")

from kd_plugin.losses.engine import compiled_rows, memory  # noqa: E402
from kd_plugin.losses.engine import dispatch as engine  # noqa: E402
from kd_plugin.losses.engine import kernels_numba as kernels  # noqa: E402

INF = float("inf")
SIZES = ((1, -1), (1, 1), (2, 0))  # around blocks


def batch(rows=5, vocab=40, dtype=torch.float32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = ((torch.randn(rows, vocab, generator=generator) * scale).to(dtype) for _ in range(2))
    return student, teacher, torch.randint(vocab, (rows,), generator=generator)


def run(student, teacher, target, objective, **which):
    gradient = torch.full_like(student, 7.0)
    return kernels.one_pass(student, teacher, target, objective, gradient=gradient, **which), gradient


def definition(student, teacher, target, objective):
    return terms_by_definition(student.double(), None if teacher is None else teacher.double(), target, objective)


@pytest.mark.parametrize("divergence", compiled_rows.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "vocab", [2, 63, 64, 130, compiled_rows.BLOCK - 1, compiled_rows.BLOCK + 1, 2 * compiled_rows.BLOCK]
)
def test_every_shape_of_row_in_fp32(divergence, temperature, vocab):
    student, teacher, target = batch(vocab=vocab)
    objective = Objective(0.3, temperature, 0.1, divergence)
    terms, gradient = run(student, teacher, target, objective)
    expected_terms, expected = definition(student, teacher, target, objective)
    torch.testing.assert_close(terms.double(), expected_terms, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("divergence", compiled_rows.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_at_32k_words_is_exact_to_3e_7(divergence, temperature):
    """Peaked rows, as trained models have them: small terms beside large ones are what sums lose."""
    student, teacher, target = batch(rows=4, vocab=32000, scale=2.0)
    teacher[:, :20] += 9 * torch.rand(4, 20, generator=torch.Generator().manual_seed(1))
    student[:, :20] = teacher[:, :20] + 0.5
    if divergence == "tvd":  # its slope jumps where the probabilities are equal but for rounding
        student += 0.05 * (student - teacher).sign()
    objective = Objective(0.5, temperature, 0.1, divergence)
    _, gradient = run(student, teacher, target, objective)
    _, expected = definition(student, teacher, target, objective)
    assert (gradient.double() - expected).abs().max().item() <= 3e-7


@pytest.mark.parametrize("mu", [0.001, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("teacher", ["random", "ties", "one word", "masked", "equal"])
def test_head_of_the_adaptive_kl_in_float64(mu, teacher):
    student, logits, target = batch(vocab=50, dtype=torch.float64)
    if teacher == "ties":
        logits = logits.round()
    if teacher == "one word":
        logits[:, 7] = 60.0
    if teacher == "masked":
        logits[:, ::2] = -INF
    if teacher == "equal":
        logits[:] = 1.0
    objective = Objective(0.0, divergence="adaptive_kl", parameters={"adaptive_mu": mu})
    terms, gradient = run(student, logits, target, objective)
    expected_terms, expected = definition(student, logits, target, objective)
    torch.testing.assert_close(terms[:, KD], expected_terms[:, KD], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_exp_and_log_are_exact_to_two_units_in_the_last_place():
    @compiled_rows.exact
    def both(x, exps, logs):
        for i in range(x.size):
            exps[i] = compiled_rows._exp(-x[i])
            logs[i] = compiled_rows._log(x[i])

    x = np.exp(np.linspace(-87.0, np.log(87.0), 200_001)).astype(np.float32)
    x = np.concatenate([x, np.linspace(0.5, 2, 200_001, dtype=np.float32)])
    exps, logs = np.empty_like(x), np.empty_like(x)
    both(x, exps, logs)
    for got, expected in ((exps, np.exp(-x.astype(np.float64))), (logs, np.log(x.astype(np.float64)))):
        assert (np.abs(got - expected) <= 2 * np.spacing(np.abs(expected).astype(np.float32))).all()
    edges = np.array([0.0, 87.4, 1e30, np.inf, np.nan], dtype=np.float32)
    exps = np.empty_like(edges)
    both(edges, exps, np.empty_like(edges))
    assert exps[:4].tolist() == [1, 0, 0, 0] and np.isnan(exps[4])


@pytest.mark.parametrize("divergence", compiled_rows.DIVERGENCES)
@pytest.mark.parametrize("bad", [INF, float("nan")])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_bad_logit_stays_seen(divergence, bad, side):
    student, teacher, target = batch(vocab=100)
    (student if side == "student" else teacher)[1, 70] = bad
    terms, gradient = run(student, teacher, target, Objective(0.5, 1.0, 0.1, divergence))
    assert terms[1, KD].isnan() and gradient[1].isnan().any()
    assert terms[[0, 2, 3, 4]].isfinite().all() and gradient[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("divergence", compiled_rows.DIVERGENCES)
def test_masked_words_on_either_side(divergence):
    student, teacher, target = batch(vocab=80, dtype=torch.float64)
    teacher[:, 5:9] = -INF
    student[0, 5:9] = teacher[0, 20] = student[2, 20] = -INF
    target[:] = 0
    objective = Objective(0.4, 1.5, 0.0, divergence)
    terms, gradient = run(student, teacher, target, objective)
    expected_terms, expected = definition(student, teacher, target, objective)
    torch.testing.assert_close(terms, expected_terms, rtol=1e-12, atol=1e-12)
    finite = expected.isfinite()
    torch.testing.assert_close(gradient[finite], expected[finite], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distilled", [True, False])
def test_chosen_rows_alone_are_read_and_written(dtype, distilled):
    student, teacher, _ = batch(rows=9, dtype=dtype)
    rows, teacher_rows = torch.tensor([0, 2, 3, 7, 8]), torch.tensor([1, 2, 4, 5, 8])
    target = torch.tensor([3, 1, 0, 39, 5])
    objective = Objective(0.3, 2.0, 0.1)
    untouched = student.clone()
    teacher_of = teacher if distilled else None
    chosen = teacher_rows if distilled else None
    terms, gradient = run(student, teacher_of, target, objective, rows=rows, teacher_rows=chosen)
    assert torch.equal(student, untouched)
    expected_terms, expected = definition(
        student[rows], teacher[teacher_rows] if distilled else None, target, objective
    )
    tight = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(terms.double(), expected_terms, rtol=tight, atol=tight)
    torch.testing.assert_close(gradient[rows].double(), expected, rtol=tight, atol=tight)
    assert (gradient[[1, 4, 5, 6]] == 7.0).all()
    in_place = student.clone()
    kernels.one_pass(in_place, teacher_of, target, objective, rows=rows, teacher_rows=chosen, gradient=in_place)
    assert torch.equal(in_place[rows], gradient[rows])
    assert torch.equal(in_place[[1, 4, 5, 6]], student[[1, 4, 5, 6]])


def test_threads_share_the_rows_and_change_nothing(monkeypatch):
    student, teacher, target = batch(rows=11, vocab=100)
    objective = Objective(0.3, 2.0, 0.1, "js")
    one = run(student, teacher, target, objective)
    monkeypatch.setattr(kernels, "MIN_ENTRIES", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    ran = []
    real = compiled_rows.dense_rows
    monkeypatch.setattr(
        compiled_rows, "dense_rows", lambda *arguments: (ran.append(arguments[1].tolist()), real(*arguments))
    )
    several = run(student, teacher, target, objective)
    assert sorted(ran) == [[0, 1], [2, 3, 4], [5, 6, 7], [8, 9, 10]]
    assert all(torch.equal(a, b) for a, b in zip(one, several))


def test_first_of_equal_best_entries_agrees():
    student, teacher = torch.zeros(3, 500), torch.zeros(3, 500)
    student[0, [70, 300]] = teacher[0, [70, 450]] = 1.0
    student[1, 499], teacher[1, 498] = 1.0, 1.0
    terms, _ = run(student, teacher, torch.zeros(3, dtype=torch.long), Objective(0.5))
    assert terms[:, AGREE].tolist() == [1.0, 0.0, 1.0]


def test_cross_entropy_alone_and_without_gradient():
    student, _, target = batch(vocab=1500)
    objective = Objective(1.0, 1.0, 0.1)
    terms = kernels.one_pass(student, None, target, objective)
    expected, _ = definition(student, None, target, objective)
    torch.testing.assert_close(terms.double(), expected, rtol=2e-6, atol=2e-6)
    assert (terms[:, [CE, NLL]] > 0).all() and (terms[:, KD:] == 0).all()


def test_what_it_does_not_know_goes_to_pytorch():
    student, teacher, _ = batch()
    knows = engine.compiled_kernels
    assert knows(student, teacher, Objective(0.5)) is kernels
    assert knows(student, teacher, Objective(0.5, top1_rank=2)) is kernels
    assert knows(student.half(), teacher.t(), Objective(0.5)) is kernels
    assert knows(student, None, Objective(1.0, divergence="somebody's own")) is kernels
    assert knows(student, teacher, Objective(0.5, divergence="somebody's own")) is None


def test_compiled_code_is_kept_on_disk():
    student, teacher, target = batch()
    run(student, teacher, target, Objective(0.5))
    stats = compiled_rows.dense_rows.stats
    assert sum(stats.cache_hits.values()) + sum(stats.cache_misses.values()) > 0
    assert stats.cache_path


def test_no_place_for_compiled_code_leaves_pytorch(monkeypatch, caplog):
    from kd_plugin.losses.engine import dispatch as engine

    def no_locator(name):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(engine, "import_module", no_locator)
    assert engine.kernels_for.__wrapped__("cpu") is None and "NUMBA_CACHE_DIR" in caplog.text


def by_columns(logits, k, temperature, width):
    """top_entries, seeing only some columns at a time."""
    best = kernels._Best(logits.size(0), k, temperature, logits.dtype)
    for first in range(0, logits.size(1), width):
        best.add(logits[:, first : first + width].contiguous(), first)
    return best.finish()


def best_of_a_sort(logits, k, temperature):
    order = np.argsort(-logits.numpy(), axis=-1, kind="stable")
    exact = torch.log_softmax(logits.double() / temperature, dim=-1).gather(-1, torch.from_numpy(order))
    return order[:, :k], exact[:, :k], exact[:, k:].logsumexp(-1)


@pytest.mark.parametrize("scale", [0.0, 0.2, 5.0])
@pytest.mark.parametrize("widths", [None, 0, 1])
@pytest.mark.parametrize(
    "vocab,k", [(2, 1), (40, 16), (63, 7), (64, 7), (130, 16), (1023, 16), (4097, 33), (9000, 4000)]
)
def test_top_entries_are_those_of_a_sort(vocab, k, widths, scale):
    """Ties go to the lower index; scale 0 is nothing but ties. Whole rows, or as few columns as may be, or more."""
    logits, _, _ = batch(rows=6, vocab=vocab, scale=scale)
    logits[0] = logits[0].round()
    logits[1, : vocab - k] = -INF
    logits[2] = torch.linspace(-8.0, 0.0, vocab)  # the best come last
    logits[3] = torch.linspace(0.0, -8.0, vocab)
    logits[4] += torch.linspace(0.0, 100.0, vocab)  # what the mass of the others is relative to changes often
    if widths is None:
        ids, lprobs, log_rest = kernels.top_entries(logits.clone(), k, 2.0)
    else:
        ids, lprobs, log_rest = by_columns(logits, k, 2.0, 2 * k + 61 * widths)
    expected_ids, expected, rest = best_of_a_sort(logits, k, 2.0)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    torch.testing.assert_close(lprobs.double(), expected, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(log_rest.double(), rest, rtol=1e-6, atol=4e-6)
    assert log_rest[1] == -INF


@pytest.mark.parametrize("width", [None, 100, 2048])
@pytest.mark.parametrize("places", [[0], [0, 5, 64, 700], [4999], list(range(0, 5000, 2)), list(range(5000))])
def test_top_entries_of_rows_with_nan_stay_within_the_vocabulary(places, width):
    """What is wrong with such a row is seen in what is written of it, not in memory beyond it."""

    def best(logits):
        return kernels.top_entries(logits, 16) if width is None else by_columns(logits, 16, 1.0, width)

    logits, _, _ = batch(vocab=5000)
    expected = best(logits[1:].clone())
    logits[0, places] = float("nan")
    ids, lprobs, log_rest = best(logits)
    assert ids.min() >= 0 and ids.max() < 5000
    assert torch.isnan(lprobs[0]).all() or torch.isnan(log_rest[0])
    for one, other in zip((ids, lprobs, log_rest), expected):
        torch.testing.assert_close(one[1:], other, rtol=0, atol=0)


@pytest.mark.parametrize(
    "dtype,tolerance,with_bias,threads",  # each with each
    [(torch.float32, 2e-5, bias, threads) for bias, threads in ((False, 1), (True, 2))]
    + [(torch.float64, 1e-12, bias, threads) for bias, threads in ((True, 1), (False, 2))],
)
@pytest.mark.parametrize("rows,vocab,k", [(1100, 2049, 16), (600, 8193, 1), (3, 70_000, 16), (2, 40, 20), (0, 40, 16)])
def test_top_of_product_is_that_of_all_its_logits(rows, vocab, k, threads, with_bias, dtype, tolerance):
    """Several parts of rows and of columns, the last ones smaller; PyTorch has its threads afterwards."""
    generator = torch.Generator().manual_seed(4)
    features, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 8), (vocab, 8), (vocab,))
    )
    head = memory.LinearHead(weight, bias if with_bias else None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids, lprobs, log_rest = kernels.top_of_product(head, features, k, 1.5)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    logits = features.double() @ weight.double().t() + (bias.double() if with_bias else 0.0)
    _, expected, rest = best_of_a_sort(logits, k, 1.5)
    assert all(len(set(row)) == k for row in ids.tolist()) and ids.shape == lprobs.shape == (rows, k)
    exact = torch.log_softmax(logits / 1.5, dim=-1)
    for one in (lprobs.double(), exact.gather(-1, ids)):
        torch.testing.assert_close(one, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_rest.double(), rest, rtol=tolerance, atol=tolerance)


def test_a_change_to_another_file_is_compiled_anew(tmp_path, monkeypatch):
    """Numba itself looks at the file of the function alone."""
    from importlib.util import module_from_spec, spec_from_file_location

    from kd_plugin.losses.engine.compiled_rows import functions

    (tmp_path / "entry.py").write_text("def entry(x):\n    return x + 1\n")
    (tmp_path / "other.py").write_text("ONE = 1\n")
    monkeypatch.setattr(functions, "__file__", str(tmp_path / "functions.py"))
    spec = spec_from_file_location("entry", tmp_path / "entry.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    def compiled():
        dispatcher = functions.entry_point(module.entry)
        assert dispatcher(1) == 2
        return sum(dispatcher.stats.cache_misses.values())

    assert [compiled(), compiled()] == [1, 0]
    (tmp_path / "other.py").write_text("ONE = 2\n")
    assert compiled() == 1
