"""Terms on inner states, through the criterion, beside float64 references made from fairseq's own states."""

import copy
import logging

import pytest
import torch

from kd_plugin.distill.terms.layer_map import Pair, layer_pairs
from kd_plugin.distill.terms.projections import Factor, HeadMixing, Projection
from kd_plugin.errors import KDPluginError
from kd_plugin.models import packed
from kd_plugin.models.hooks import hooked
from kd_plugin.models.states import Inner, Recorder, Shape, Side, StateKey
from tests.reference import attention64, cosine64, normalised64, relation64
from tests.unit.inner_models import PRE_NORM, TWO_LAYERS, WIDER, batch, criterion_for, model_of, task_of
from tests.unit.test_criterion import PAD, criterion_of

SOURCE = [(0, 1, 2, 3), (4, 5, 6), (7, 8)]  # positions of each sentence of `batch`
TARGET = [(0, 1, 2), (3, 4, 5, 6, 7), (8, 9)]
TERMS = {
    "mse": dict(kd_hidden="mse"),
    "cosine": dict(kd_hidden="cosine"),
    "relation": dict(kd_hidden="relation", kd_relation_heads=2),
    "factor": dict(kd_hidden="factor", kd_factor_updates=1, kd_factor_dim=6),
    "cross": dict(kd_attention="cross"),
    "self": dict(kd_attention="self"),
    "both": dict(kd_attention="both"),
}
every_term = pytest.mark.parametrize("term", sorted(TERMS))


def weight_flags(flags, value=0.7):
    return {f"{next(iter(flags))}_weight": value}


@pytest.fixture
def models(dictionaries, tmp_path):
    """A student of two layers of width 16 and a teacher of three layers of width 24."""
    return model_of(tmp_path, dictionaries, *TWO_LAYERS).train(), model_of(tmp_path, dictionaries, *WIDER, seed=2)


def states64(model, keys, gradient=False):
    """States in float64, by fairseq's own forward (tests/unit/test_states.py)."""
    exact = copy.deepcopy(model).double()
    sample = batch()
    rows = sample["target"].flatten().ne(PAD).nonzero().squeeze(1)
    recorder = Recorder(exact, sample["net_input"], Inner(frozenset(keys), rows))
    with hooked(recorder, exact):
        exact(**sample["net_input"])
    return recorder.states(), exact


def expected_of(flags, criterion, student, teacher, pairs):
    """The term in float64 from its definition, with gradients in the student's copy and the modules' copies."""
    kind = flags.get("kd_hidden", flags.get("kd_attention"))
    whats = {
        "relation": ("query", "key", "value"), "cross": ("cross",), "self": ("self",), "both": ("self", "cross"),
    }.get(kind, ("output",))  # fmt: skip
    whats_of = {p: [w for w in whats if w != "cross" or p.side == "decoder"] for p in pairs}
    ours, exact = states64(student, [StateKey(w, p.side, p.student) for p in pairs for w in whats_of[p]])
    theirs, _ = states64(teacher, [StateKey(w, p.side, p.teacher) for p in pairs for w in whats_of[p]])
    term = criterion.distiller.terms[-1]
    module = None if term.module is None else copy.deepcopy(term.module).double()
    total, number = 0.0, 0
    for p in pairs:
        for what in whats_of[p]:
            s, t = ours[StateKey(what, p.side, p.student)], theirs[StateKey(what, p.side, p.teacher)].detach()
            number += 1
            if kind == "relation":
                total = total + relation64(s, t, 2, SOURCE if p.side == "encoder" else TARGET)
            elif kind in ("cross", "self", "both"):
                total = total + attention64(s, t, module[p.name][what].scores.softmax(-1))
            elif kind == "factor":
                part = module[p.name]
                leaky = torch.nn.LeakyReLU(0.1)
                for a, b in zip(s, t):
                    f = leaky(normalised64(part.translate @ normalised64(a)))
                    c = leaky(normalised64(part.encode @ normalised64(b))).detach()
                    total = total + (c / c.norm() - f / f.norm()).abs().sum()
            else:
                weight = module[p.name].weight
                for a, b in zip(s @ weight.t(), t):
                    total = total + ((a - b).square().mean() if kind == "mse" else 1 - cosine64(a, b))
    return total / number, exact, module


LAST = [Pair("encoder", 2, 1), Pair("decoder", 2, 1)]


