"""What the criterion logs and in which units, and the fused head inside it, without a training run."""

import math

import pytest
import torch
from fairseq.logging import metrics

from kd_plugin.criterions import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.errors import KDPluginError
from tests.reference import loss64
from tests.unit.test_criterion import PAD, TARGET, TEACHER, VOCAB, packed_criterion, setup

NATS = math.log(2)  # of a bit
# two batches, as two ranks or an update of --update-freq 2 would log them: sums over tokens, in nats
LOGS = [
    dict(
        loss=torch.tensor(8.0), nll_loss=torch.tensor(6.0), ce_loss=torch.tensor(7.0), kd_loss=torch.tensor(3.0),
        rank_loss=torch.tensor(0.5), teacher_nll_loss=torch.tensor(2.0), n_agree=torch.tensor(3), n_counted=5,
        n_distilled=4, kd_alpha=0.2, kd_temperature=1.0, n_batches=1, ntokens=5, nsentences=2, sample_size=5,
    ),
    dict(
        loss=torch.tensor(4.0), nll_loss=torch.tensor(3.0), ce_loss=torch.tensor(5.0), kd_loss=torch.tensor(2.0),
        rank_loss=torch.tensor(0.25), teacher_nll_loss=torch.tensor(1.0), n_agree=torch.tensor(1), n_counted=3,
        n_distilled=2, kd_alpha=0.4, kd_temperature=2.0, n_batches=1, ntokens=3, nsentences=1, sample_size=3,
    ),
]  # fmt: skip


def reduced(logs):
    with metrics.aggregate(new_root=True) as meters:
        KDLabelSmoothedCrossEntropyCriterion.reduce_metrics(logs)
    return {name: value for name, value in meters.get_smoothed_values().items() if not name.startswith("_")}


def test_every_term_is_logged_in_bits_a_token_over_all_batches():
    values = reduced(LOGS)
    expected = {
        "loss": 12 / 8 / NATS,
        "nll_loss": 9 / 8 / NATS,
        "ce_loss": 12 / 8 / NATS,
        "kd_loss": 5 / 8 / NATS,
        "rank_loss": 0.75 / 8 / NATS,
        "teacher_nll_loss": 3 / 6 / NATS,  # of the tokens that the teacher was asked about
        "agreement": 100 * 4 / 6,
        "kd_alpha": 0.3,
        "kd_temperature": 1.5,
        "kd_selected": 100 * 6 / 8,
    }
    assert values.keys() == expected.keys() | {"ppl"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=6e-3 if name in ("agreement", "kd_selected") else 6e-4), name
    assert values["ppl"] == pytest.approx(2 ** (9 / 8 / NATS), rel=0.02)


def test_losses_are_logged_to_three_digits_and_shares_to_two():
    values = reduced(LOGS)
    for name, digits in (("ce_loss", 3), ("kd_loss", 3), ("rank_loss", 3), ("teacher_nll_loss", 3), ("agreement", 2)):
        assert values[name] == round(values[name], digits) != round(values[name], digits - 1), name
    uneven = [{**LOGS[0], "kd_alpha": 0.123456, "kd_temperature": 1.23456, "n_counted": 7, "n_distilled": 2}]
    values = reduced(uneven)
    assert (values["kd_alpha"], values["kd_temperature"]) == (0.1235, 1.2346)
    assert values["kd_selected"] == 28.57


def test_batches_weigh_as_much_as_they_have_tokens_in_the_mean_of_an_epoch():
    with metrics.aggregate(new_root=True) as meters:
        for log in LOGS:
            KDLabelSmoothedCrossEntropyCriterion.reduce_metrics([log])
    values = meters.get_smoothed_values()
    assert values["ce_loss"] == pytest.approx(12 / 8 / NATS, abs=1e-3)
    assert values["kd_loss"] == pytest.approx(5 / 8 / NATS, abs=1e-3)
    assert values["rank_loss"] == pytest.approx(0.75 / 8 / NATS, abs=1e-3)
    assert values["teacher_nll_loss"] == pytest.approx(3 / 6 / NATS, abs=1e-3)
    assert values["agreement"] == pytest.approx(100 * 4 / 6, abs=1e-2)
    assert values["kd_selected"] == pytest.approx(100 * 6 / 8, abs=1e-2)
    assert values["kd_alpha"] == pytest.approx(0.3, abs=1e-4)
    assert values["kd_temperature"] == pytest.approx(1.5, abs=1e-4)


