"""--kd-on-policy: distillation on the student's own words."""

import copy
import functools

import pytest
import torch
from omegaconf import OmegaConf

from kd_plugin.criterions import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.distill.on_policy.policy import OnPolicy
from kd_plugin.distill.on_policy.sampled import Sampler
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.fairseq import load_teacher
from kd_plugin.teachers.online import OnlineTeacher
from tests.reference import loss64
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS
from tests.unit.data_folders import binarise
from tests.unit.test_task import task_of

SENTENCES = [([4, 5, 6], [7, 8]), ([9], [10, 11, 12, 13]), ([14, 15, 16, 17], [18]), ([19, 20], [21, 22, 23])]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    binarise(folder / "data", WORDS, "train", SENTENCES)
    for seed, name in enumerate(("teacher", "student")):
        make_checkpoint(folder / "data" / f"{name}.pt", folder / "data", *MODEL, "--dropout", 0, seed=seed)
    return folder / "data"


@functools.lru_cache(maxsize=None)
def _read(path):
    return load_teacher(str(path), task_of(path.parent))


def loaded(path):
    """A copy: reading a model takes longer than what most of these tests do with it."""
    return copy.deepcopy(_read(path))


def parts(made, left_pad_target=False, **flags):
    """(task with a teacher, student in float64, criterion, batch)."""
    task = task_of(made, left_pad_target=left_pad_target)
    task.teacher = OnlineTeacher([loaded(made / "teacher.pt")])
    task.load_dataset("train")
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[index] for index in range(len(dataset))])
    cfg = KDLabelSmoothedCrossEntropyCriterionConfig(label_smoothing=0.1, sentence_avg=False, **flags)
    student = loaded(made / "student.pt").model.double().train()
    for parameter in student.parameters():
        parameter.requires_grad_()
    return task, student, KDLabelSmoothedCrossEntropyCriterion(cfg, task), sample


def lprobs_of(model, net_input, previous):
    output = model(net_input["src_tokens"], net_input["src_lengths"], previous)
    return output[0].reshape(-1, output[0].size(-1))


def teachers_logits(made, net_input, previous):
    """In fp32, as the teacher computes them."""
    with torch.no_grad():
        return lprobs_of(loaded(made / "teacher.pt").model.eval(), net_input, previous).double()


def gradients(model, loss):
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros(()) if one is None else one for name, one in zip(names, found)}


def assert_same_gradients(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6, msg=name)


def parallel_prefix(logits, sample):
    """By loops: the first symbol as it is, then what the pass before ranked first at the position before."""
    previous, best = sample["net_input"]["prev_output_tokens"].clone(), logits.argmax(-1).view(sample["target"].shape)
    for sentence in range(previous.size(0)):
        columns = [c for c in range(previous.size(1)) if sample["net_input"]["prev_output_tokens"][sentence, c] != 1]
        for before, here in zip(columns, columns[1:]):
            previous[sentence, here] = best[sentence, before]
    return previous


@pytest.mark.parametrize("left_pad_target", [False, True])
@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_parallel_passes_against_float64(made, passes, left_pad_target, divergence):
    flags = dict(kd_alpha=0.3, kd_temperature=2.0, kd_on_policy="parallel", kd_on_policy_share=1.0)
    task, student, criterion, sample = parts(
        made, left_pad_target, kd_on_policy_passes=passes, kd_divergence=divergence, **flags
    )
    before = {key: value.clone() for key, value in sample["net_input"].items()}
    loss, sample_size, logs = criterion(student, sample)
    found = gradients(student, loss)
    assert all(torch.equal(before[key], value) for key, value in sample["net_input"].items())

    net_input, target = sample["net_input"], sample["target"].reshape(-1)
    previous = net_input["prev_output_tokens"]
    expected, own = 0.0, []
    for number in range(passes):
        logits = lprobs_of(student, net_input, previous)
        teacher = teachers_logits(made, net_input, previous)
        _, ce, _, kd = loss64(logits, teacher, target, 0.3, 2.0, 0.1, padding_idx=1, divergence=divergence)
        expected = expected + (0.3 * ce if number == 0 else 0.0) + 0.7 * 4 * kd / passes
        if number:
            own.append(kd.item())
        previous = parallel_prefix(logits, sample)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(found, gradients(student, expected))
    assert logs["on_policy_kd_loss"].item() == pytest.approx(sum(own) / len(own), rel=1e-5)
    assert logs["n_on_policy"] == 1 and logs["kd_alpha"] == 0.3 and sample_size == target.ne(1).sum()


