"""Hugging Face folders as labelling teachers: text and words are the meeting point."""

import re

import pytest
import torch

from kd_plugin.errors import KDPluginError
from kd_plugin.teachers.base import Request
from tests.labelled import BAD, CLASSES, GOOD, OTHER, TAGS, build, make_folders, plugin, save_checkpoint

transformers = pytest.importorskip("transformers")

HALF = ["--kd-alpha", 0.5]
LIMIT = 7  # tokens that the teachers read, with [CLS] and [SEP]
# the student's "lovely" is two pieces here too, but others; "plot" is nothing at all
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "l", "##ovely", *OTHER, *(w for w in GOOD + BAD if w != "lovely")]


def tokenizer_of(tokens):
    """A word-piece tokenizer that removes the word `plot`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    one = Tokenizer(models.WordPiece({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    one.normalizer = normalizers.Replace("plot", "")
    one.pre_tokenizer = pre_tokenizers.Whitespace()
    one.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=one, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=LIMIT,
    )  # fmt: skip


def save_folder(path, tokens, labels, **config):
    kind = "TokenClassification" if tokens else "SequenceClassification"
    torch.manual_seed(4)
    names = (
        {}
        if labels is None
        else {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    )
    sizes = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=len(VOCABULARY)
    )
    made = transformers.BertConfig(**sizes, **names, **config, max_position_embeddings=64)
    getattr(transformers, f"BertFor{kind}")(made).save_pretrained(path)
    tokenizer_of(tokens).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    make_folders(root)
    save_folder(root / "sentences", False, ["pos", "neg"])
    save_folder(root / "words", True, ["B-bad", "O", "B-good"])
    return root


def answer(built, batch):
    rows = (batch["target"] != -100).reshape(-1).nonzero().squeeze(1)
    teacher = built.task.teacher
    return teacher.answer(batch, Request(rows, torch.float32)), teacher.covered(batch, rows, True)


def words_of(built, index):
    tokens = built.task.datasets["train"][int(index)]["net_input.src_tokens"]
    return built.task.labelling.words().words(tokens.numpy())


def test_sentences_reach_the_teacher_as_text(root):
    """Its answer for a sentence is that of transformers for the words, in the student's order of labels; each alone."""
    built = build(root / "classes", *CLASSES, *HALF, "--teacher-path", root / "sentences")
    ids = [3, 9, 20, 31]
    found, covered = answer(built, built.batch(ids))
    assert covered is None
    folder = str(root / "sentences")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, cut = transformers.AutoTokenizer.from_pretrained(folder), 0
    for row, index in enumerate(ids):
        text = " ".join(words_of(built, index))
        cut += len(tokenizer(text, truncation=False)["input_ids"]) > LIMIT
        with torch.no_grad():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        expected = {model.config.id2label[at]: value for at, value in enumerate(logits)}
        ours = [expected[name] for name in built.task.labelling.names]
        torch.testing.assert_close(found.distribution.logits[row], torch.stack(ours), rtol=1e-5, atol=1e-6)
    assert int(found.counts["n_truncated"]) == cut and found.counts["n_read"] == len(ids)


def test_words_meet_words_and_vanished_or_cut_ones_keep_their_label(root, caplog):
    """Word by word, transformers' own answer at the word's first token; those without a token have no teacher."""
    built = build(root / "tags", *TAGS, *HALF, "--teacher-path", root / "words")
    ids = list(range(24))
    batch = built.batch(ids)
    found, covered = answer(built, batch)
    folder = str(root / "words")
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    at = lost = 0
    for index in ids:
        words = words_of(built, index)
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        places = encoded.word_ids(0)
        for number, word in enumerate(words):
            assert bool(covered[at]) == (number in places), (words, word)
            assert bool(covered[at]) or word == "plot" or len(words) > LIMIT - 2 - ("lovely" in words)
            if covered[at]:
                expected = {model.config.id2label[i]: v for i, v in enumerate(logits[places.index(number)])}
                ours = torch.stack([expected[name] for name in built.task.labelling.names])
                torch.testing.assert_close(found.distribution.logits[at], ours, rtol=1e-5, atol=1e-6)
            lost += not covered[at]
            at += 1
    assert at == len(covered) and 0 < lost < at
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "leaves nothing of some words" in text and "reads only the beginning of sentences" in text

    # these words keep their whole cross-entropy
    loss, _, logs = built.loss(batch)
    assert int(logs["n_untaught"]) == lost
    built.criterion.distiller.alpha = built.criterion.distiller.alpha._replace(start=0.0)
    alone = built.loss(batch)
    lprobs = torch.log_softmax(built.model(
        **batch["net_input"], features_only=True, classification_head_name="token_classification_head"
    )[0].double(), -1).reshape(-1, 3)  # fmt: skip
    target = batch["target"].reshape(-1)
    rows = (target != -100).nonzero().squeeze(1)
    ce = -lprobs[rows].gather(-1, target[rows, None]).squeeze(1)[~covered].sum()
    kd = alone[2]["kd_loss"].double()
    torch.testing.assert_close(alone[0].double(), ce + kd, rtol=1e-5, atol=1e-5)