def test_what_was_not_asked_for_is_not_logged():
    stock = ("loss", "nll_loss", "ce_loss", "ntokens", "nsentences", "sample_size")
    without_teacher = [{name: log[name] for name in stock} for log in LOGS]
    assert reduced(without_teacher).keys() == {"loss", "nll_loss", "ppl", "ce_loss"}
    of_a_cache = [{k: v for k, v in log.items() if k not in ("teacher_nll_loss", "n_agree")} for log in LOGS]
    assert not reduced(of_a_cache).keys() & {"teacher_nll_loss", "agreement"}
    nothing_distilled = [{**log, "n_distilled": 0, "kd_loss": 0.0, "rank_loss": 0.0} for log in LOGS]
    values = reduced(nothing_distilled)
    assert not values.keys() & {"teacher_nll_loss", "agreement", "rank_loss"}
    assert values["kd_selected"] == 0 and values["kd_loss"] == 0
    everything = [{**log, "n_distilled": log["n_counted"]} for log in LOGS]
    assert "kd_selected" not in reduced(everything)


def test_one_distilled_token_is_enough_for_the_teachers_own_values():
    one = [{**LOGS[0], "n_distilled": 1, "n_agree": 1, "teacher_nll_loss": 2.0, "rank_loss": 1e-3}]
    values = reduced(one)
    assert values["teacher_nll_loss"] == pytest.approx(2 / NATS, abs=1e-3) and values["agreement"] == 100
    assert "rank_loss" in values


def test_numbers_not_tensors_are_logged():
    """Each tensor in a meter takes 250 bytes of every checkpoint."""
    with metrics.aggregate(new_root=True) as meters:
        KDLabelSmoothedCrossEntropyCriterion.reduce_metrics(LOGS)
    of_the_plugin = ("ce_loss", "kd_loss", "rank_loss", "teacher_nll_loss", "agreement", "kd_selected", "kd_alpha")
    assert not any(torch.is_tensor(meters[name].sum) for name in of_the_plugin)


def test_sums_of_a_batch_are_what_the_log_holds():
    model, criterion, sample = setup(TARGET, TEACHER, kd_alpha=0.3, kd_top1_rank=2)
    _, sample_size, log = criterion(model, sample)
    assert sample_size == log["sample_size"] == log["ntokens"] == log["n_counted"] == log["n_distilled"] == 9
    assert (log["nsentences"], log["n_batches"], log["kd_alpha"], log["kd_temperature"]) == (3, 1, 0.3, 1.0)
    logits = model.logits.detach().double()
    whole = loss64(logits.view(-1, VOCAB), TEACHER.view(-1, VOCAB), TARGET.view(-1), 0.3, 1.0, 0.1, PAD, top1_rank=2)
    plain = loss64(logits.view(-1, VOCAB), TEACHER.view(-1, VOCAB), TARGET.view(-1), 0.3, 1.0, 0.1, PAD)
    assert float(log["rank_loss"]) == pytest.approx(float(whole[3] - plain[3]), rel=1e-4)
    assert float(log["loss"]) == pytest.approx(0.3 * float(log["ce_loss"]) + 0.7 * float(log["kd_loss"]), rel=1e-5)


def test_sentence_averages_divide_by_sentences():
    model, criterion, sample = setup(TARGET, TEACHER)
    criterion.sentence_avg = True
    _, sample_size, log = criterion(model, sample)
    assert sample_size == log["sample_size"] == 3 and log["ntokens"] == 9


def test_accuracy_counts_the_tokens_that_the_student_gets_right():
    model, criterion, sample = setup(TARGET, TEACHER, report_accuracy=True)
    _, _, log = criterion(model, sample)
    right = (model.logits.detach().argmax(-1) == TARGET) & (TARGET != PAD)
    assert (log["n_correct"], log["total"]) == (int(right.sum()), 9)
    assert "n_correct" not in setup(TARGET, TEACHER)[1](model, sample)[2]


