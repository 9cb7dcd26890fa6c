"""--teacher-routing: several teachers for one multilingual student."""

import copy
import functools
import logging
import math

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hypothesis import given
from hypothesis import strategies as st

from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.criterions import KDLabelSmoothedCrossEntropyCriterion
from kd_plugin.criterions.flags import KDLabelSmoothedCrossEntropyCriterionConfig
from kd_plugin.errors import KDPluginError
from kd_plugin.losses.definition import Objective
from kd_plugin.losses.engine.dispatch import StudentLogits
from kd_plugin.losses.engine.fused_head import StudentFeatures
from kd_plugin.teachers.base import Request
from kd_plugin.teachers.online import OnlineTeacher
from kd_plugin.teachers.routing.batches import Drop, Sides, moved_columns, without_tags
from kd_plugin.teachers.routing.file import read_routing
from kd_plugin.teachers.routing.marking import WAYS, MarkByTag
from kd_plugin.teachers.routing.resting import Resting
from kd_plugin.teachers.routing.ways import Pair, Tags, ways_of_pairs
from tests.reference import loss64
from tests.support import MODEL, make_checkpoint
from tests.unit import multilingual
from tests.unit.data_folders import binarise
from tests.unit.test_task import task_of

WORDS = [f"word{i}" for i in range(24)]
TAGS = ["__de__", "__fr__", "__es__"]
DE, FR, ES = 28, 29, 30  # the tags' indices, behind those of WORDS and of fairseq's special symbols
# sources with a tag, of several lengths, and targets; the one with __es__ has no teacher
SENTENCES = [
    ([DE, 4, 5, 6], [7, 8]),
    ([FR, 9], [10, 11, 12, 13]),
    ([DE, 14], [15]),
    ([ES, 16, 17], [18, 19]),
    ([FR, 20, 21, 22, 23], [24]),
]


def routing_file(folder, text):
    path = folder / "routing.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Teachers without tags, one with tags, and a student's tagged data."""
    folder = tmp_path_factory.mktemp("routing")
    binarise(folder / "plain", WORDS, "train", [([4], [5])])
    binarise(folder / "data", [*WORDS, *TAGS], "train", SENTENCES)
    binarise(folder / "tagged", [*WORDS, *TAGS], "train", SENTENCES)
    for name, data, arguments in (
        ("de", "plain", MODEL),
        ("fr", "plain", [*MODEL, "--encoder-layers", 2]),
        ("lstm", "plain", ["--arch", "lstm"]),
        ("all", "tagged", [*MODEL, "--dropout", 0]),
    ):
        make_checkpoint(folder / name / "teacher.pt", folder / data, *arguments, seed=len(name))
        for language in ("en", "de"):
            source = folder / data / f"dict.{language}.txt"
            (folder / name / source.name).write_text(source.read_text())
    return folder


def routed(made, tmp_path, text, **fields):
    """A task with a routed teacher and its training data."""
    text = text.replace("@", f"{made}/") + "\nwithout_teacher: [__es__]\n"
    if "__fr__" not in text:
        text = text.replace("[__es__]", "[__es__, __fr__]")
    task = task_of(made / "data", teacher_routing=routing_file(tmp_path, text), **fields)
    task._load_teacher()
    task.load_dataset("train")
    return task


def batch_of(task):
    dataset = task.dataset("train")
    return dataset.collater([dataset[index] for index in range(len(dataset))])


def rows_of(sample):
    return sample["target"].ne(1).reshape(-1).nonzero(as_tuple=True)[0]


def covered_answer(task, sample, training=True):
    rows = rows_of(sample)
    covered = task.teacher.covered(sample, rows, training)
    return rows[covered], task.teacher.answer(sample, Request(rows[covered], torch.float32, training=training))


@functools.lru_cache(maxsize=None)
def own_model(path):
    return open_checkpoint(path).model


def own_lprobs(path, source, target):
    """A fairseq model's log-probabilities for one sentence, as fairseq itself computes them."""
    model = own_model(str(path))
    previous = torch.tensor([[2, *target]])
    with torch.no_grad():
        output = model(torch.tensor([[*source, 2]]), torch.tensor([len(source) + 1]), previous)
        return model.get_normalized_probs(output, log_probs=True)[0]


