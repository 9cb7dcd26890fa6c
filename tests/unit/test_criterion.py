"""The criterion without a training run: its flags, its rows, its stops."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary

from kd_plugin.criterions import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.distill.signature import run_signature
from kd_plugin.errors import KDPluginError
from kd_plugin.losses import DIVERGENCES
from kd_plugin.models import packed
from kd_plugin.teachers import Answer, OnlineTeacher, Teacher, TeacherAnswer
from kd_plugin.teachers.fairseq import FairseqMember
from kd_plugin.teachers.vocabulary import Symbols
from tests.reference import loss64
from tests.support import MODEL, make_checkpoint

PAD, VOCAB = 1, 9


class Model(torch.nn.Module):
    """A student whose logits are its parameters."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, src_tokens, src_lengths, prev_output_tokens):
        return self.logits, None

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return torch.log_softmax(net_output[0].float(), dim=-1)

    def get_targets(self, sample, net_output):
        return sample["target"]


class Logits(Teacher):
    """A teacher that says the same of every batch."""

    def __init__(self, logits):
        self.logits = logits  # (batch * length, vocab)

    def answer(self, batch, request):
        return Answer(TeacherAnswer(self.logits[request.rows]))

    def signature_fields(self):
        return ["teacher:logits"]


def criterion_of(task, **flags):
    return KDLabelSmoothedCrossEntropyCriterion(config(**flags), task)


def config(**flags):
    return KDLabelSmoothedCrossEntropyCriterionConfig(**{"label_smoothing": 0.1, "sentence_avg": False, **flags})


def setup(target, teacher_logits, num_updates=0, **flags):
    target_dictionary = Dictionary()
    generator = torch.Generator().manual_seed(0)
    model = Model(torch.randn(*target.shape, VOCAB, generator=generator) * 2)

    teacher = Logits(teacher_logits.reshape(-1, VOCAB))
    task = SimpleNamespace(target_dictionary=target_dictionary, teacher=teacher, num_updates=num_updates)
    criterion = criterion_of(task, **flags)
    tokens = torch.zeros(target.shape, dtype=torch.int64)
    net_input = {"src_tokens": tokens, "src_lengths": tokens[:, 0], "prev_output_tokens": tokens}
    sample = {
        "id": torch.arange(10, 10 + len(target)),
        "net_input": net_input,
        "target": target,
        "ntokens": int(target.ne(PAD).sum()),
    }
    return model, criterion, sample


TARGET = torch.tensor([[4, 5, 6, 2], [7, 8, 2, PAD], [4, 2, PAD, PAD]])
TEACHER = torch.randn(3, 4, VOCAB, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_loss_gradient_and_log_match_the_reference(alpha, prefix):
    flags = dict(kd_alpha=alpha, kd_temperature=2.0, ignore_prefix_size=prefix)
    model, criterion, sample = setup(TARGET, TEACHER, **flags)
    loss, sample_size, log = criterion(model, sample)
    loss.backward()

    target = TARGET.clone()
    target[:, :prefix] = PAD
    logits = model.logits.detach().double().requires_grad_()
    expected = loss64(logits.view(-1, VOCAB), TEACHER.view(-1, VOCAB), target.view(-1), alpha, 2.0, 0.1, PAD)
    expected[0].backward()
    for name, value in zip(("loss", "ce_loss", "nll_loss", "kd_loss"), expected):
        assert float(log[name]) == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-5, atol=1e-6)
    assert sample_size == 9 and log["n_distilled"] == int(target.ne(PAD).sum())

    rows = target.view(-1).ne(PAD)
    teacher = TEACHER.view(-1, VOCAB)[rows]
    nll = torch.nn.functional.cross_entropy(teacher.double(), target.view(-1)[rows], reduction="sum")
    assert float(log["teacher_nll_loss"]) == pytest.approx(nll.item(), rel=1e-5, abs=1e-6)
    agree = (teacher.argmax(-1) == model.logits.detach().view(-1, VOCAB)[rows].argmax(-1)).sum()
    assert int(log["n_agree"]) == int(agree)


PARAMETERS = dict(kd_js_beta=0.3, kd_skew_lambda=0.2, kd_adaptive_mu=0.6)


@pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
@pytest.mark.parametrize("k", [0, 2])
def test_divergence_and_its_parameters_are_those_of_the_flags(divergence, k):
    model, criterion, sample = setup(
        TARGET, TEACHER, kd_alpha=0.3, kd_temperature=2.0, kd_divergence=divergence, kd_top1_rank=k, **PARAMETERS
    )
    loss, _, log = criterion(model, sample)
    loss.backward()
    logits = model.logits.detach().double().requires_grad_()
    expected = loss64(
        logits.view(-1, VOCAB), TEACHER.view(-1, VOCAB), TARGET.view(-1), 0.3, 2.0, 0.1, PAD, divergence, k,
        **{name[3:]: value for name, value in PARAMETERS.items()},
    )  # fmt: skip
    expected[0].backward()
    for name, value in zip(("loss", "ce_loss", "nll_loss", "kd_loss"), expected):
        assert float(log[name]) == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    assert (float(log["rank_loss"]) > 0) == (k > 0)
    torch.testing.assert_close(model.logits.grad.double(), logits.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["batch", "global"])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_selection_distils_the_worst_tokens_in_training_and_all_in_validation(rule, alpha):
    flags = dict(kd_alpha=alpha, kd_selection=rule, kd_select_ratio=0.4, kd_queue_size=100)
    model, criterion, sample = setup(TARGET, TEACHER, **flags)
    logits, flat = model.logits.detach().view(-1, VOCAB), TARGET.view(-1)
    nll = torch.nn.functional.cross_entropy(logits, flat, reduction="none")
    worst = nll[flat.ne(PAD)].sort(descending=True).values[3]  # ceil(0.4 * 9) = 4 tokens
    chosen = (nll >= worst) & flat.ne(PAD)
    for training, distilled in ((True, chosen), (False, None)):
        criterion.train(training)
        loss, _, log = criterion(model, sample)
        double = logits.double().requires_grad_()
        expected = loss64(double, TEACHER.view(-1, VOCAB), flat, alpha, 1.0, 0.1, PAD, distilled=distilled)
        assert float(loss) == pytest.approx(expected[0].item(), rel=1e-5)
        assert float(log["kd_loss"]) == pytest.approx(expected[3].item(), rel=1e-5)
        assert int(log["n_distilled"]) == (4 if training else 9) and log["n_counted"] == 9
        if training:
            loss.backward()
            expected[0].backward()
            torch.testing.assert_close(model.logits.grad.double().view(-1, VOCAB), double.grad, rtol=1e-5, atol=1e-6)
    if rule == "global":
        assert (
            criterion.distiller.selection.queue.numel() == 9
        )  # one training batch; padding and validation stay outside


def packed_criterion(dictionaries, tmp_path, **flags):
    """A student, its teacher and batch, and the criterion with and without --kd-packed-student."""
    flat = ["-s", "en", "-t", "de", *MODEL, "--dropout", 0]
    student, taught_by = (make_checkpoint(tmp_path / f"{seed}.pt", dictionaries, *flat, seed=seed) for seed in (1, 2))
    target_dictionary = student.decoder.dictionary
    loaded = FairseqMember(taught_by, "teacher.pt", "0" * 64, 1, Symbols(), Symbols())
    task = SimpleNamespace(target_dictionary=target_dictionary, teacher=OnlineTeacher([loaded]), num_updates=0)
    source = torch.tensor([[4, 5, 6, 2], [PAD, 7, 8, 2], [PAD, PAD, 9, 2]])
    target = torch.tensor([[4, 5, 2, PAD, PAD], [7, 8, 9, 4, 2], [4, 2, PAD, PAD, PAD]])
    net_input = {
        "src_tokens": source,
        "src_lengths": source.ne(PAD).sum(dim=1),
        "prev_output_tokens": torch.cat([torch.full((3, 1), 2), target[:, :-1]], dim=1),
    }
    net_input["prev_output_tokens"][target == PAD] = PAD
    sample = {"id": torch.arange(3), "net_input": net_input, "target": target, "ntokens": 10}
    criteria = [criterion_of(task, kd_packed_student=packed, **flags) for packed in (False, True)]
    return student.train(), criteria, sample


@pytest.mark.skipif(not packed.AVAILABLE, reason="torch < 2.2: no student is packed")
@pytest.mark.parametrize(
    "flags",
    [
        dict(kd_alpha=0.3, kd_temperature=2.0, report_accuracy=True),
        dict(kd_alpha=1.0, ignore_prefix_size=2, report_accuracy=True),
        dict(kd_alpha=0.3, kd_fused_head=True, kd_selection="batch"),
        dict(kd_alpha=0.3, kd_selection="global", kd_inplace="off"),
    ],
)
def test_packed_student_computes_tokens_alone_and_gives_the_same(flags, dictionaries, tmp_path, monkeypatch):
    student, criteria, sample = packed_criterion(dictionaries, tmp_path, **flags)
    shapes, linear = [], torch.nn.functional.linear
    fc1 = student.encoder.layers[0].fc1.weight
    seen = lambda x, w, b=None: (shapes.append(tuple(x.shape[:-1])) if w is fc1 else None) or linear(x, w, b)  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "linear", seen)
    results = []
    for criterion in criteria:
        student.zero_grad()
        loss, sample_size, log = criterion.train()(student, sample)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
        results.append((gradients, {name: float(value) for name, value in log.items()}, sample_size))
    assert shapes == [(4, 3), (9,)]  # fairseq's rectangle, then the tokens that there are
    (one, one_log, one_size), (other, other_log, other_size) = results
    assert one.keys() == other.keys() and one_log.keys() == other_log.keys() and one_size == other_size
    assert one_log == pytest.approx(other_log, rel=1e-5, abs=1e-5)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.skipif(not packed.AVAILABLE, reason="torch < 2.2: no student is packed")
