"""Students that classify sentences or label words: the loss against references, labels by name, caches, ids."""

import pytest
import torch

from kd_plugin.corpus.labelled_folder import UNLABELLED
from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.base import Request
from tests.labelled import CLASSES, STOCK, TAGS, binarise, build, make_folders, plugin, save_checkpoint, sentences
from tests.reference import loss64

ALPHA, T = 0.3, 2.0
DISTIL = ["--kd-alpha", ALPHA, "--kd-temperature", T]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders, and untrained teachers with other weights than the students of these tests."""
    root = tmp_path_factory.mktemp("labelled")
    classes, tags = make_folders(root)
    save_checkpoint(root / "classes.pt", build(classes, *CLASSES, "--kd-alpha", 1, seed=8), classes)
    save_checkpoint(root / "tags.pt", build(tags, *TAGS, "--kd-alpha", 1, seed=9), tags)
    return root


@pytest.fixture(scope="module", params=["classes", "tags"])
def kind(request):
    return request.param


def flags(kind, root, *extra):
    return [*(CLASSES if kind == "classes" else TAGS), "--teacher-path", root / f"{kind}.pt", *extra]


def logits_of(model, batch, head):
    with torch.no_grad():
        logits = model(**batch["net_input"], features_only=True, classification_head_name=head)[0]
    return logits.reshape(-1, logits.size(-1)).double()


def test_loss_is_its_definition_in_float64(root, kind):
    """Words that do not begin at a symbol do not count; the log's sums are those of the definition."""
    built = build(root / kind, *flags(kind, root, *DISTIL))
    batch = built.batch()
    loss, size, logs = built.loss(batch)
    head = built.task.labelling.head
    student, teacher = (logits_of(m, batch, head) for m in (built.model, built.task.teacher.members[0].model))
    target = batch["target"].reshape(-1)
    rows = target >= 0
    expected, ce, _, kd = loss64(student[rows], teacher[rows], target[rows], ALPHA, T, 0.0)
    assert size == int(rows.sum()) and 0 < size
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for name, value in (("ce_loss", ce), ("nll_loss", ce), ("kd_loss", kd)):
        torch.testing.assert_close(logs[name].double(), value, rtol=1e-5, atol=1e-6)
    assert int(logs["ncorrect"]) == int((student[rows].argmax(-1) == target[rows]).sum())
    assert int(logs["n_agree"]) == int((student[rows].argmax(-1) == teacher[rows].argmax(-1)).sum())


def test_a_teacher_that_is_the_student_teaches_nothing(root, kind):
    built = build(root / kind, *flags(kind, root, "--kd-alpha", 0))
    built.model.load_state_dict(built.task.teacher.members[0].model.state_dict())
    loss, _, _ = built.loss(built.batch())
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-6 for p in built.model.parameters())


def test_a_sentence_of_one_word_and_an_empty_sentence(root):
    """A single word counts as any other; an empty sentence is classified, and refused where words are labelled."""
    built = build(root / "tags", *flags("tags", root, *DISTIL))
    built.task.load_dataset("train")
    dataset = built.task.datasets["train"]
    single = [at for at in range(len(dataset)) if int((dataset[at]["target"] >= 0).sum()) == 1]
    alone, together = built.loss(built.batch(single[:1])), built.loss(built.batch([single[0], 0]))
    assert alone[1] == 1 and torch.isfinite(alone[0]) and together[1] > 1
    rest = built.loss(built.batch([0]))[0]
    torch.testing.assert_close(together[0], alone[0] + rest, rtol=1e-4, atol=1e-5)


def reordered(folder, names):
    """The folder's labels, binarised with a dictionary of another order, or of other names."""
    labels = {split: [label for _, label in sentences(size, seed)] for split, size, seed in (("train", 64, 1),)}
    binarise(labels, folder / "label", symbols=names)
    (folder / "input0").symlink_to(folder.parent / "classes" / "input0")
    return folder


def test_labels_of_another_order_are_matched_by_name_and_others_refused(root):
    """The same sentence gets the same teacher's probability for `pos`, whatever its number."""
    turned = reordered(root / "turned", ["neg neg neg", "pos"])
    plain = build(root / "classes", *flags("classes", root, *DISTIL))
    other = build(turned, *flags("classes", root, *DISTIL))
    assert plain.task.labelling.names == other.task.labelling.names[::-1]
    values = []
    for built in (plain, other):
        batch = built.batch([3, 11, 5])
        answer = built.task.teacher.answer(batch, Request(torch.arange(3), torch.float32)).distribution.logits
        values.append(answer[:, built.task.labelling.names.index("pos")])
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-7)
    assert "vocab:remapped" in other.criterion.distiller.signature

    strange = reordered(root / "strange", ["neg", "positive"])
    with pytest.raises(KDPluginError, match="Only the teacher has 'pos'; only the student has 'positive'.*Remedy"):
        build(strange, *flags("classes", root, *DISTIL))
    named = build(strange, *flags("classes", root, *DISTIL, "--teacher-labels", "positive,neg"))
    first = plain.task.labelling.names.index("pos")
    assert named.task.teacher.members[0].target.indices.tolist() == [1, 0] if first == 0 else True