def test_an_ensemble_mixes_probabilities_of_different_kinds(root):
    """A fairseq model and a folder, with weights; cached, the same."""
    from kd_plugin.cli import main

    save_checkpoint(root / "other.pt", build(root / "tags", *TAGS, "--kd-alpha", 1, seed=3), root / "tags")
    both = [*TAGS, *HALF, "--teacher-path", f"{root / 'words'}:{root / 'other.pt'}", "--teacher-weights", "0.75,0.25"]
    built = build(root / "tags", *both)
    batch = built.batch(range(8))
    found, covered = answer(built, batch)
    parts = [build(root / "tags", *TAGS, *HALF, "--teacher-path", root / name) for name in ("words", "other.pt")]
    (one, _), (other, _) = (answer(part, part.batch(range(8))) for part in parts)
    mixed = 0.75 * one.distribution.logits.softmax(-1) + 0.25 * other.distribution.logits.softmax(-1)
    torch.testing.assert_close(found.distribution.logits.softmax(-1)[covered], mixed[covered], rtol=1e-5, atol=1e-6)
    assert main(["cache", str(root / "tags"), "--task", "sequence_tagging", "--teacher-path", both[7], "--cache-dir",
                 str(root / "cache"), "--init-token", "0", "--teacher-weights", "0.75,0.25"]) == 0  # fmt: skip
    cached = build(root / "tags", *TAGS, *HALF, "--teacher-cache", root / "cache")
    stored, known = answer(cached, cached.batch(range(8)))
    assert known.tolist() == covered.tolist()
    torch.testing.assert_close(
        stored.distribution.logits.softmax(-1)[covered], mixed[covered], rtol=1e-5, atol=1e-6
    )  # fmt: skip


@pytest.mark.parametrize(
    "tokens, labels, config, message",
    [
        (False, None, {}, "the names of its 2 labels are unknown.*--teacher-labels NAME"),
        (False, ["pos", "neutral", "neg"], {}, "Only the teacher has 'neutral'"),
        (
            True,
            ["pos", "neg"],
            {},
            "holds BertForTokenClassification, which does not label sentences.*sequence_tagging",
        ),
        (False, ["pos", "neg"], {"problem_type": "multi_label_classification"}, "any number of labels"),
    ],
)
def test_folders_that_answer_something_else_are_refused(root, tmp_path, tokens, labels, config, message):
    folder = save_folder(tmp_path / "folder", tokens, labels, **config)
    with pytest.raises(KDPluginError, match=f"(?s){re.escape(str(folder))}.*{message}") as refused:
        build(root / "classes", *CLASSES, *HALF, "--teacher-path", folder)
    assert "Remedy" in str(refused.value)
    if labels is None:
        built = build(root / "classes", *CLASSES, *HALF, "--teacher-path", folder, "--teacher-labels", "neg,pos")
        assert built.task.teacher.members[0].target.indices is None or built.task.labelling.names[0] == "pos"


def test_pickled_weights_and_other_hashes_are_refused(root, tmp_path):
    with pytest.raises(KDPluginError, match="sha256 of its files is"):
        build(root / "classes", *CLASSES, *HALF, "--teacher-path", root / "sentences", "--teacher-sha256", "0" * 64)
    folder = save_folder(tmp_path / "folder", False, ["pos", "neg"])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(KDPluginError, match="pickled.*AutoModelForSequenceClassification"):
        build(root / "classes", *CLASSES, *HALF, "--teacher-path", folder)


def test_data_loading_workers_tokenise(root, tmp_path):
    """The real command line, with a worker process: the data sets are pickled or forked with the tokenizer."""
    from tests.labelled import label_training
    from tests.support import logged, run

    output = run(*label_training(
        root / "tags", tmp_path, *plugin(TAGS, *HALF, "--teacher-path", root / "words"), "--num-workers", 1,
        "--max-update", 2, "--no-save",
    )).stdout  # fmt: skip
    assert all(0 < step["kd_untaught"] < 60 for step in logged(output, "train_inner"))
    assert "teacher_truncated" in logged(output, "valid")[0] or "valid_teacher_truncated" in logged(output, "valid")[0]


def test_the_doctor_examines_teachers_that_label(root, capsys):
    """What they label, their labels and heads, and a command that trains."""
    from kd_plugin.cli import main

    save_checkpoint(root / "doctor.pt", build(root / "classes", *CLASSES, "--kd-alpha", 1), root / "classes")
    for path, words in (
        (root / "doctor.pt", ["sentences", "pos", "--init-token 0"]),
        (root / "words", ["words", "B-bad"]),
    ):
        assert main(["doctor", "--teacher", str(path)]) == 0
        told = capsys.readouterr().out
        assert all(word in told for word in words) and "sha256" in told
    kind = "distillation_sequence_tagging"
    assert f"--task {kind} \\\n  --teacher-path {root / 'words'} --teacher-sha256" in told
    named = save_folder(root / "unnamed", False, None)
    assert main(["doctor", "--teacher", str(named)]) == 0
    assert "--teacher-labels NAME,NAME" in capsys.readouterr().out