def test_packed_student_says_whose_hooks_it_cannot_serve(dictionaries, tmp_path):
    student, (_, criterion), sample = packed_criterion(dictionaries, tmp_path)
    student.decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(KDPluginError, match="--kd-packed-student: the student has hooks.*FloatingPointError"):
        criterion(student, sample)
    sample["net_input"]["prefix"] = sample["target"]
    student.decoder._forward_hooks.clear()
    with pytest.raises(KDPluginError, match=r"additional inputs \(prefix\)"):
        criterion(student, sample)


def test_a_batch_that_fairseq_throws_away_is_not_counted():
    """The dummy batch of a rank without data is judged, but its tokens enter neither queue nor threshold."""
    model, criterion, sample = setup(TARGET, TEACHER, kd_selection="global", kd_queue_size=100)
    criterion.train()
    criterion.task.is_dummy_batch = True
    loss, _, _ = criterion(model, sample)
    assert torch.isfinite(loss) and criterion.distiller.selection.queue.numel() == 0


def test_logits_that_are_not_ours_are_left_alone():
    """A model whose logits are a leaf: auto must not write over its parameters."""
    for how in ("auto", "off"):
        model, criterion, sample = setup(TARGET, TEACHER, kd_inplace=how)
        before = model.logits.detach().clone()
        criterion(model, sample)[0].backward()
        assert torch.equal(model.logits.detach(), before)


@pytest.mark.parametrize("extra", [[], ["--share-decoder-input-output-embed"], ["--share-all-embeddings"]], ids=str)
def test_logits_of_fairseqs_transformers_are_overwritten(extra, dictionaries, tmp_path):
    """auto must not be off by mistake: this is the path that students take."""
    student = make_checkpoint(tmp_path / "student.pt", dictionaries, "-s", "en", "-t", "de", *MODEL, *extra).train()
    tokens = torch.randint(4, 32, (3, 5))
    net_input = {"src_tokens": tokens, "src_lengths": torch.full((3,), 5), "prev_output_tokens": tokens}
    sample = {"id": torch.arange(3), "net_input": net_input, "target": tokens, "ntokens": 15}

    teacher = Logits(torch.zeros(15, 32))
    seen = {}
    forward = student.forward
    student.forward = lambda **inputs: seen.setdefault("output", forward(**inputs))
    for how, same in (("auto", False), ("off", True)):
        seen.clear()
        dictionary = Dictionary.load(str(dictionaries / "dict.de.txt"))
        task = SimpleNamespace(target_dictionary=dictionary, teacher=teacher, num_updates=0)
        criterion = criterion_of(task, kd_inplace=how)
        torch.manual_seed(1)
        loss, _, _ = criterion(student, sample)
        torch.manual_seed(1)
        untouched = forward(**net_input)[0]
        assert torch.equal(seen["output"][0], untouched) == same
        loss.backward()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_batch_of_padding_alone_gives_zero(alpha):
    """fairseq's dummy batch, and a rank without data."""
    model, criterion, sample = setup(torch.full((2, 3), PAD), torch.zeros(2, 3, VOCAB), kd_alpha=alpha)
    loss, _, log = criterion(model, sample)
    loss.backward()
    assert loss.item() == 0.0 and float(log["kd_loss"]) == 0.0
    assert torch.equal(model.logits.grad, torch.zeros_like(model.logits))


def test_same_keys_on_every_batch():
    keys = set()
    for target in (TARGET, torch.full((2, 3), PAD)):
        for alpha in (0.0, 0.5, 1.0):
            model, criterion, sample = setup(target, torch.zeros(*target.shape, VOCAB), kd_alpha=alpha)
            keys.add(tuple(sorted(criterion(model, sample)[2])))
    assert len(keys) == 1


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_not_finite_values_are_named(side, value, alpha):
    teacher = TEACHER.clone()
    model, criterion, sample = setup(TARGET, teacher, num_updates=41, kd_alpha=alpha)
    (model.logits.data if side == "student" else teacher)[1, 2, 3] = value
    with pytest.raises(
        KDPluginError, match=rf"kd_loss.* at update 42: NaN or infinite {side} logits, sample ids \[11\]"
    ):
        criterion(model, sample)