@pytest.mark.parametrize("left_pad_source", [True, False])
@pytest.mark.parametrize("left_pad_target", [True, False])
@pytest.mark.parametrize("french", ["fr", "lstm"])
def test_every_sentence_is_answered_by_its_own_teacher_without_the_tag(
    made, tmp_path, left_pad_source, left_pad_target, french
):
    text = f"teachers:\n  __de__: @de/teacher.pt\n  __fr__: @{french}/teacher.pt\n"
    if french == "lstm" and left_pad_target:
        pytest.skip("fairseq's lstm decoder does not take targets padded on the left")
    task = routed(made, tmp_path, text, left_pad_source=left_pad_source, left_pad_target=left_pad_target)
    sample = batch_of(task)
    rows, answer = covered_answer(task, sample)
    lprobs = torch.log_softmax(answer.distribution.logits, dim=-1)
    at = 0
    length = sample["target"].size(1)
    for number, sentence in enumerate(sample["id"].tolist()):
        source, target = SENTENCES[sentence]
        here = (rows // length == number).sum().item()
        if source[0] == ES:
            assert here == 0
            continue
        assert here == len(target) + 1
        name = "de" if source[0] == DE else french
        expected = own_lprobs(made / name / "teacher.pt", source[1:], target)
        found = lprobs[at : at + here]
        torch.testing.assert_close(found[:, : expected.size(1)], expected, rtol=1e-4, atol=1e-5)
        assert (found[:, expected.size(1) :] == -torch.inf).all()  # tags, which the teachers do not know
        at += here
    assert at == rows.numel()


def test_a_teacher_that_knows_the_tags_reads_them(made, tmp_path):
    task = routed(made, tmp_path, "teachers:\n  __de__: @all/teacher.pt\n  __fr__: @all/teacher.pt\n")
    sample = batch_of(task)
    rows, answer = covered_answer(task, sample)
    alone = task_of(made / "data", teacher_path=str(made / "all" / "teacher.pt"))
    alone._load_teacher()
    expected = alone.teacher.answer(sample, Request(rows, torch.float32)).distribution.logits
    assert len({route.name for route in task.teacher.experts}) == 2
    torch.testing.assert_close(answer.distribution.logits, expected)
    task = routed(made, tmp_path, "teachers:\n  __de__: {path: @all/teacher.pt, tags: strip}\n")
    rows, answer = covered_answer(task, sample)
    lprobs = torch.log_softmax(answer.distribution.logits, dim=-1)
    expected = own_lprobs(made / "all" / "teacher.pt", [14], [15])
    shortest = [at for at, row in enumerate(rows.tolist()) if sample["id"][row // sample["target"].size(1)] == 2]
    torch.testing.assert_close(lprobs[shortest], expected, rtol=1e-4, atol=1e-5)


def test_target_tags_are_not_distilled_by_a_teacher_without_them(made, tmp_path):
    pairs = [(source, [DE + n % 2, *target]) for n, (source, target) in enumerate([([4, 5], [6]), ([7], [8, 9, 10])])]
    binarise(tmp_path / "data", [*WORDS, *TAGS], "train", pairs)
    text = f"side: target\nteachers:\n  __de__: {made}/de/teacher.pt\n  __fr__: {made}/fr/teacher.pt\n"
    text += "without_teacher: [__es__]\n"
    task = task_of(tmp_path / "data", teacher_routing=routing_file(tmp_path, text))
    task._load_teacher()
    task.load_dataset("train")
    sample = batch_of(task)
    rows, answer = covered_answer(task, sample)
    length = sample["target"].size(1)
    assert rows.numel() == rows_of(sample).numel() - 2 and (rows % length > 0).all()
    lprobs = torch.log_softmax(answer.distribution.logits, dim=-1)
    at = 0
    for sentence in sample["id"].tolist():
        source, target = pairs[sentence]
        expected = own_lprobs(made / ("de", "fr")[sentence] / "teacher.pt", source, target[1:])
        torch.testing.assert_close(lprobs[at : at + len(target), : expected.size(1)], expected, rtol=1e-4, atol=1e-5)
        at += len(target)
    assert at == rows.numel()


class Alone(torch.nn.Module):
    """A student with given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **net_input):
        return (self.logits,)

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        return torch.log_softmax(net_output[0].float(), dim=-1)

    def get_targets(self, sample, net_output):
        return sample["target"]


def criterion_of(task, **flags):
    cfg = KDLabelSmoothedCrossEntropyCriterionConfig(label_smoothing=0.1, sentence_avg=False, **flags)
    return KDLabelSmoothedCrossEntropyCriterion(cfg, task)


@pytest.fixture(scope="module")
def shared_task(made, tmp_path_factory):
    """A task with teachers for two of the three languages; its criterions leave it as it is."""
    text = "teachers:\n  __de__: @de/teacher.pt\n  __fr__: @fr/teacher.pt\n"
    return routed(made, tmp_path_factory.mktemp("taught"), text)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("selection", ["all", "batch"])
@pytest.mark.parametrize("some", ["all", "none", "one"])
def test_loss_and_gradient_with_sentences_that_have_no_teacher(shared_task, cpu_engine, alpha, selection, some):
    """alpha CE + (1 - alpha) T² KL where there is a teacher, the whole cross-entropy elsewhere; in float64."""
    dataset = shared_task.dataset("train")
    chosen = {"all": range(5), "none": [3], "one": [0, 2]}[some]
    sample = dataset.collater([dataset[index] for index in chosen])
    torch.manual_seed(0)
    model = Alone(torch.randn(*sample["target"].shape, len(shared_task.target_dictionary), dtype=torch.float64))
    criterion = criterion_of(
        shared_task, kd_alpha=alpha, kd_temperature=2.0, kd_selection=selection, kd_select_ratio=0.5
    )
    loss, _, logs = criterion(model, sample)
    loss.backward()

    rows = rows_of(sample)
    length = sample["target"].size(1)
    taught = torch.tensor([SENTENCES[sample["id"][row // length]][0][0] != ES for row in rows.tolist()])
    leaf = model.logits.detach().reshape(-1, model.logits.size(-1))[rows].requires_grad_()
    target = sample["target"].reshape(-1)[rows]
    distilled = taught.clone()
    if selection == "batch" and taught.any():
        nll = -torch.log_softmax(leaf.detach(), -1).gather(1, target.unsqueeze(1)).squeeze(1)
        least = nll[taught].sort(descending=True).values[math.ceil(taught.sum() * 0.5) - 1]
        distilled = taught & (nll >= least)
    teacher = torch.zeros(rows.numel(), leaf.size(1), dtype=torch.float64)
    if distilled.any():
        answer = shared_task.teacher.answer(sample, Request(rows[distilled], torch.float32))
        teacher[distilled] = answer.distribution.logits.double()
    with_teacher, *_ = loss64(
        leaf[taught], teacher[taught], target[taught], alpha, 2.0, 0.1, distilled=distilled[taught].tolist()
    )
    _, ce, _, _ = loss64(leaf[~taught], leaf[~taught], target[~taught], 1.0, 1.0, 0.1)
    expected = with_teacher + ce
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    found = model.logits.grad.reshape(-1, leaf.size(1))[rows]
    torch.testing.assert_close(found, leaf.grad, rtol=1e-5, atol=1e-6)
    assert int(logs["n_untaught"]) == int((~taught).sum()) and int(logs["n_tokens"]) == rows.numel()
    assert {"kd_loss", "n_agree", "teacher_nll_loss"} <= logs.keys()  # whatever the batch: ranks sum their logs


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_fused_head_gives_the_same_loss_and_gradients(shared_task, alpha):
    sample = batch_of(shared_task)
    rows = rows_of(sample)
    covered = shared_task.teacher.covered(sample, rows, True)
    answer = shared_task.teacher.answer(sample, Request(rows[covered], torch.float32)).distribution
    torch.manual_seed(0)
    target = sample["target"].reshape(-1)[rows]
    features = torch.randn(rows.numel(), 8, requires_grad=True)
    weight = torch.randn(len(shared_task.target_dictionary), 8, requires_grad=True)
    given = dict(distilled=covered, alone=~covered)
    objective = Objective(alpha, 2.0, 0.1)
    fused, _ = StudentFeatures(features, weight).loss(answer, target, objective, **given)
    found = torch.autograd.grad(fused, [features, weight])
    every = torch.arange(rows.numel())
    whole, _ = StudentLogits(features @ weight.t(), every, every[:0]).loss(answer, target, objective, **given)
    torch.testing.assert_close(fused, whole)
    torch.testing.assert_close(found, torch.autograd.grad(whole, [features, weight]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["parallel", "sampled"])
def test_on_policy_updates_leave_sentences_without_a_teacher_alone(made, shared_task, alpha, mode):
    """They keep their whole cross-entropy on references (parallel), and teach nothing by their own words (sampled)."""
    dataset = shared_task.dataset("train")
    sample = dataset.collater([dataset[3]])  # the one without a teacher
    model = copy.deepcopy(own_model(str(made / "all" / "teacher.pt"))).train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    criterion = criterion_of(shared_task, kd_alpha=alpha, kd_on_policy=mode, kd_on_policy_share=1.0)
    loss, _, _ = criterion(model, sample)
    output = model.eval()(**sample["net_input"])
    _, ce, _, _ = loss64(output[0][0], output[0][0], sample["target"][0], 1.0, 1.0, 0.1)
    expected = ce if mode == "parallel" else 0 * ce
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    weight = model.decoder.layers[0].fc1.weight
    found, wanted = torch.autograd.grad(loss, weight)[0], torch.autograd.grad(expected, weight)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_logged_validation_losses_by_language(made, shared_task):
    sample = batch_of(shared_task)
    torch.manual_seed(0)
    model = Alone(torch.randn(*sample["target"].shape, len(shared_task.target_dictionary)))
    criterion = criterion_of(shared_task).eval()
    with torch.no_grad():
        _, _, logs = criterion(model, sample)
    lprobs = torch.log_softmax(model.logits.double(), -1)
    for tag, name in ((DE, "de"), (FR, "fr")):
        student = teacher = tokens = 0
        for number, sentence in enumerate(sample["id"].tolist()):
            source, target = SENTENCES[sentence]
            if source[0] == tag:
                words = torch.tensor([*target, 2])
                own = own_lprobs(made / name / "teacher.pt", source[1:], target)
                student -= lprobs[number, range(len(words)), words].sum().item()
                teacher -= own[range(len(words)), words].sum().item()
                tokens += len(words)
        assert logs[f"n_of:__{name}__"] == tokens
        assert logs[f"nll_of:__{name}__"].item() == pytest.approx(student, rel=1e-5)
        assert logs[f"teacher_nll_of:__{name}__"].item() == pytest.approx(teacher, rel=1e-5)
    criterion.train()
    assert not any(":" in key for key in criterion(model, sample)[2])


def test_a_teacher_rests_while_the_student_is_better(made, tmp_path, caplog):
    text = "switch_off: 0.5\nteachers:\n  __de__: @de/teacher.pt\n  __fr__: @fr/teacher.pt\n"
    task = routed(made, tmp_path, text)
    teacher, sample = task.teacher, batch_of(task)
    rows = rows_of(sample)
    tags = torch.tensor([SENTENCES[sample["id"][row // sample["target"].size(1)]][0][0] for row in rows.tolist()])

    def validated(de, fr):
        teacher.begin_validation()
        bit = 0.6931471805599453
        for name, (mine, its) in (("de", de), ("fr", fr)):
            teacher.validated(
                {
                    f"nll_of:__{name}__": mine * 10 * bit,
                    f"teacher_nll_of:__{name}__": its * 10 * bit,
                    f"n_of:__{name}__": 10,
                }
            )

    assert torch.equal(teacher.covered(sample, rows, True), tags != ES)
    with caplog.at_level(logging.INFO):
        validated(de=(2.0, 2.4), fr=(2.0, 2.6))  # only French is better by more than 0.5 bits
        assert torch.equal(teacher.covered(sample, rows, True), tags == DE)
    assert "__fr__: the student's validation loss is 2.000 bits" in caplog.text
    assert torch.equal(teacher.covered(sample, rows, False), tags != ES)  # validation goes on comparing
    assert teacher.state_dict() == {"resting": ["__fr__"]}
    resumed = routed(made, tmp_path, text).teacher
    resumed.load_state_dict(teacher.state_dict())
    assert torch.equal(resumed.covered(sample, rows, True), tags == DE)
    validated(de=(2.0, 3.0), fr=(2.0, 2.1))
    assert torch.equal(teacher.covered(sample, rows, True), tags == FR)
    assert "switch_off:0.5" in teacher.signature_fields()


def test_languages_without_validation_tokens_keep_their_state():
    resting = Resting(0.0)
    resting.load_state_dict({"resting": ["de"]})
    resting.begin_validation()
    resting.add({"nll_of:fr": 1.0, "teacher_nll_of:fr": 2.0, "n_of:fr": 1.0}, ["de", "fr"])
    assert resting.names() == {"de", "fr"}
    assert Resting(None).names() == set()


IDS = st.lists(st.integers(4, 9), min_size=1, max_size=5)


@given(
    st.lists(st.tuples(IDS, IDS), min_size=1, max_size=5), st.booleans(), st.booleans(), st.integers(0, 2),
    st.integers(0, 2), st.booleans(), st.data(),
)  # fmt: skip
def test_batches_without_tags_are_as_if_there_had_never_been_any(pairs, left_s, left_t, drop_s, drop_t, replaced, data):
    tag = 12
    if replaced:
        drop_s = drop_t = 0
    drop = Drop(drop_s, drop_t, replaced, replaced)

    def collated(tagged, chosen):
        sources, previous = [], []
        for number in chosen:
            source, target = pairs[number]
            mine = [tag] * drop_s if tagged else []
            said = [tag] * drop_t if tagged else []
            end, start = (tag, tag) if replaced and tagged else (2, 2)
            sources.append(torch.tensor([*mine, *source, end]))
            previous.append(torch.tensor([start, *said, *target]))
        collate = lambda rows, left: data_utils.collate_tokens(rows, 1, left_pad=left)  # noqa: E731
        lengths = torch.tensor([len(row) for row in sources])
        tokens, said = collate(sources, left_s), collate(previous, left_t)
        return {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": said}

    every = list(range(len(pairs)))
    chosen = data.draw(st.lists(st.sampled_from(every), min_size=1, unique=True).map(sorted))
    whole, expected = collated(True, every), collated(False, chosen)
    sides = Sides([1, 1], [2, 2], [left_s, left_t])
    found = without_tags(whole, torch.tensor(chosen), drop, sides)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    # a token of a target keeps its own place
    length, width = whole["prev_output_tokens"].size(1), expected["prev_output_tokens"].size(1)
    for at, number in enumerate(chosen):
        columns = [c for c in range(length) if whole["prev_output_tokens"][number, c] != 1][drop_t:]
        moved = moved_columns(torch.tensor(columns), length, width, drop, sides).tolist()
        assert moved == [c for c in range(width) if expected["prev_output_tokens"][at, c] != 1]


@given(st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=4), min_size=1, max_size=6), st.booleans(), st.data())
def test_tags_are_recognised_as_by_comparing_tokens(sentences, left, data):
    tags = data.draw(
        st.lists(st.lists(st.integers(4, 6), min_size=1, max_size=3), min_size=1, max_size=4, unique_by=tuple)
    )
    tags.sort(key=lambda tag: -len(tag))
    tokens = data_utils.collate_tokens([torch.tensor([*s, 2]) for s in sentences], 1, left_pad=left)
    found = MarkByTag(None, "source", [torch.tensor(tag) for tag in tags], 1).of(tokens)
    expected = [next((n for n, tag in enumerate(tags) if s[: len(tag)] == tag), -1) for s in sentences]
    assert found == expected


PAIRS = [Pair("de", "en", Tags(("__de__",))), Pair("fr", "en", Tags(("__fr__",))), Pair("en", "fr", Tags(("__en__",)))]


def of_pairs(tmp_path, text):
    ways = ways_of_pairs(read_routing(routing_file(tmp_path, text)), PAIRS)
    return {pair.name: way.route for pair, way in ways.items()}


def test_pairs_are_found_by_name_then_by_pattern_then_by_tag(tmp_path):
    text = "teachers:\n  '*-en': a.pt\n  de-en: b.pt\n  __en__: c.pt\n"
    assert of_pairs(tmp_path, text) == {"de-en": 1, "fr-en": 0, "en-fr": 2}
    text = "teachers: {'*': a.pt}\nwithout_teacher: [fr-en]"
    assert of_pairs(tmp_path, text) == {"de-en": 0, "fr-en": None, "en-fr": 0}
    assert of_pairs(tmp_path, "teachers: {en-fr: a.pt}") == {"de-en": None, "fr-en": None, "en-fr": 0}


def test_norwegian_is_a_language(tmp_path):
    (route,) = read_routing(routing_file(tmp_path, "teachers:\n  no: 007.pt\n")).routes
    assert (route.name, route.path) == ("no", "007.pt")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "does not say `teachers:`"),
        ("teachers: {}", "does not say `teachers:`"),
        ("teachers: [a, b]", "does not say `teachers:`"),
        ("teachers: {de-en: a.pt", "not valid YAML"),
        ("teachers: {de-en: a.pt}\nteacher: x", "unknown key `teacher`"),
        ("teachers: {de-en: {path: a.pt, wieghts: 1}}", "unknown key `wieghts` of `de-en`"),
        ("teachers: {de-en: {weights: '1'}}", "`de-en` has no path"),
        ("teachers: {de-en: [a]}", "neither a path nor a mapping"),
        ("teachers:\n  de-en: a.pt\n  de-en: b.pt\n", "occurs twice"),
        ("teachers: {de-en: a.pt}\nswitch_off: maybe", "`switch_off: maybe`"),
        ("teachers: {de-en: a.pt}\nswitch_off: nan", "`switch_off: nan`"),
        ("teachers: {de-en: a.pt}\nside: both", "`side: both`"),
        ("teachers: {de-en: a.pt}\nwithout_teacher: fr-en", "is not a list of names"),
        ("teachers: {de-en: a.pt}\nwithout_teacher: [de-en]", "`de-en` occurs twice"),
        ("teachers: {de-en: {path: a.pt, tags: maybe}}", "`tags: maybe` of `de-en`"),
        ("teachers: {de-en: {path: a.pt, missing_symbols: maybe}}", "`missing_symbols: maybe`"),
        ("teachers: {de-en: {path: {a: b}}}", "`path` of `de-en` is not text"),
        ("teachers: &a\n  de-en: *a\n", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_what_is_wrong(tmp_path, text, message):
    with pytest.raises(KDPluginError, match="--teacher-routing") as refused:
        read_routing(routing_file(tmp_path, text))
    assert message in str(refused.value) and "Remedy" in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KDPluginError, match="nowhere.yaml: No such file"):
        read_routing(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("teachers: {nl-en: a.pt}", "`nl-en` is neither a pair of --lang-pairs nor"),
        ("teachers: {'*-en': a.pt, 'fr-*': b.pt}", "both `\\*-en` and `fr-\\*` fit the pair fr-en"),
    ],
)
def test_routes_of_pairs_that_do_not_fit_are_refused(tmp_path, text, message):
    with pytest.raises(KDPluginError, match=message):
        of_pairs(tmp_path, text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("teachers: {de-en: @de/teacher.pt}", "`de-en` is not in the student's source dictionary"),
        ("teachers: {__de__: {path: @de/teacher.pt, tags: keep}}", "does not know __de__"),
        ("teachers: {__de__: @none.pt}", "`__de__`: .*none.pt"),
        ("side: target\nteachers: {__de__: @de/teacher.pt}", "no target sentence of train begins with"),
        ("teachers: {__de__: {path: @de/teacher.pt, sha256: '00'}}", "sha256"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(made, tmp_path, text, message):
    with pytest.raises(KDPluginError, match=message):
        routed(made, tmp_path, text)


@pytest.mark.parametrize("flag", ["teacher_path", "teacher_cache", "teacher_weights", "teacher_sha256"])
def test_flags_that_the_file_replaces_are_refused(made, tmp_path, flag):
    with pytest.raises(KDPluginError, match=f"--{flag.replace('_', '-')} excludes --teacher-routing"):
        routed(made, tmp_path, "teachers: {__de__: @de/teacher.pt}", **{flag: "0.5"})


def test_several_tokens_form_a_tag_and_the_longest_wins(made, tmp_path):
    """As sentencepiece writes a tag in front of text: the tag's piece after a lone word boundary."""
    task = routed(made, tmp_path, "teachers:\n  __de__: @de/teacher.pt\n  '__de__ word0': @fr/teacher.pt\n")
    sample = batch_of(task)
    taken = dict(zip(sample["id"].tolist(), sample[WAYS]))
    ways = {number: [way.name for way in task.teacher._ways][way] for number, way in taken.items()}
    assert ways == {0: "__de__ word0", 1: "__fr__", 2: "__de__", 3: "__es__", 4: "__fr__"}
    rows, answer = covered_answer(task, sample)
    expected = own_lprobs(made / "fr" / "teacher.pt", [5, 6], [7, 8])
    first = [at for at, row in enumerate(rows.tolist()) if sample["id"][row // sample["target"].size(1)] == 0]
    lprobs = torch.log_softmax(answer.distribution.logits, -1)[first]
    torch.testing.assert_close(lprobs[:, : expected.size(1)], expected, rtol=1e-4, atol=1e-5)


def test_the_student_keeps_its_own_files(made, tmp_path):
    """A routed teacher in the folder where the training saves is refused, as any other."""
    from kd_plugin.teachers.kinds import asked_files

    task = routed(made, tmp_path, "teachers:\n  __de__: '@de/teacher.pt:@fr/teacher.pt'\n")
    assert asked_files(task.cfg) == [f"{made}/de/teacher.pt", f"{made}/fr/teacher.pt"]
    assert (
        isinstance(task.teacher.experts[0].teacher, OnlineTeacher) and len(task.teacher.experts[0].teacher.members) == 2
    )
    assert any("teacher[__de__]:sha256:" in field for field in task.teacher.signature_fields())


def test_dictionaries_are_not_changed(made, tmp_path):
    task = routed(made, tmp_path, "teachers:\n  __de__: @de/teacher.pt\n")
    assert task.source_dictionary == Dictionary.load(str(made / "data" / "dict.en.txt"))


@functools.lru_cache(maxsize=None)
def multilingual_flags():
    """As fairseq-train has them; hydra takes a second for it."""
    words = ["data", "--task", "distillation_translation_multi_simple_epoch", "--arch", "transformer"]
    args = options.parse_args_and_arch(options.get_training_parser(), [*words, *multilingual.flags()])
    return convert_namespace_to_omegaconf(args).task


def multilingual_task(folder, **flags):
    """The task as fairseq-train sets it up, with its teacher and both of its data sets."""
    args = copy.deepcopy(multilingual_flags())
    vars(args).update(data=str(folder / "multi"), dataset_impl="mmap", **flags)
    task = tasks.setup_task(args)
    task._load_teacher()
    for split in ("train", "valid"):
        task.load_dataset(split)
    return task


@pytest.fixture(scope="module")
def bilingual(tmp_path_factory):
    """Multilingual data, and a teacher without language tokens for de-en and one for en-fr."""
    folder = tmp_path_factory.mktemp("pairs")
    data = multilingual.write(folder / "multi", splits=("train", "valid"))
    for pair, arguments in (("de-en", MODEL), ("en-fr", [*MODEL, "--decoder-layers", 2])):
        for language in pair.split("-"):
            (folder / pair).mkdir(exist_ok=True)
            name = f"dict.{language}.txt"
            (folder / pair / name).write_text((data / name).read_text())
        source, target = pair.split("-")
        make_checkpoint(
            folder / pair / "teacher.pt", folder / pair, *arguments, "-s", source, "-t", target, seed=len(arguments)
        )
    text = f"teachers:\n  de-en: {folder}/de-en/teacher.pt\n  en-fr: {folder}/en-fr/teacher.pt\n"
    routing_file(folder, text)
    return folder


# how fairseq samples does not depend on the tags, but on whether they replace ends of sentences
SAMPLING = [{}, {"sampling_method": "temperature", "virtual_epoch_size": 7}]
TAGGED = [
    (encoder, decoder, replacing, SAMPLING[(number + decoder) % 2])
    for number, encoder in enumerate([None, "src", "tgt"])
    for decoder in (False, True)
    for replacing in (False, True)
]


@pytest.mark.parametrize("encoder, decoder, replacing, sampling", TAGGED)
def test_every_pair_is_answered_by_its_own_teacher_whatever_the_tags(bilingual, encoder, decoder, replacing, sampling):
    task = multilingual_task(
        bilingual, encoder_langtok=encoder, decoder_langtok=decoder, lang_tok_replacing_bos_eos=replacing,
        teacher_routing=str(bilingual / "routing.yaml"), **sampling,
    )  # fmt: skip
    seen = set()
    for split in ("train", "valid"):
        dataset = task.dataset(split)
        sample = dataset.collater([dataset[index] for index in range(len(dataset))])
        rows, answer = covered_answer(task, sample)
        lprobs = torch.log_softmax(answer.distribution.logits, dim=-1)
        length, at = sample["target"].size(1), 0
        for number, (sentence, way) in enumerate(zip(sample["id"].tolist(), sample[WAYS])):
            pair = task.teacher._ways[way].name
            source, target = multilingual.DATA[pair][sentence]
            seen.add((split, pair))
            # the target really is that sentence's: ids alone do not say which pair they count
            words = [token for token in sample["target"][number].tolist() if 4 <= token < 28]
            assert words == target
            here = (rows // length == number).sum().item()
            if pair == "fr-en":
                assert here == 0
                continue
            assert here == len(target) + 1
            expected = own_lprobs(bilingual / pair / "teacher.pt", source, target)
            found = lprobs[at : at + here]
            torch.testing.assert_close(found[:, : expected.size(1)], expected, rtol=1e-4, atol=1e-5)
            at += here
        assert at == rows.numel()
    assert {pair for split, pair in seen if split == "valid"} == set(multilingual.DATA)


def test_data_sets_that_fairseq_keeps_are_marked_once(bilingual):
    task = multilingual_task(bilingual, teacher_routing=str(bilingual / "routing.yaml"))
    dataset = task.dataset("valid")
    before = dataset.collater([dataset[0], dataset[6]])
    task.teacher.attach_pairs(dataset, task.language_pairs())
    after = dataset.collater([dataset[0], dataset[6]])
    assert before[WAYS] == after[WAYS] and torch.equal(before["id"], after["id"])


def test_the_multilingual_task_refuses_what_it_cannot_do(bilingual, tmp_path):
    with pytest.raises(KDPluginError, match="--teacher-cache: a cache belongs to one language pair"):
        multilingual_task(bilingual, teacher_cache=str(tmp_path))
    path = routing_file(tmp_path, f"teachers: {{de-nl: {bilingual}/de-en/teacher.pt}}")
    with pytest.raises(KDPluginError, match="`de-nl` is neither a pair of --lang-pairs nor"):
        multilingual_task(bilingual, teacher_routing=path)
    path = routing_file(tmp_path, f"teachers: {{en-de: {bilingual}/de-en/teacher.pt}}")
    with pytest.raises(KDPluginError, match="`en-de` is neither"):
        multilingual_task(bilingual, teacher_routing=path)
    path = routing_file(tmp_path, f"teachers: {{fr-en: {bilingual}/en-fr/teacher.pt}}")
    with pytest.raises(KDPluginError, match="translates en-fr, but the student fr-en"):
        multilingual_task(bilingual, teacher_routing=path)