def test_ids_decide_which_answer_a_sentence_gets(root, kind, tmp_path):
    """Cached and online teachers agree sentence by sentence, in any order; two neighbours' answers differ."""
    from kd_plugin.cli import main

    task = "sentence_prediction" if kind == "classes" else "sequence_tagging"
    cache = tmp_path / "cache"
    assert main(["cache", str(root / kind), "--task", task, "--teacher-path", str(root / f"{kind}.pt"), "--cache-dir",
                 str(cache), "--init-token", "0", "--shard-tokens", "40"]) == 0  # fmt: skip
    online = build(root / kind, *flags(kind, root, *DISTIL))
    cached = build(root / kind, *(CLASSES if kind == "classes" else TAGS), *DISTIL, "--teacher-cache", cache)
    online.task.load_dataset("train")
    order = online.task.datasets["train"].ordered_indices()
    assert list(order) != sorted(order)
    for ids in (order[:7], order[7:20][::-1], [4]):
        one, other = online.batch(ids), cached.batch(ids)
        rows = (one["target"] != -100).reshape(-1).nonzero().squeeze(1)
        answers = [
            built.task.teacher.answer(batch, Request(rows, torch.float32)).distribution.logits
            for built, batch in ((online, one), (cached, other))
        ]
        torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-6)
        assert len(answers[0]) < 2 or float((answers[0] - answers[0].roll(1, 0)).abs().max()) > 1e-3
        cached.model.load_state_dict(online.model.state_dict())
        torch.testing.assert_close(online.loss(one)[0], cached.loss(other)[0], rtol=1e-5, atol=1e-6)
    assert "|cache:whole:fp32|" in cached.criterion.distiller.signature