def test_not_finite_values_under_padding_do_no_harm():
    teacher = TEACHER.clone()
    model, criterion, sample = setup(TARGET, teacher)
    teacher[2, 3], model.logits.data[2, 3] = float("nan"), float("nan")
    assert torch.isfinite(criterion(model, sample)[0])


def test_masked_teacher_vocabulary_is_finite():
    teacher = TEACHER.clone()
    teacher[..., :4] = -float("inf")
    model, criterion, sample = setup(TARGET, teacher)
    assert torch.isfinite(criterion(model, sample)[0])


@pytest.mark.parametrize(
    "flags,named",
    [
        (dict(kd_alpha=1.2), "--kd-alpha 1.2"),
        (dict(kd_alpha=float("nan")), "--kd-alpha nan"),
        (dict(kd_alpha_end=-1.0, kd_schedule="linear", kd_schedule_updates=5), "--kd-alpha-end -1"),
        (dict(kd_temperature=0.0), "--kd-temperature 0"),
        (
            dict(kd_temperature_end=float("inf"), kd_schedule="linear", kd_schedule_updates=5),
            "--kd-temperature-end inf",
        ),
        (dict(label_smoothing=1.0), "--label-smoothing 1.0"),
        (dict(ignore_prefix_size=-1), "--ignore-prefix-size -1"),
        (dict(kd_alpha_end=0.1), "--kd-alpha-end has no effect with --kd-schedule constant"),
        (dict(kd_temperature_end=2.0), "--kd-temperature-end has no effect"),
        (dict(kd_schedule="cosine", kd_schedule_updates=5), "--kd-schedule cosine needs"),
        (dict(kd_schedule="cosine", kd_alpha_end=0.1), "--kd-schedule-updates 0"),
        (dict(kd_schedule_updates=5), "--kd-schedule-updates 5"),
        (dict(kd_schedule_updates=-5), "--kd-schedule-updates -5"),
        (dict(kd_js_beta=1.0), "--kd-js-beta 1.0"),
        (dict(kd_skew_lambda=0.0), "--kd-skew-lambda 0.0"),
        (dict(kd_adaptive_mu=-0.5), "--kd-adaptive-mu -0.5"),
        (dict(kd_top1_rank=-1), "--kd-top1-rank -1"),
        (dict(kd_select_ratio=0.0), "--kd-select-ratio 0.0"),
        (dict(kd_select_ratio=1.5), "--kd-select-ratio 1.5"),
        (dict(kd_queue_size=0), "--kd-queue-size 0"),
        (dict(kd_fused_head=True, report_accuracy=True), "--kd-fused-head"),
    ],
)
def test_values_out_of_range_are_refused_by_flag(flags, named):
    with pytest.raises(KDPluginError, match=named):
        setup(TARGET, TEACHER, **flags)


def test_without_a_teacher_only_alpha_one_is_accepted():
    task = SimpleNamespace(target_dictionary=Dictionary())
    criterion_of(task, kd_alpha=1.0)
    for flags in (
        dict(kd_alpha=0.9),
        dict(kd_alpha=1.0, kd_alpha_end=0.0, kd_schedule="linear", kd_schedule_updates=9),
    ):
        with pytest.raises(KDPluginError, match="no teacher"):
            criterion_of(task, **flags)


def test_student_with_adaptive_softmax_is_refused():
    model, criterion, sample = setup(TARGET, TEACHER)
    model.decoder = SimpleNamespace(adaptive_softmax=object())
    with pytest.raises(KDPluginError, match="adaptive softmax"):
        criterion(model, sample)


def test_signature_tells_every_setting():
    member = SimpleNamespace(
        sha256="1a2b3c4d" + 56 * "0", parameters=7_912_345, source_indices=None, target_indices=None
    )
    teacher = OnlineTeacher([member])
    line = run_signature(config(kd_alpha=0.5, kd_temperature=2.0), teacher)
    assert line.startswith(
        "kd|alpha:0.5|T:2.0|div:forward_kl|ls:0.1|select:all|teacher:sha256:1a2b3c4d(7.9M)|vocab:ok|fairseq"
    )
    assert f"|torch:{torch.__version__}|kd_plugin:" in line
    flags = config(kd_divergence="js", kd_top1_rank=5, kd_selection="global", kd_select_ratio=0.3)
    line = run_signature(flags, teacher)
    assert "|div:js(js_beta=0.5)+rank:5|" in line and "|select:global:0.3:30000|" in line
    member.target_indices = torch.arange(3)
    teacher = OnlineTeacher([member, member], [0.75, 0.25])
    assert "1a2b3c4d(7.9M)*0.75|teacher:sha256:1a2b3c4d(7.9M)*0.25|vocab:remapped" in run_signature(flags, teacher)
