"""Scores of classifiers: the libraries' numbers, their resamples, and significance by counting."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from kd_plugin.errors import KDPluginError
from kd_plugin.evaluation.classifiers import confusion, metrics
from kd_plugin.evaluation.scores import draws, mean_score

seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")

TAGS = ["O", "B-person", "I-person", "B-place", "I-place"]


def probabilities(rng, rows, kinds, sharp=2.0):
    found = np.exp(sharp * rng.standard_normal((rows, kinds)))
    return found / found.sum(axis=1, keepdims=True)


def by_name(found):
    return {metric.name: metric for metric in found}


@pytest.mark.parametrize("kinds", [2, 5])
def test_each_resample_of_a_classifier_has_scikit_learns_numbers(kinds):
    rng = np.random.default_rng(kinds)
    gold, said = rng.integers(0, kinds, 30), probabilities(rng, 30, kinds)
    drawn, best = draws(30, 40), said.argmax(axis=1)
    found = by_name(metrics.of_classes(gold, said))
    assert list(found) == ["accuracy", "macro F1", "MCC", "ECE"]
    libraries = {
        "accuracy": sklearn.accuracy_score,
        "macro F1": lambda truth, other: sklearn.f1_score(truth, other, average="macro", zero_division=0.0),
        "MCC": sklearn.matthews_corrcoef,
    }
    for name, library in libraries.items():
        assert found[name].value == pytest.approx(100 * library(gold, best))
        expected = [100 * library(gold[rows], best[rows]) for rows in drawn]
        np.testing.assert_allclose(found[name].resampled(drawn), expected, atol=1e-9)


def test_calibration_error_is_the_papers_sum_over_bins():
    rng = np.random.default_rng(3)
    gold, said = rng.integers(0, 3, 200), probabilities(rng, 200, 3)
    top, right = said.max(axis=1), said.argmax(axis=1) == gold
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (top > low) & (top <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert by_name(metrics.of_classes(gold, said))["ECE"].value == pytest.approx(100 * expected)


def test_a_classifier_that_knows_how_sure_to_be_has_no_calibration_error():
    said = np.array([[0.75, 0.25]] * 4)
    assert by_name(metrics.of_classes([0, 0, 1, 0], said))["ECE"].value == pytest.approx(0.0)
    assert by_name(metrics.of_classes([1, 1, 1, 1], said))["ECE"].value == pytest.approx(75.0)


@pytest.mark.parametrize("gold", [[0, 0, 0], [1, 1, 1]])
def test_a_test_set_of_one_class_is_scored_without_warnings(gold, recwarn):
    found = by_name(metrics.of_classes(gold, np.array([[0.9, 0.1]] * 3)))
    assert found["accuracy"].value == (100.0 if gold[0] == 0 else 0.0)
    assert found["MCC"].value == 0.0
    assert [score.value for score in metrics.scores(list(found.values()), 3, 10)] == [m.value for m in found.values()]
    assert not recwarn.list


def tagged(rng, sentences):
    return [[TAGS[at] for at in rng.integers(0, len(TAGS), rng.integers(1, 9))] for _ in range(sentences)]


def test_each_resample_of_a_tagger_has_seqevals_numbers():
    rng = np.random.default_rng(4)
    gold = tagged(rng, 25)
    said = [[tag if rng.random() < 0.7 else TAGS[rng.integers(0, 5)] for tag in tags] for tags in gold]
    words = probabilities(rng, sum(map(len, gold)), len(TAGS))
    found, drawn = by_name(metrics.of_tags(gold, said, TAGS, words)), draws(25, 30)
    assert list(found) == ["entity F1", "entity precision", "entity recall", "accuracy", "ECE"]
    libraries = {f"entity {name}": getattr(seqeval, f"{name.lower()}_score") for name in ("F1", "precision", "recall")}
    for name, library in libraries.items():
        assert found[name].value == pytest.approx(100 * library(gold, said))
        expected = [
            100 * library([gold[at] for at in rows], [said[at] for at in rows], zero_division=0) for rows in drawn
        ]
        np.testing.assert_allclose(found[name].resampled(drawn), expected, atol=1e-9)
    pairs = [(truth, other) for tags, others in zip(gold, said) for truth, other in zip(tags, others)]
    assert found["accuracy"].value == pytest.approx(100 * np.mean([truth == other for truth, other in pairs]))


def test_tags_that_make_no_entities_have_macro_f1_and_mcc_instead():
    words = probabilities(np.random.default_rng(5), 3, 2)
    found = metrics.of_tags([["NOUN", "VERB"], ["VERB"]], [["NOUN", "NOUN"], ["VERB"]], ["NOUN", "VERB"], words)
    assert [metric.name for metric in found] == ["macro F1", "MCC", "accuracy", "ECE"]


def test_words_that_a_model_could_not_read_count_as_wrong_but_not_for_its_calibration():
    words = np.array([[0.0, 1.0], [np.nan, np.nan]])
    found = by_name(metrics.of_tags([["B-x", "B-x"]], [["B-x", "O"]], ["O", "B-x"], words))
    assert found["accuracy"].value == 50.0
    assert found["ECE"].value == pytest.approx(0.0)
    assert found["entity recall"].value == 50.0


@pytest.mark.parametrize("at_once", [1, 7 * 16, 1 << 22])
def test_counts_of_pairs_are_those_of_whole_matrices(monkeypatch, at_once):
    """Whatever is held at once: the sums of dense one-hot pairs."""
    monkeypatch.setattr(confusion, "MATRICES", at_once)
    rng = np.random.default_rng(8)
    of_word = np.sort(rng.integers(0, 12, 60))
    truth, best, drawn = rng.integers(0, 4, 60), rng.integers(0, 4, 60), draws(12, 25)
    dense = np.zeros((12, 16))
    np.add.at(dense, (of_word, truth * 4 + best), 1)
    pairs = confusion.pairs_of(truth, best, 4, of_word, 12)
    for formula in (confusion.accuracy, confusion.macro_f1, confusion.matthews):
        expected = [100 * formula(dense[rows].sum(axis=0, keepdims=True))[0] for rows in drawn]
        np.testing.assert_allclose(confusion.of_pairs(pairs, formula)(drawn), expected, rtol=1e-12)


def test_many_labels_take_little_memory():
    """300 labels and 5,000 words: sentences times pairs of labels would be 360 MB, and 20 resamples at once 14 MB."""
    import tracemalloc

    rng = np.random.default_rng(9)
    names = [f"tag{number}" for number in range(300)]
    gold, said = ([[names[at] for at in rng.integers(0, 300, 10)] for _ in range(500)] for _ in range(2))
    words = np.full((5000, 300), 1 / 300, dtype=np.float32)
    tracemalloc.start()
    try:
        found = metrics.of_tags(gold, said, names, words)
        for metric in found:
            metric.resampled(draws(500, 20))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 150e6


def test_numbers_have_scipys_correlations():
    rng = np.random.default_rng(6)
    gold = rng.standard_normal(20)
    said = gold + rng.standard_normal(20)
    pearson, spearman = metrics.of_numbers(gold, said)
    assert pearson.value == pytest.approx(100 * stats.pearsonr(gold, said)[0])
    assert spearman.value == pytest.approx(100 * stats.spearmanr(gold, said)[0])
    rows = draws(20, 3)
    expected = [100 * stats.spearmanr(gold[drawn], said[drawn])[0] for drawn in rows]
    np.testing.assert_allclose(spearman.resampled(rows), expected)


def test_equal_numbers_have_no_correlation_and_the_score_says_so():
    (score, _) = metrics.scores(metrics.of_numbers(np.arange(4.0), np.ones(4)), 4, 10)
    assert score.value is None
    assert "all numbers are equal" in score.note


def test_intervals_and_significance_are_those_of_a_mean_of_sentences():
    rng = np.random.default_rng(7)
    gold, said, other = rng.integers(0, 2, 50), probabilities(rng, 50, 2), probabilities(rng, 50, 2)
    ours, theirs = metrics.of_classes(gold, said), metrics.of_classes(gold, other)
    found = metrics.scores(ours, 50, 200, theirs)[0]
    hits, base = (100.0 * (model.argmax(axis=1) == gold) for model in (said, other))
    expected = mean_score("accuracy", hits, found.signature, 200, base)
    for mine, right in zip(found, expected):
        assert mine == (right if isinstance(right, str) else pytest.approx(right))
    plain = metrics.scores(ours, 50, 0)[0]
    assert (plain.value, plain.confidence, plain.p_value) == (found.value, None, None)


def test_a_library_that_is_missing_is_named_with_its_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    with pytest.raises(KDPluginError, match="seqeval.metrics.*Remedy: .*setuptools_scm<8.*pip install seqeval"):
        metrics.of_tags([["B-x"]], [["B-x"]], ["O", "B-x"], np.array([[0.0, 1.0]]))