@every_term
@pytest.mark.parametrize("kind", ["plain", "packed", "fused", "both"])
def test_value_and_gradient_match_float64(term, kind, models):
    """Of every term, for every kind of student, beside a deeper and wider teacher with other heads."""
    if kind in ("packed", "both") and not packed.AVAILABLE:
        pytest.skip("torch < 2.2: no student is packed")
    student, teacher = models
    flags = dict(kd_packed_student=kind in ("packed", "both"), kd_fused_head=kind in ("fused", "both"))
    base = criterion_for(student, teacher, kd_alpha=0.3, **flags)
    without, _, _ = base(student, batch())
    without.backward()
    before = {name: p.grad.double() for name, p in student.named_parameters()}
    student.zero_grad()
    criterion = criterion_for(student, teacher, 5, kd_alpha=0.3, **flags, **TERMS[term], **weight_flags(TERMS[term]))
    loss, sample_size, log = criterion(student, batch())
    loss.backward()
    expected, exact, module = expected_of(TERMS[term], criterion, student, teacher, LAST)
    (0.7 * expected).backward()
    name = "attention_loss" if "kd_attention" in TERMS[term] else "hidden_loss"
    assert sample_size == 10 and float(log[name]) == pytest.approx(expected.item(), rel=2e-5)
    assert float(loss) == pytest.approx(float(without) + 0.7 * expected.item(), rel=2e-5)
    moved = 0
    for key, parameter in exact.named_parameters():
        share = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        moved += float(share.abs().sum()) > 0
        found = dict(student.named_parameters())[key].grad.double()
        torch.testing.assert_close(found, before[key] + share, rtol=2e-4, atol=2e-5, msg=key)
    assert moved > 5
    for key, parameter in module.named_parameters() if module is not None else ():
        found = dict(criterion.distiller.terms[-1].module.named_parameters())[key].grad.double()
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-5, msg=key)


@every_term
@pytest.mark.parametrize("flags", [[], PRE_NORM], ids=["post", "pre"])
def test_student_that_is_its_teacher_has_no_distance(term, flags, dictionaries, tmp_path):
    """With the identity as the projection, the teacher's own heads and the encoder of the code: below 1e-6."""
    student = model_of(tmp_path, dictionaries, *TWO_LAYERS, *flags).train()
    criterion = criterion_for(student, copy.deepcopy(student).eval(), 5, **TERMS[term])
    module = criterion.distiller.terms[-1].module
    for part in [] if module is None else module.modules():
        if isinstance(part, HeadMixing):
            part.scores.data = 200 * torch.eye(2)
        if isinstance(part, Projection):
            assert torch.equal(part.effective("weight"), torch.eye(16))
        if isinstance(part, Factor):
            part.translate.data.copy_(part.encode.data)
    _, _, log = criterion(student, batch())
    name = "attention_loss" if "kd_attention" in TERMS[term] else "hidden_loss"
    assert abs(float(log[name])) < 1e-6 * 19  # 1e-6 a position