def test_sentences_without_labels_learn_from_the_teacher_alone(root, kind, tmp_path):
    """In a mixed batch, they weigh as with alpha 0, the others as ever."""
    more = tmp_path / "more"
    text = [" ".join(f"\u2581{w}" if w not in ("lovely", "awful") else "\u2581the" for w in words)
            for words, _ in sentences(20, 5)]  # fmt: skip
    symbols = (root / kind / "input0" / "dict.txt").read_text().split("\n")
    binarise({"train": text}, more / "input0", [" ".join([s.split()[0]] * int(s.split()[1])) for s in symbols if s])
    (more / "input0" / "dict.txt").write_text("\n".join(symbols))
    built = build(root / kind, *flags(kind, root, *DISTIL, "--kd-unlabelled", more))
    labelled, unlabelled = [1, 2, 3], [64, 70]
    batch = built.batch([2, 64, 1, 70, 3])
    assert int((batch["target"] == UNLABELLED).sum()) > 0
    mixed, size, logs = built.loss(batch)
    own = built.loss(built.batch(labelled))[0]
    alone = build(root / kind, *flags(kind, root, "--kd-alpha", 0, "--kd-temperature", T, "--kd-unlabelled", more))
    alone.model.load_state_dict(built.model.state_dict())
    expected = own + alone.loss(alone.batch(unlabelled))[0]
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
    mixed.backward()
    assert size == int((batch["target"] != -100).sum())
    assert int(logs["n_labelled"]) == int((batch["target"] >= 0).sum()) == int(logs["n_referred"])

    # the hardest half of the labelled ones, and all unlabelled ones
    some = build(root / kind, *flags(kind, root, *DISTIL, "--kd-unlabelled", more, "--kd-selection", "batch"))
    counts = some.loss(batch)[2]
    known = int((batch["target"] >= 0).sum())
    assert int(counts["n_referred"]) == -(-known // 2)
    assert int(counts["n_distilled"]) == size - known + -(-known // 2)

    # the same from a cache of both folders
    from kd_plugin.cli import main

    task = "sentence_prediction" if kind == "classes" else "sequence_tagging"
    for folder in (root / kind, more):
        assert main(["cache", str(folder), "--task", task, "--teacher-path", str(root / f"{kind}.pt"), "--init-token",
                     "0", "--cache-dir", str(tmp_path / "cache"), "--label-dict",
                     str(root / kind / "label" / "dict.txt")]) == 0  # fmt: skip
    which = CLASSES if kind == "classes" else TAGS
    cached = build(root / kind, *which, *DISTIL, "--teacher-cache", tmp_path / "cache", "--kd-unlabelled", more)
    cached.model.load_state_dict(built.model.state_dict())
    torch.testing.assert_close(cached.loss(cached.batch([2, 64, 1, 70, 3]))[0], mixed, rtol=1e-5, atol=1e-6)
    for refused in (["--kd-alpha", 1], []):
        teacher = ["--teacher-path", root / f"{kind}.pt"] if refused else ["--kd-alpha", 1]
        with pytest.raises(KDPluginError, match="--kd-unlabelled .*: only a teacher can tell.*Remedy"):
            build(root / kind, *plugin(CLASSES if kind == "classes" else TAGS)[2:], *teacher, *refused,
                  "--kd-unlabelled", more)  # fmt: skip


def test_a_folder_without_labels_is_refused_unless_alpha_is_zero(root, tmp_path):
    folder = tmp_path / "bare"
    (folder / "label").mkdir(parents=True)
    (folder / "label" / "dict.txt").write_bytes((root / "classes" / "label" / "dict.txt").read_bytes())
    (folder / "input0").symlink_to(root / "classes" / "input0")
    with pytest.raises(
        KDPluginError, match="bare: the training data have no labels.*Remedy: --kd-alpha 0 and a teacher"
    ):
        build(folder, *flags("classes", root, *DISTIL))
    built = build(folder, *flags("classes", root, "--kd-alpha", 0))
    loss, size, logs = built.loss(built.batch())
    assert size == 8 and float(loss) > 0 and logs["n_labelled"] == 0
    reduced(built, [logs])


def reduced(built, logs):
    """The values that fairseq would show."""
    from fairseq.logging import metrics

    with metrics.aggregate(new_root=True) as shown:
        type(built.criterion).reduce_metrics(logs)
    return shown.get_smoothed_values()


def test_the_stock_task_still_trains_on_these_folders(root):
    built = build(root / "classes", *STOCK)
    assert torch.isfinite(built.loss(built.batch())[0])


@pytest.mark.parametrize("term", [["--kd-hidden", "mse"], ["--kd-hidden", "relation"], ["--kd-attention", "self"]])
def test_layers_of_encoders_are_compared(root, kind, term):
    """The teacher's own layers are at distance 0 without a projection, other layers are not; the value is added."""
    name = "attention_loss" if term[0] == "--kd-attention" else "hidden_loss"
    built = build(root / kind, *flags(kind, root, "--kd-alpha", 1, *term, f"{term[0]}-layers", "uniform"))
    batch = built.batch()
    loss, _, logs = built.loss(batch)
    assert float(logs[name]) > 0
    torch.testing.assert_close(loss, logs["ce_loss"] + logs[name], rtol=1e-5, atol=1e-5)
    loss.backward()
    first = built.model.encoder.sentence_encoder.layers[0].self_attn.q_proj.weight.grad
    assert float(first.abs().max()) > 0
    if term[1] == "relation":
        built.model.load_state_dict(built.task.teacher.members[0].model.state_dict())
        assert abs(float(built.loss(batch)[2][name])) < 1e-5
    elif term[1] == "mse":
        # by hand: the projection of the student's states, the teacher's, their normalised distance at real positions
        from kd_plugin.losses.representations import squared_distance

        term_of = next(t for t in built.criterion.distiller.terms if t.name == "hidden")
        real = batch["net_input"]["src_tokens"].ne(1)
        total = 0.0
        states = [
            m(batch["net_input"]["src_tokens"], features_only=True, return_all_hiddens=True)[1]["inner_states"]
            for m in (built.model, built.task.teacher.members[0].model)
        ]
        for layer, pair in enumerate(term_of.pairs):
            ours, theirs = (some[layer + 1].transpose(0, 1)[real] for some in states)
            total = total + squared_distance(term_of.of(pair)(ours), theirs).sum() / len(term_of.pairs)
        torch.testing.assert_close(logs[name], total.detach(), rtol=1e-4, atol=1e-5)


def numbers_folder(root, folder):
    """The sentences with two numbers each."""
    folder.mkdir()
    (folder / "input0").symlink_to(root / "classes" / "input0")
    (folder / "label").mkdir()
    for split, size, seed in (("train", 64, 1), ("valid", 13, 2)):
        lines = [f"{len(words)} {len(label) / 3 - len(words) / 7}" for words, label in sentences(size, seed)]
        (folder / "label" / f"{split}.label").write_text("".join(f"{line}\n" for line in lines))
    return folder


NUMBERS = [*CLASSES, "--regression-target", "--num-classes", 2]


def test_numbers_are_learned_by_squared_errors(root, tmp_path):
    """From references and from the mean of two teachers; alpha 1 is stock; what has no meaning is refused."""
    data = numbers_folder(root, tmp_path / "numbers")
    for seed in (5, 6):
        save_checkpoint(tmp_path / f"{seed}.pt", build(data, *NUMBERS, "--kd-alpha", 1, seed=seed), data)
    both = ["--teacher-path", f"{tmp_path / '5.pt'}:{tmp_path / '6.pt'}", "--teacher-weights", "1,3"]
    built = build(data, *NUMBERS, "--kd-alpha", ALPHA, *both)
    batch = built.batch()
    loss, size, logs = built.loss(batch)
    head = built.task.labelling.head
    student = logits_of(built.model, batch, head)
    one, other = (logits_of(member.model, batch, head) for member in built.task.teacher.members)
    squares = [(student - aim).square().sum() for aim in (batch["target"].double(), 0.25 * one + 0.75 * other)]
    torch.testing.assert_close(loss.double(), ALPHA * squares[0] + (1 - ALPHA) * squares[1], rtol=1e-5, atol=1e-5)
    assert size == 16
    shown = reduced(built, [logs])
    assert shown["ce_loss"] == pytest.approx(float(squares[0]) / 16, abs=1e-3)
    assert shown["kd_loss"] == pytest.approx(float(squares[1]) / 16, abs=1e-3)
    stock = build(data, "--task", "sentence_prediction", "--criterion", "sentence_prediction", *NUMBERS[4:])
    plain = build(data, *NUMBERS, "--kd-alpha", 1)
    assert stock.loss(stock.batch())[0] == plain.loss(plain.batch())[0]
    with pytest.raises(KDPluginError, match="--kd-temperature 2.0: has no meaning with --regression-target"):
        build(data, *NUMBERS, "--kd-alpha", 0.5, *both, "--kd-temperature", 2)
    with pytest.raises(KDPluginError, match="predicts 2 numbers, but the student 1"):
        build(data, *CLASSES, "--regression-target", "--num-classes", 1, *both)


def test_splits_that_fairseq_combines_are_read_together(root, kind, tmp_path):
    """train and train1: the online teacher of text and the ids know both."""
    folder = tmp_path / "two"
    for part in ("input0", "label"):
        (folder / part).mkdir(parents=True)
        for file in (root / kind / part).iterdir():
            (folder / part / file.name.replace("valid", "train1")).symlink_to(file)
    built = build(folder, *flags(kind, root, *DISTIL))
    built.task.load_dataset("train", combine=True)
    assert len(built.task.datasets["train"]) == 64 + 13
    other = build(root / kind, *flags(kind, root, *DISTIL))
    other.model.load_state_dict(built.model.state_dict())
    torch.testing.assert_close(built.loss(built.batch([64, 66]))[0], other.loss(other.batch([0, 2], "valid"))[0])


def test_r_drop_compares_two_passes(root, kind):
    built = build(root / kind, *flags(kind, root, *DISTIL, "--kd-rdrop", 1))
    plain = build(root / kind, *flags(kind, root, *DISTIL))
    same, _, logs = built.loss(built.batch())
    torch.testing.assert_close(same, plain.loss(plain.batch())[0], rtol=1e-5, atol=1e-6)  # no dropout: equal passes
    assert abs(float(logs["rdrop_loss"])) < 1e-6


def test_labels_and_folders_that_cannot_be_are_refused(root, tmp_path):
    single = tmp_path / "single"
    (single / "label").mkdir(parents=True)
    (single / "input0").symlink_to(root / "classes" / "input0")
    (single / "label" / "dict.txt").write_text("pos 3\n")
    plain = ["--kd-alpha", 1]
    with pytest.raises(KDPluginError, match="has only the label 'pos', so there is nothing to learn.*Remedy"):
        build(single, *CLASSES, *plain)
    with pytest.raises(KDPluginError, match="--num-classes 3: .* has 2 labels.*Remedy: --num-classes 2"):
        build(root / "classes", *CLASSES, *plain, "--num-classes", 3)
    with pytest.raises(KDPluginError, match="--init-token 0, but the student has --init-token 2.*Remedy"):
        build(root / "classes", *flags("classes", root, *DISTIL), "--init-token", 2)
    with pytest.raises(KDPluginError, match="its head token_classification_head labels tokens, not sentences"):
        build(root / "classes", *CLASSES, *DISTIL, "--teacher-path", root / "tags.pt")
    with pytest.raises(
        KDPluginError, match="--kd-alpha 0.5 distils, but there is no teacher.*distillation_sequence_tagg"
    ):
        build(root / "tags", *TAGS, "--kd-alpha", 0.5)
    wrong = build(root / "tags", *TAGS, *plain, "--word-start", "every")
    with pytest.raises(
        KDPluginError, match="label/train: sentence [0-9]+ has .* labels, but .* words by --word-start every"
    ):
        wrong.task.load_dataset("train")