@pytest.mark.parametrize("how", [{}, {"kd_fused_head": True}, {"kd_packed_student": True}])
def test_sampled_targets_against_float64(made, how):
    flags = dict(kd_alpha=0.3, kd_temperature=2.0, kd_on_policy="sampled", kd_on_policy_share=1.0)
    task, student, criterion, sample = parts(made, **flags, **how)
    (own, counts) = criterion.on_policy.own_batch(student, sample, 0)
    loss, sample_size, logs = criterion(student, sample)
    found = gradients(student, loss)
    net_input, target = own["net_input"], own["target"].reshape(-1)
    logits = lprobs_of(student, net_input, net_input["prev_output_tokens"])
    teacher = teachers_logits(made, net_input, net_input["prev_output_tokens"])
    *_, kd = loss64(logits, teacher, target, 0.0, 2.0, 0.1, padding_idx=1)
    expected = 0.7 * 4 * kd
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    assert_same_gradients(found, gradients(student, expected))
    assert sample_size == counts["n_own_tokens"] == target.ne(1).sum().item()
    assert logs["ntokens"] == sample_size and not {"nll_loss", "ce_loss"} & logs.keys()


def test_other_terms_are_logged_with_sampled_targets(made):
    _, student, criterion, sample = parts(
        made, kd_on_policy="sampled", kd_on_policy_share=1.0, kd_rdrop=1.0, kd_packed_student=True
    )
    logs = criterion(student, sample)[2]
    assert "rdrop_loss" in logs and "n_agree" not in logs and "teacher_nll_loss" not in logs


def sampler(task, seed=1, **flags):
    cfg = KDLabelSmoothedCrossEntropyCriterionConfig(**{f"kd_on_policy_{name}": value for name, value in flags.items()})
    return Sampler(cfg, task, seed)