@every_term
@pytest.mark.parametrize("pack", [False, True])
def test_padding_changes_nothing(term, pack, models):
    if pack and not packed.AVAILABLE:
        pytest.skip("torch < 2.2: no student is packed")
    student, teacher = models
    results = []
    for padding in (0, 5):
        criterion = criterion_for(student, teacher, 5, kd_packed_student=pack, **TERMS[term])
        if criterion.distiller.terms[-1].module is not None:
            state = results[0][2] if results else criterion.distiller.terms[-1].module.state_dict()
            criterion.distiller.terms[-1].module.load_state_dict(state)
        student.zero_grad()
        loss, _, log = criterion(student, batch(padding, padding))
        loss.backward()
        module = criterion.distiller.terms[-1].module
        gradients = {name: p.grad.clone() for name, p in student.named_parameters()}
        results.append((log, gradients, None if module is None else module.state_dict()))
    (log, gradients, _), (padded_log, padded, _) = results
    for name, value in log.items():
        assert float(padded_log[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
    for name, gradient in gradients.items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@every_term
def test_ignored_prefix_is_left_out_of_the_decoder(term, models):
    student, teacher = models
    logs = []
    for prefix in (0, 5):  # five columns: every target position
        criterion = criterion_for(student, teacher, 5, ignore_prefix_size=prefix, **TERMS[term])
        loss, _, log = criterion(student, batch())
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
        logs.append(float(log["attention_loss" if "kd_attention" in TERMS[term] else "hidden_loss"]))
    assert 0 <= logs[1] < logs[0] and (logs[1] == 0) == (term == "cross")  # the encoder's states stay


def test_with_selection_all_positions_are_compared(models):
    student, teacher = models
    logs = []
    for flags in (dict(), dict(kd_selection="batch", kd_select_ratio=0.3)):
        logs.append(criterion_for(student, teacher, kd_hidden="mse", **flags)(student, batch())[2])
    assert float(logs[0]["n_distilled"]) == 10 and float(logs[1]["n_distilled"]) == 3


def test_teacher_is_asked_once_for_everything(models, monkeypatch):
    student, teacher = models
    criterion = criterion_for(student, teacher, 5, kd_hidden="mse", kd_attention="both", kd_rdrop=1.0)
    asked = []
    real = criterion.distiller.teacher.answer
    monkeypatch.setattr(criterion.distiller.teacher, "answer", lambda b, r: (asked.append(r), real(b, r))[1])
    criterion(student, batch())
    (request,) = asked
    assert len(request.inner.keys) == 2 + 3 and request.rows.numel() == 10


def test_two_passes_count_their_mean(dictionaries, tmp_path):
    """R-Drop's passes beside a teacher's features: the mean of the terms of both."""
    student = model_of(tmp_path, dictionaries, *TWO_LAYERS, dropout=0.3).train()
    teacher = model_of(tmp_path, dictionaries, *WIDER, seed=2)
    criterion = criterion_for(student, teacher, kd_hidden="cosine", kd_attention="both", kd_rdrop=2.0)
    torch.manual_seed(3)
    loss, _, log = criterion(student, batch())
    single = criterion_for(student, teacher, kd_hidden="cosine", kd_attention="both")
    for term, other in zip(single.distiller.terms[-2:], criterion.distiller.terms[-2:]):
        term.module.load_state_dict(other.module.state_dict())
    torch.manual_seed(3)
    logs = [single(student, batch())[2] for _ in range(2)]  # the same draws, one pass after the other
    for name in ("hidden_loss", "attention_loss", "ce_loss", "kd_loss"):
        assert float(log[name]) == pytest.approx(sum(float(one[name]) for one in logs) / 2, rel=1e-5), name
        assert float(logs[0][name]) != float(logs[1][name])
    parts = 0.5 * log["ce_loss"] + 0.5 * log["kd_loss"] + log["hidden_loss"] + log["attention_loss"]
    assert float(loss) == pytest.approx(float(parts + 2 * log["rdrop_loss"]), rel=1e-5)


@pytest.mark.parametrize("mode", ["parallel", "sampled"])
def test_on_policy_updates_compare_states_too(mode, models):
    """parallel: those of the pass over the references, once; sampled: those over the student's own words."""
    student, teacher = models
    flags = dict(kd_hidden="mse", kd_attention="both", kd_alpha=0.3)
    criterion = criterion_for(student, teacher, kd_on_policy=mode, kd_on_policy_share=1.0, **flags)
    loss, _, log = criterion(student, batch())
    loss.backward()
    assert torch.isfinite(loss) and log["n_on_policy"] == 1
    for term in criterion.distiller.terms[-2:]:
        assert all(p.grad.abs().sum() > 0 for p in term.module.parameters())
    if mode == "parallel":
        plain = criterion_for(student, teacher, **flags)
        for term, other in zip(plain.distiller.terms[-2:], criterion.distiller.terms[-2:]):
            term.module.load_state_dict(other.module.state_dict())
        expected = plain(student, batch())[2]
        for name in ("hidden_loss", "attention_loss"):
            assert float(log[name]) == pytest.approx(float(expected[name]), rel=1e-5)


def test_weight_follows_the_schedule_and_is_not_computed_at_zero(models):
    student, teacher = models
    flags = dict(kd_schedule="linear", kd_schedule_updates=10, kd_hidden_weight=2.0, kd_hidden_weight_end=0.0)
    losses = {}
    for update in (0, 5, 10):
        criterion = criterion_for(student, teacher, update, kd_hidden="mse", **flags)
        losses[update] = criterion(student, batch())
        (term,) = [term for term in criterion.distiller.terms if term.name == "hidden"]
        assert term.weight(update) == pytest.approx(2.0 - 0.2 * update)
        parts = {name: float(value) for name, value in losses[update][2].items()}
        rest = 0.5 * parts["ce_loss"] + 0.5 * parts["kd_loss"]
        assert parts["loss"] == pytest.approx(rest + term.weight(update) * parts.get("hidden_loss", 0.0), rel=1e-5)
        assert ("hidden_loss" in parts) == (update < 10)
    assert "|hidden:mse:last:2>0:linear:10|" in criterion.distiller.signature
    losses[10][0].backward()  # what is not computed has a gradient of 0, which DistributedDataParallel waits for
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in criterion.parameters())


def test_weight_zero_is_no_term_at_all(models):
    student, teacher = models
    criterion = criterion_for(student, teacher, kd_hidden="mse", kd_hidden_weight=0.0, kd_attention="off")
    assert [term.name for term in criterion.distiller.terms] == ["tokens"] and not list(criterion.parameters())


# factor transfer


def test_auto_encoder_learns_alone_then_stays(models, caplog):
    """Its loss falls; the student's and the loss's other parts are those without it; frozen, it never moves again."""
    student, teacher = models
    caplog.set_level(logging.INFO)
    flags = dict(kd_hidden="factor", kd_factor_updates=30, kd_factor_dim=6, kd_hidden_weight=0.7)
    criterion = criterion_for(student, teacher, **flags)
    assert "from 24 to 6 dimensions, compression 4.0, learns for 30 updates" in caplog.text
    plain = criterion_for(student, teacher)
    plain(student, batch())[0].backward()
    expected = {name: p.grad.clone() for name, p in student.named_parameters()}
    student.zero_grad()
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.02)
    errors = []
    for update in range(33):
        criterion.task.num_updates = update
        optimizer.zero_grad()
        student.zero_grad()
        loss, _, log = criterion(student, batch())
        loss.backward()
        errors.append(float(log["factor_error"]) / log["n_factor"])
        module = criterion.distiller.terms[-1].module["encoder_2_1"]
        if update < 30:
            assert "hidden_loss" not in log and not module.frozen and log["n_factor"] == 19
            rest = 0.5 * log["ce_loss"] + 0.5 * log["kd_loss"]
            assert float(loss) == pytest.approx(float(rest + log["factor_error"]), rel=1e-5)
            for name, p in student.named_parameters():
                assert torch.equal(p.grad, expected[name]), name
            assert torch.equal(module.translate.grad, torch.zeros(6, 16)) and module.encode.grad.abs().sum() > 0
        else:
            assert module.frozen and log["hidden_loss"] > 0
            assert torch.equal(module.encode.grad, torch.zeros(6, 24)) and module.translate.grad.abs().sum() > 0
        optimizer.step()
    assert errors[30] < 0.7 * errors[0]
    assert errors[31] == errors[30] == errors[32]  # though Adam's momentum goes on moving the parameters
    assert not torch.equal(module.encode, module.frozen_encode)


