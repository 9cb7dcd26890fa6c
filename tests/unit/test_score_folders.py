"""Scores by models of other toolkits: the toolkit's own teacher-forced log-probabilities, in float64."""

import functools

import pytest
import torch

from kd_plugin.corpus.translations import Translations
from tests.unit.huggingface_folders import KINDS, T5_PREFIX, make_folder
from tests.unit.marian_folders import make_marian
from tests.unit.sentencepiece_models import sentences, train
from tests.unit.translation_folders import record, refusal, run_verb, write_folder

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

SOURCES, TARGETS = sentences("en", seed=5, lines=9), sentences("de", seed=5, lines=12)
RECORDS = [
    record(2 * i, SOURCES[i], *((TARGETS[i + n], -float(n)) for n in range(1 + i % 3))) for i in range(len(SOURCES))
]
RECORDS.append(record(99, "", ("", 0.0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translations") / "in"
    write_folder(folder, RECORDS, input_lines=100)
    return folder


def flags_of(kind):
    source, target = KINDS[kind]
    flags = [] if source is None else ["--model-source-lang", source]
    return flags + ([] if target is None else ["--model-target-lang", target])


@functools.lru_cache(maxsize=1)
def opened(path):
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(path)).double().eval()
    return model, transformers.AutoTokenizer.from_pretrained(str(path))


@torch.no_grad()
def reference(kind, path, read, asked):
    """By transformers alone, from its labels and its way of moving them."""
    model, tokenizer = opened(path)
    source, target = KINDS[kind]
    before = {"madlad": f"<2{target}> ", "marian, several targets": f">>{target}<< ", "t5": T5_PREFIX}.get(kind, "")
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = source, target
    if not read and not asked:
        return 0.0
    ids = tokenizer(before + read, return_tensors="pt")["input_ids"]
    labels = tokenizer(text_target=asked)["input_ids"]
    start = labels[-1] if kind == "mbart" else model.config.decoder_start_token_id
    body = len(tokenizer(text_target=asked, add_special_tokens=False)["input_ids"]) + 1  # and its end
    if kind == "nllb, tags at the end" or kind == "mbart":  # y </s> language
        labels = labels[:-1]
    logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[start, *labels[:-1]]])).logits[0]
    if kind in ("marian", "marian, several targets"):
        logits[:, -1] = -torch.inf  # padding, which Marian does not have
    log_probs = torch.log_softmax(logits, -1).gather(1, torch.tensor(labels).unsqueeze(1)).squeeze(1)
    return float(log_probs[-body:].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_toolkits_own(folder, tmp_path, kind):
    path = make_folder(kind, tmp_path / "model")
    run_verb("score", folder, "--path", path, "--output", tmp_path / "out", "--max-tokens", 60, *flags_of(kind))
    scored = list(Translations(tmp_path / "out").records())
    assert [[h.text for h in one.hypotheses] for one in scored] == [[h.text for h in one.hypotheses] for one in RECORDS]
    for one in scored:
        for hypothesis in one.hypotheses:
            expected = reference(kind, path, one.source, hypothesis.text)
            assert hypothesis.score == pytest.approx(expected, abs=1e-4), (one.source, hypothesis.text)


def test_each_side_of_marian_has_its_own_sentencepiece_model(folder, tmp_path):
    path = make_folder("marian, two vocabularies", tmp_path / "model")
    train(path / "target.spm", sentences("de"), 150)
    run_verb("score", folder, "--path", path, "--output", tmp_path / "out")
    for one in Translations(tmp_path / "out").records():
        for hypothesis in one.hypotheses:
            expected = reference("marian, two vocabularies", path, one.source, hypothesis.text)
            assert hypothesis.score == pytest.approx(expected, abs=1e-4)


def test_a_model_of_the_other_direction_scores_the_source(folder, tmp_path):
    path = make_folder("nllb", tmp_path / "model")
    flags = ["-s", "de", "-t", "en", "--model-source-lang", "deu_Latn", "--model-target-lang", "eng_Latn"]
    run_verb("score", folder, "--path", path, "--output", tmp_path / "out", *flags)
    for one in Translations(tmp_path / "out").records():
        for hypothesis in one.hypotheses:
            if one.source:
                assert hypothesis.score == pytest.approx(_backward(path, one.source, hypothesis.text), abs=1e-4)


@torch.no_grad()
def _backward(path, source, translation):
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(path)).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path), src_lang="deu_Latn", tgt_lang="eng_Latn")
    batch = tokenizer(translation, text_target=source, return_tensors="pt")
    loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).logits[0]
    log_probs = torch.log_softmax(loss, -1).gather(1, batch["labels"][0].unsqueeze(1)).squeeze(1)
    return float(log_probs[1:].mean())  # without the language


def test_a_folder_of_marian_scores_as_transformers(folder, tmp_path):
    path = make_folder("marian", tmp_path / "model")
    opus = make_marian(path, tmp_path / "opus")
    for name, model in (("a", path), ("b", opus)):
        run_verb("score", folder, "--path", model, "--output", tmp_path / name, "-s", "en", "-t", "de")
    for ours, theirs in zip(*(Translations(tmp_path / name).records() for name in "ab")):
        assert [h.score for h in ours.hypotheses] == pytest.approx([h.score for h in theirs.hypotheses], abs=1e-4)


def test_flags_for_another_kind_of_model_are_refused(folder, tmp_path, capsys):
    path = make_folder("nllb", tmp_path / "model")
    out = ["--output", tmp_path / "out"]
    said = refusal(capsys, "score", folder, "--metric", "comet-kiwi", "--model-source-lang", "eng_Latn", *out)
    assert "--model-source-lang: of no effect with --metric" in said
    said = refusal(capsys, "score", folder, "--path", path, *flags_of("nllb"), "--model-overrides", '{"a": 1}', *out)
    assert "--model-overrides: is for fairseq checkpoints" in said
    said = refusal(capsys, "score", folder, "--path", path, *flags_of("nllb"), "-s", "fr", "-t", "de", *out)
    assert "translates fr-de" in said
    assert not (tmp_path / "out").exists()