def test_sampling_leaves_the_student_and_the_random_numbers_alone(made):
    task, student, _, sample = parts(made)
    student.decoder.layers[0].eval()  # a part that its user has frozen
    modes = [module.training for module in student.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    batch, _ = sampler(task)(student, sample, 5)
    assert torch.equal(torch.get_rng_state(), state) and modes == [module.training for module in student.modules()]
    assert not any(tensor.requires_grad for tensor in (batch["target"], batch["net_input"]["prev_output_tokens"]))
    torch.manual_seed(4)
    again, _ = sampler(task)(student, sample, 5)
    other, _ = sampler(task)(student, sample, 6)
    assert torch.equal(batch["target"], again["target"])
    assert batch["target"].shape != other["target"].shape or not torch.equal(batch["target"], other["target"])


def test_one_candidate_is_the_students_greedy_translation(made):
    """Word by word with the whole model, without incremental state."""
    task, student, _, sample = parts(made)
    batch, _ = sampler(task, topk=1, max_len_a=0.0, max_len_b=6)(student, sample, 0)
    student.eval()
    for number in range(len(SENTENCES)):
        source = sample["net_input"]["src_tokens"][number]
        source = source[source.ne(1)].unsqueeze(0)
        words = [2]
        while len(words) == 1 or (words[-1] != 2 and len(words) < 8):
            logits = student(source, torch.tensor([source.size(1)]), torch.tensor([words]))[0][0, -1].clone()
            logits[[1, 3]] = -torch.inf  # padding and the unknown symbol are never said
            words.append(int(logits.argmax()) if len(words) < 7 else 2)
        found = batch["target"][number]
        assert found[found.ne(1)].tolist() == words[1:]


def test_samples_follow_the_students_distribution(made):
    """First words of 4,000 draws against the student's own probabilities, at temperature 2 among 5 candidates."""
    task, student, _, sample = parts(made)
    dataset = task.dataset("train")
    sample = dataset.collater([dataset[0]] * 4000)
    sample["id"] = torch.arange(4000)
    batch, _ = sampler(task, temperature=2.0, topk=5, max_len_a=0.0, max_len_b=2)(student, sample, 0)
    with torch.no_grad():
        first = student.eval()(
            sample["net_input"]["src_tokens"][:1], sample["net_input"]["src_lengths"][:1], torch.tensor([[2]])
        )[0][0, 0]
    first[[1, 3]] = -torch.inf
    first[2] = -torch.inf  # fairseq's min_len: not even one word is no translation
    probabilities = torch.softmax(first / 2.0, -1)
    best = probabilities.topk(5)
    expected = best.values / best.values.sum()
    counts = torch.stack([(batch["target"][:, 0] == word).sum() for word in best.indices])
    assert counts.sum() == 4000
    torch.testing.assert_close(counts / 4000.0, expected.float(), rtol=0, atol=0.03)  # 4 standard deviations


def test_draws_serve_several_updates_and_survive_a_restart(made):
    task, student, _, sample = parts(made)
    one, other = sampler(task, buffer=3), sampler(task, buffer=3)
    first = one(student, sample, 0)[0]["target"]
    other.load_state_dict(one.state_dict())
    seconds = [one(student, sample, update) for update in (1, 2)]
    restored = [other(student, sample, update) for update in (1, 2)]
    for (batch, logs), (again, _) in zip(seconds, restored):
        assert torch.equal(batch["target"], again["target"]) and logs["drawing_seconds"] == 0.0
        assert batch["target"].shape != first.shape or not torch.equal(batch["target"], first)
        assert torch.equal(batch["net_input"]["src_tokens"], sample["net_input"]["src_tokens"])
    again, logs = one(student, sample, 3)
    assert logs["drawing_seconds"] > 0.0
    assert logs["n_drawn_tokens"] == sum(batch["ntokens"] for batch in (again, *one.state_dict()["buffer"]))
    assert sampler(task).state_dict() == {}


def test_repetition_is_counted_by_pairs(made):
    from kd_plugin.distill.on_policy.sampled import _counts

    counts = _counts(torch.tensor([[4, 5, 4, 5, 4, 2], [4, 4, 4, 2, 1, 1]]), 1)
    assert counts == dict(n_own_tokens=10, n_own_sentences=2, n_own_pairs=8, n_own_repeated=3)


def test_the_same_updates_on_every_rank_in_the_asked_share(made):
    task = task_of(made)
    cfg = KDLabelSmoothedCrossEntropyCriterionConfig(kd_on_policy="sampled", kd_on_policy_share=0.25)
    decisions = [[OnPolicy(cfg, task, seed).decides(update) for update in range(2000)] for seed in (1, 1, 2)]
    assert decisions[0] == decisions[1] != decisions[2]
    assert sum(decisions[0]) == pytest.approx(500, abs=80)
    never = OnPolicy(
        KDLabelSmoothedCrossEntropyCriterionConfig(kd_on_policy="sampled", kd_on_policy_share=0.0), task, 1
    )
    assert not never.asked and never.signature() == ""


def test_validation_reads_the_references(made):
    _, student, criterion, sample = parts(made, kd_on_policy="sampled", kd_on_policy_share=1.0)
    expected = parts(made)[2].eval()(student.eval(), sample)[2]
    logs = criterion.eval()(student.eval(), sample)[2]
    assert logs.keys() == expected.keys()
    torch.testing.assert_close(logs["nll_loss"], expected["nll_loss"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(kd_on_policy_share=0.7), "--kd-on-policy-share has no effect with --kd-on-policy off"),
        (
            dict(kd_on_policy="parallel", kd_on_policy_topk=4),
            "--kd-on-policy-topk has no effect with --kd-on-policy par",
        ),
        (dict(kd_on_policy="sampled", kd_on_policy_passes=2), "--kd-on-policy-passes has no effect with"),
        (dict(kd_on_policy="sampled", kd_on_policy_share=1.5), "must lie in \\[0, 1\\]"),
        (dict(kd_on_policy="parallel", kd_on_policy_passes=1), "--kd-on-policy-passes 1: must be 2 or more"),
        (dict(kd_on_policy="sampled", kd_on_policy_topk=99), "the target dictionary has 32 symbols"),
        (dict(kd_on_policy="sampled", kd_on_policy_topk=-1), "--kd-on-policy-topk -1: must be 0 or more"),
        (dict(kd_on_policy="sampled", kd_on_policy_temperature=0.0), "must be a finite number above 0"),
        (dict(kd_on_policy="sampled", kd_on_policy_temperature=float("nan")), "must be a finite number above 0"),
        (dict(kd_on_policy="sampled", kd_on_policy_max_len_a=-1.0), "--kd-on-policy-max-len-a -1.0"),
        (dict(kd_on_policy="sampled", kd_on_policy_max_len_b=0), "--kd-on-policy-max-len-b 0: must be 1 or more"),
        (dict(kd_on_policy="sampled", kd_on_policy_buffer=0), "--kd-on-policy-buffer 0: must be 1 or more"),
        (dict(kd_on_policy="sampled", kd_alpha=1.0), "--kd-alpha 1 does not use it"),
        (dict(kd_on_policy="parallel", kd_rdrop=1.0), "--kd-rdrop does not work with --kd-on-policy parallel"),
        (dict(kd_on_policy="parallel", kd_fused_head=True), "--kd-fused-head does not work with"),
        (dict(kd_on_policy="parallel", kd_packed_student=True), "--kd-packed-student does not work with"),
    ],
)
def test_flags_that_do_not_fit_are_refused(made, flags, message):
    with pytest.raises(KDPluginError, match=message):
        parts(made, **flags)


def test_without_a_teacher_with_a_cache_or_in_pieces_it_is_refused(made):
    task = task_of(made)
    cfg = KDLabelSmoothedCrossEntropyCriterionConfig(kd_on_policy="sampled", kd_alpha=1.0)
    with pytest.raises(KDPluginError, match="but there is none"):
        KDLabelSmoothedCrossEntropyCriterion(cfg, task)
    task.teacher = OnlineTeacher([load_teacher(str(made / "teacher.pt"), task)])
    task.teacher.answers_any_target = False
    cfg.kd_alpha = 0.5
    with pytest.raises(KDPluginError, match="a --teacher-cache has answers for its own targets only"):
        KDLabelSmoothedCrossEntropyCriterion(cfg, task)
    task.teacher.answers_any_target = True
    root = OmegaConf.create({"criterion": {}, "distributed_training": {"ddp_backend": "fully_sharded"}})
    task._config = root.criterion
    with pytest.raises(KDPluginError, match="--ddp-backend fully_sharded keeps in pieces"):
        KDLabelSmoothedCrossEntropyCriterion(cfg, task)