def test_auto_encoder_is_not_frozen_by_a_validation(models):
    student, teacher = models
    criterion = criterion_for(student, teacher, 5, kd_hidden="factor", kd_factor_updates=1).eval()
    criterion(student, batch())
    assert not criterion.distiller.terms[-1].module["decoder_2_1"].frozen


# learning rate


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("rate", [0.25, 4.0])
def test_projections_learn_at_their_own_rate(optimizer, rate):
    """A step moves what the module computes with `rate` times as far, whatever the optimiser does with gradients."""
    steps = []
    for own in (1.0, rate):
        torch.manual_seed(0)
        module = Projection(5, 7, own)
        before = module.effective("weight").detach().clone()
        stepping = optimizer(module.parameters(), lr=0.01)
        module(torch.arange(10.0).view(2, 5)).square().sum().backward()
        stepping.step()
        steps.append((before, module.effective("weight").detach() - before))
    torch.testing.assert_close(steps[0][0], steps[1][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(steps[1][1], rate * steps[0][1], rtol=2e-3, atol=1e-5)


def test_another_rate_goes_on_with_the_same_projections():
    first, other = Factor(5, 8, 3, 0.5), Factor(5, 8, 3, 2.0)
    first.freeze()
    other.load_state_dict(first.state_dict())
    for name in ("encode", "decode", "translate"):
        torch.testing.assert_close(other.effective(name), first.effective(name))
    assert other.frozen and torch.equal(other.frozen_encode, first.frozen_encode)


# layer maps

SHAPES = Shape(Side(3, 16, 2), Side(2, 16, 2)), Shape(Side(6, 24, 3), Side(6, 24, 3))


@pytest.mark.parametrize(
    "text,encoder,decoder",
    [
        ("last", [(5, 2)], [(5, 1)]),
        ("uniform", [(1, 0), (3, 1), (5, 2)], [(2, 0), (5, 1)]),
        ("enc:0-1,5-2;dec:5-0", [(0, 1), (5, 2)], [(5, 0)]),
        ("dec:3-1", [], [(3, 1)]),
    ],
)
def test_layer_maps(text, encoder, decoder):
    pairs = layer_pairs(text, "--kd-hidden-layers", *SHAPES)
    assert [(p.teacher, p.student) for p in pairs if p.side == "encoder"] == encoder
    assert [(p.teacher, p.student) for p in pairs if p.side == "decoder"] == decoder


def test_uniform_maps_equal_depths_layer_by_layer_and_more_layers_to_fewer():
    same = layer_pairs("uniform", "", SHAPES[0], SHAPES[0])
    assert all(p.teacher == p.student for p in same) and len(same) == 5
    deeper = [p.teacher for p in layer_pairs("uniform", "", SHAPES[1], SHAPES[0]) if p.side == "encoder"]
    assert deeper == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "text,named",
    [
        ("first", "neither last nor uniform"),
        ("enc:0", "neither last nor uniform"),
        ("enc:0-1;enc:1-2", "neither last nor uniform"),
        ("enc:0-1,0-1", "each once"),
        ("enc:6-0", "teacher's encoder has no layer 6, but 6 layers"),
        ("dec:0-2", "student's decoder has no layer 2, but 2 layers"),
        ("", "neither last nor uniform"),
    ],
)
def test_maps_that_do_not_fit_are_refused_by_flag(text, named):
    with pytest.raises(KDPluginError, match=f"--kd-hidden-layers {text}: .*{named}.*Remedy: "):
        layer_pairs(text, "--kd-hidden-layers", *SHAPES)


# refusals


@pytest.mark.parametrize(
    "flags,named",
    [
        (dict(kd_hidden="mse", kd_hidden_weight=-1.0), "--kd-hidden-weight -1.0"),
        (dict(kd_hidden="mse", kd_hidden_weight=float("nan")), "--kd-hidden-weight nan"),
        (dict(kd_attention="self", kd_attention_weight=float("inf")), "--kd-attention-weight inf"),
        (dict(kd_hidden="mse", kd_hidden_weight_end=0.0), "--kd-hidden-weight-end has no effect"),
        (
            dict(kd_attention="self", kd_attention_weight_end=-1.0, kd_schedule="linear", kd_schedule_updates=3),
            "--kd-attention-weight-end -1.0",
        ),
        (dict(kd_hidden="mse", kd_projection_rate=0.0), "--kd-projection-rate 0.0"),
        (dict(kd_hidden="relation", kd_relation_heads=-1), "--kd-relation-heads -1"),
        (dict(kd_hidden="relation", kd_relation_heads=5), "--kd-relation-heads 5: does not divide the student's"),
        (dict(kd_hidden="relation", kd_relation_heads=16), "--kd-relation-heads 16: does not divide the teacher's"),
        (dict(kd_hidden="factor", kd_factor_updates=0), "--kd-factor-updates 0"),
        (dict(kd_hidden="factor", kd_factor_dim=-1), "--kd-factor-dim -1"),
        (dict(kd_hidden="factor", kd_factor_dim=24), "--kd-factor-dim 24: must be below"),
        (dict(kd_hidden="mse", kd_hidden_layers="enc:7-0"), "--kd-hidden-layers enc:7-0"),
        (dict(kd_hidden_layers="uniform"), "--kd-hidden-layers has no effect without --kd-hidden"),
        (dict(kd_attention="self", kd_factor_dim=3), "--kd-factor-dim has no effect without --kd-hidden"),
        (dict(kd_hidden="mse", kd_attention_weight=2.0), "--kd-attention-weight has no effect without --kd-attention"),
        (dict(kd_projection_rate=2.0), "--kd-projection-rate has no effect without --kd-hidden or --kd-attention"),
        (dict(kd_attention="cross", kd_attention_layers="enc:0-0"), "--kd-attention-layers enc:0-0: .*in the decoder"),
        (
            dict(kd_schedule="linear", kd_schedule_updates=3),
            "one of .*--kd-hidden-weight-end, --kd-attention-weight-end",
        ),
    ],
)
def test_values_out_of_range_are_refused_by_flag(flags, named, models):
    with pytest.raises(KDPluginError, match=named):
        criterion_for(*models, **flags)


@pytest.mark.parametrize("flag", ["kd_hidden", "kd_attention"])
def test_teachers_that_cannot_answer_are_refused_by_flag(flag, models, dictionaries, tmp_path):
    from tests.unit.test_criterion import TEACHER, Logits
    from tests.unit.test_teachers import ARCHITECTURES, LANGS, make_checkpoint

    student, teacher = models
    flags = {flag: {"kd_hidden": "mse", "kd_attention": "self"}[flag]}
    named = f"--{flag.replace('_', '-')} needs a teacher's .*"
    with pytest.raises(KDPluginError, match=named + "an ensemble of 2 teachers"):
        criterion_of(task_of(student, teacher, teacher), **flags)
    lstm = make_checkpoint(tmp_path / "lstm.pt", dictionaries, *LANGS, *ARCHITECTURES["lstm"])
    with pytest.raises(KDPluginError, match=named + "LSTMModel is not a transformer"):
        criterion_for(student, lstm, **flags)
    task = task_of(student)
    with pytest.raises(KDPluginError, match=named + "there is no teacher"):
        criterion_of(task, kd_alpha=1.0, **flags)
    task.teacher = Logits(TEACHER)
    with pytest.raises(KDPluginError, match=named + "Logits does not provide them"):
        criterion_of(task, **flags)


def test_students_whose_layers_cannot_be_read_are_refused_by_flag(models, dictionaries, tmp_path):
    student, teacher = models
    task = task_of(student, teacher)
    task.student_shape = None
    for flags in (dict(kd_hidden="mse"), dict(kd_attention="self")):
        with pytest.raises(
            KDPluginError, match=f"--{next(iter(flags)).replace('_', '-')}: the student is not a transf"
        ):
            criterion_of(task, **flags)
    checkpointed = model_of(tmp_path, dictionaries, "--checkpoint-activations", seed=4)
    for flags, named in ((dict(kd_hidden="relation"), "--kd-hidden relation"), (dict(kd_attention="self"), "--kd-att")):
        with pytest.raises(KDPluginError, match=f"{named}.*--checkpoint-activations"):
            criterion_for(checkpointed, teacher, **flags)
    loss, _, log = criterion_for(checkpointed, teacher, kd_hidden="mse")(checkpointed.train(), batch())
    assert log["hidden_loss"] > 0


def test_not_finite_states_are_named(models):
    student, teacher = models
    student.encoder.layers[1].fc2.weight.data[0, 0] = float("nan")
    criterion = criterion_for(student, teacher, 6, kd_alpha=1.0, kd_hidden="mse")
    criterion.distiller.terms = criterion.distiller.terms[1:]
    with pytest.raises(
        KDPluginError, match=r"hidden_loss not finite at update 7: .*encoder 2-1.*sample ids \[0, 1, 2\]"
    ):
        criterion(student, batch())


def test_layerdrop_leaves_out_the_pairs_of_layers_that_did_not_run(dictionaries, tmp_path):
    flags = [*TWO_LAYERS, "--encoder-layerdrop", 0.6, "--decoder-layerdrop", 0.6]
    student = model_of(tmp_path, dictionaries, *flags).train()
    teacher = model_of(tmp_path, dictionaries, *WIDER, seed=2)
    criterion = criterion_for(student, teacher, kd_hidden="cosine", kd_hidden_layers="uniform", kd_attention="both")
    values = set()
    for seed in range(10):
        torch.manual_seed(seed)
        student.zero_grad()
        loss, _, log = criterion(student, batch())
        loss.backward()
        assert torch.isfinite(loss) and {"hidden_loss", "attention_loss"} <= log.keys()
        values.add(round(float(log["hidden_loss"]), 4))
    assert len(values) > 3


def test_half_precision_gives_the_same_within_its_digits(models):
    """As fairseq's --fp16 has it: criterion and student in half precision; CPUs compute it too."""
    student, teacher = models
    for flags in TERMS.values():
        exact = criterion_for(student, teacher, 5, **flags)
        _, _, log = exact(student, batch())
        half = criterion_for(student, teacher, 5, **flags)
        if half.distiller.terms[-1].module is not None:
            half.distiller.terms[-1].module.load_state_dict(exact.distiller.terms[-1].module.state_dict())
        loss, _, found = half.half()(copy.deepcopy(student).half(), batch())
        (loss * 128).backward()
        name = "attention_loss" if "kd_attention" in flags else "hidden_loss"
        assert found[name].dtype == torch.float32
        assert float(found[name]) == pytest.approx(float(log[name]), rel=2e-2), flags
        for parameter in half.parameters():
            assert parameter.grad.dtype == torch.float16 and torch.isfinite(parameter.grad).all()