def test_losses_that_are_not_sums_are_refused():
    model, criterion, sample = setup(TARGET, TEACHER)
    with pytest.raises(KDPluginError, match="reduce=False"):
        criterion(model, sample, reduce=False)


def test_schedules_are_read_at_the_tasks_update():
    flags = dict(kd_schedule="linear", kd_schedule_updates=10, kd_alpha=1.0, kd_alpha_end=0.0)
    model, criterion, sample = setup(TARGET, TEACHER, num_updates=4, kd_temperature_end=3.0, **flags)
    assert criterion.distiller.alpha_and_temperature() == (pytest.approx(0.6), pytest.approx(1.8))
    assert criterion.distiller.temperature.ends() == [1.0, 3.0]
    log = criterion(model, sample)[2]
    assert (log["kd_alpha"], log["kd_temperature"]) == (pytest.approx(0.6), pytest.approx(1.8))
    del criterion.task.num_updates  # fairseq-validate has no update
    assert criterion.distiller.alpha_and_temperature() == (1.0, 1.0)
    assert setup(TARGET, TEACHER)[1].distiller.temperature.ends() == [1.0]


@pytest.mark.parametrize("alpha,packed", [(0.3, False), (0.0, False), (1.0, False), (0.3, True)])
def test_fused_head_gives_the_loss_and_gradients_of_logits(alpha, packed, dictionaries, tmp_path):
    """Against the same criterion without it: features, weight and bias in their places."""
    student, (plain, packing), sample = packed_criterion(dictionaries, tmp_path, kd_alpha=alpha, kd_temperature=2.0)
    bias = torch.nn.Parameter(torch.linspace(-1, 1, 32))
    student.decoder.output_projection.bias = bias
    results = []
    for criterion, fused in ((plain, False), (packing if packed else plain, True)):
        criterion.student.fused_head = fused
        student.zero_grad()
        loss, _, log = criterion.train()(student, sample)
        loss.backward()
        results.append(({n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}, log))
    (expected, expected_log), (found, log) = results
    assert found.keys() == expected.keys() and "decoder.output_projection.bias" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=name)
    assert log.keys() == expected_log.keys()
    for name, value in expected_log.items():
        assert float(log[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize(
    "change,named",
    [
        (lambda model: setattr(model, "find_unused_parameters", True), "--find-unused-parameters"),
        (lambda model: setattr(model.decoder, "output_projection", torch.nn.Identity()), "not a plain linear layer"),
        (
            lambda model: setattr(
                model.decoder.output_projection, "weight", torch.nn.Parameter(torch.zeros(32 * 16))
            ),
            "--ddp-backend fully_sharded",
        ),
    ],
)  # fmt: skip
def test_students_without_a_plain_projection_have_no_fused_head(change, named, dictionaries, tmp_path):
    student, (criterion, _), sample = packed_criterion(dictionaries, tmp_path, kd_fused_head=True)
    criterion(student, sample)
    change(student)
    with pytest.raises(KDPluginError, match=f"--kd-fused-head: .*{named}.* Remedy: train without --kd-fused-head"):
        criterion(student, sample)


def test_student_of_another_kind_has_no_fused_head():
    model, criterion, sample = setup(TARGET, TEACHER, kd_fused_head=True)
    with pytest.raises(KDPluginError, match="--kd-fused-head: the student's architecture"):
        criterion(model, sample)


def test_batch_that_the_cache_has_no_answers_for_gives_its_cross_entropy_alone():
    model, criterion, sample = setup(TARGET, TEACHER, kd_alpha=0.3)

    class Nothing:
        def covers(self, sample):
            return False

    criterion.task.teacher = Nothing()
    loss, _, log = criterion(model, sample)
    logits = model.logits.detach().double().view(-1, VOCAB)
    expected = loss64(logits, TEACHER.view(-1, VOCAB), TARGET.view(-1), 1.0, 1.0, 0.1, PAD)
    assert float(loss) == float(log["ce_loss"]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert float(log["nll_loss"]) == pytest.approx(float(expected[2]), rel=1e-5)
    assert not log.keys() & {"kd_loss", "n_batches", "kd_alpha"}
