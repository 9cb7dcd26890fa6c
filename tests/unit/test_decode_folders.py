"""Decoding with models of other toolkits: fairseq's own search, driven by the toolkit's model, says the same."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_plugin.cli import main
from kd_plugin.corpus.translations import Translations
from tests.unit.huggingface_folders import KINDS, T5_PREFIX, make_folder
from tests.unit.marian_folders import make_marian
from tests.unit.sentencepiece_models import encoded, sentences
from tests.unit.translation_folders import record as record_of
from tests.unit.translation_folders import write_folder

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
pytest.importorskip("google.protobuf", reason="protobuf is not installed")

LINES = sentences("en", seed=3, lines=12)
LANGS = ["-s", "en", "-t", "de"]
# fairseq's special symbols come first in its dictionaries
SPECIALS = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_folder(kind, tmp_path_factory.mktemp("models") / kind.replace(" ", "_"))
        return made[kind]

    return make


def codes(kind):
    source, target = KINDS[kind]
    flags = [] if source is None else ["--model-source-lang", source]
    return flags + ([] if target is None else ["--model-target-lang", target])


def decode(path, corpus, output, *flags, status=0):
    arguments = ["decode", "--input", corpus, "--path", path, "--output", output, *LANGS, *flags]
    assert main(list(map(str, arguments))) == status


class Reference:
    """fairseq's SequenceGenerator with transformers' model; text by transformers' tokenizer, and nothing of ours."""

    def __init__(self, kind, path, **search):
        import transformers
        from fairseq.data import Dictionary
        from fairseq.sequence_generator import EnsembleModel, SequenceGenerator

        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(path)).eval()
        tokenizer = self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
        source, target = KINDS.get(kind, (None, None))
        self.before = ""
        if hasattr(tokenizer, "src_lang"):
            tokenizer.src_lang, tokenizer.tgt_lang = source, target
        elif kind in ("madlad", "marian, several targets"):
            self.before = f"<2{target}> " if kind == "madlad" else f">>{target}<< "
        elif kind == "t5":
            self.before = "translate English to German: "
        vocabulary = tokenizer.target_encoder if kind == "marian, two vocabularies" else tokenizer.get_vocab()
        width = model.get_output_embeddings().weight.size(0)
        specials = {tokenizer.eos_token_id: "eos", tokenizer.unk_token_id: "unk"}
        # Marian's padding is not a symbol that its own toolkit has
        self.pad = vocabulary[tokenizer.pad_token]
        symbols = {index: symbol for symbol, index in vocabulary.items() if index < width}
        dictionary = self.dictionary = Dictionary()
        self.columns = [0] * len(dictionary)
        for index in range(width):
            if index in specials:
                self.columns[SPECIALS[specials[index]]] = index
            elif index != self.pad:
                symbol = symbols.get(index, f"no symbol {index}")
                dictionary.add_symbol(f"own {symbol}" if symbol in dictionary.indices else symbol)
                self.columns.append(index)
        begins = [model.config.decoder_start_token_id]
        if kind in ("nllb", "m2m100", "mbart50"):  # with its tags at the end, NLLB's labels have none in front
            begins.append(tokenizer.convert_tokens_to_ids("__de__" if kind == "m2m100" else target))
        elif kind == "mbart":
            begins = [tokenizer.convert_tokens_to_ids(target)]
        columns, reference = torch.tensor(self.columns), self
        has_bos = torch.zeros(len(columns), dtype=torch.bool)
        has_bos[:2] = True

        class Model(EnsembleModel):
            def __init__(self):
                torch.nn.Module.__init__(self)
                self.models_size, self.single_model, self.models = 1, model, torch.nn.ModuleList([model])

            def has_incremental_states(self):
                return False

            def max_decoder_positions(self):
                return 10**6

            def forward_encoder(self, net_input):
                return [net_input["text"]]

            def reorder_encoder_out(self, outs, order):
                texts = outs[0]
                return [[texts[at] for at in order.tolist()]]

            def forward_decoder(self, tokens, outs, states, temperature=1.0):
                (text,) = set(outs[0])  # of which tokens are prefixes of translations, all as long
                ids = tokenizer(reference.before + text, return_tensors="pt")["input_ids"].expand(len(tokens), -1)
                written = columns[tokens[:, 1:]]
                prefixes = torch.cat([torch.tensor(begins).expand(len(tokens), -1), written], dim=1)
                logits = model(input_ids=ids, decoder_input_ids=prefixes).logits[:, -1]
                if kind in ("marian", "marian, several targets"):  # CTranslate2 leaves padding out of these
                    logits[:, reference.pad] = -torch.inf
                log_probs = torch.log_softmax(logits, -1)[:, columns]
                return log_probs.masked_fill(has_bos, -torch.inf), None

        self.generator = SequenceGenerator(Model(), dictionary, **search)

    @torch.no_grad()
    def __call__(self, text):
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        sample = {"net_input": {"src_tokens": torch.ones(1, len(ids) + 1).long() * 5, "text": [text]}}
        sample["net_input"]["src_lengths"] = torch.tensor([len(ids) + 1])
        found = self.generator.generate([], sample)[0]
        answers = []
        for hypothesis in found:
            written = [self.columns[index] for index in hypothesis["tokens"].tolist()[:-1]]
            answers.append((written, float(hypothesis["score"])))
        return answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [4, 30])
def test_every_kind_of_folder_translates_as_fairseqs_search_would(folder_of, tmp_path, kind, limit):
    lines = LINES if limit < 10 else LINES[:3]  # the reference computes every prefix anew
    corpus = tmp_path / "in.en"
    corpus.write_text("".join(line + "\n" for line in lines))
    search = ["--beam", 3, "--nbest", 2, "--max-len-b", limit]
    # a batch of one: the limit of a batch is that of its longest sentence
    decode(folder_of(kind), corpus, tmp_path / "out", *codes(kind), *search, "--text", tmp_path / "text")
    reference = Reference(kind, folder_of(kind), beam_size=3, max_len_a=0, max_len_b=limit)
    records = list(Translations(tmp_path / "out").records())
    assert [record.source for record in records] == lines
    for record in records:
        expected = reference(record.source)[:2]
        assert [h.score for h in record.hypotheses] == pytest.approx([score for _, score in expected], abs=2e-4)
        for hypothesis, (ids, _) in zip(record.hypotheses, expected):
            said = reference.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            said = re.sub(r"__\w\w__", "", said).strip()  # M2M100's languages, which a whole folder of it would skip
            assert hypothesis.text == said or "\u2047" in hypothesis.text
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert counts["identity"]["engine"] == "ctranslate2" if "identity" in counts else counts


def hypotheses(output):
    return [[(h.text, h.score) for h in record.hypotheses] for record in Translations(output).records()]


@pytest.mark.parametrize("kind", ["marian", "marian, several targets"])
def test_a_folder_of_marian_translates_as_transformers_with_its_weights(folder_of, tmp_path, kind):
    marian = make_marian(folder_of(kind), tmp_path / "opus mt")
    corpus = tmp_path / "in.en"
    corpus.write_text("".join(line + "\n" for line in LINES))
    search = ["--beam", 3, "--nbest", 3, "--max-len-b", 20]
    decode(marian, corpus, tmp_path / "marian", *codes(kind), *search)
    decode(folder_of(kind), corpus, tmp_path / "transformers", *codes(kind), *search)
    for ours, theirs in zip(hypotheses(tmp_path / "marian"), hypotheses(tmp_path / "transformers")):
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=2e-4)
        assert [text for text, _ in ours] == [text for text, _ in theirs]


@pytest.mark.parametrize("kind", ["nllb", "marian", "t5"])
def test_a_finished_ctranslate2_folder_needs_what_stands_around_sentences(folder_of, tmp_path, kind):
    from ctranslate2.converters import TransformersConverter

    converted = tmp_path / "converted"
    TransformersConverter(str(folder_of(kind))).convert(str(converted), quantization="float32")
    for file in folder_of(kind).iterdir():
        if file.suffix in (".spm", ".model"):
            shutil.copy(file, converted)
    corpus = tmp_path / "in.en"
    corpus.write_text("".join(line + "\n" for line in LINES))
    around = {
        "nllb": ["--source-prefix", "eng_Latn", "--target-prefix", "deu_Latn"],
        "marian": [],
        "t5": ["--source-prefix", " ".join(pieces_of_prefix(folder_of(kind)))],
    }[kind]
    search = ["--beam", 2, "--max-len-b", 15]
    decode(converted, corpus, tmp_path / "ours", *around, *search)
    decode(folder_of(kind), corpus, tmp_path / "whole", *codes(kind), *search)
    for ours, theirs in zip(hypotheses(tmp_path / "ours"), hypotheses(tmp_path / "whole")):
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=2e-4)


def pieces_of_prefix(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    return tokenizer.convert_ids_to_tokens(tokenizer(T5_PREFIX, add_special_tokens=False)["input_ids"])


def test_restart_workers_and_shards_give_the_same(folder_of, tmp_path):
    corpus = tmp_path / "in.en"
    corpus.write_text("".join(line + "\n" for line in [*LINES, "", LINES[0]]))
    flags = [*codes("nllb"), "--beam", 2, "--max-len-b", 12]
    decode(folder_of("nllb"), corpus, tmp_path / "one", *flags)
    decode(folder_of("nllb"), corpus, tmp_path / "two", *flags, "--shard-sentences", 5, "--workers", 2)
    for one, two in zip(hypotheses(tmp_path / "one"), hypotheses(tmp_path / "two")):
        assert one == [(text, pytest.approx(score, abs=1e-5)) for text, score in two]
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["languages"] == ["en", "de"]
    decode(folder_of("nllb"), corpus, tmp_path / "one", *flags)  # the same again: nothing to do
    other = ["--model-source-lang", "eng_Latn", "--model-target-lang", "fra_Latn", "--beam", 2, "--max-len-b", 12]
    decode(folder_of("nllb"), corpus, tmp_path / "one", *other, status=1)


def test_draws_come_from_the_model_and_pay_for_the_end(folder_of, tmp_path):
    corpus = tmp_path / "in.en"
    corpus.write_text("".join(line + "\n" for line in LINES))
    flags = [*codes("nllb"), "--beam", 3, "--nbest", 3, "--sampling", "--max-len-b", 6]
    for name in ("a", "b"):
        decode(folder_of("nllb"), corpus, tmp_path / name, *flags)
    assert hypotheses(tmp_path / "a") == hypotheses(tmp_path / "b")
    decode(folder_of("nllb"), corpus, tmp_path / "c", *flags, "--seed", 2)
    assert hypotheses(tmp_path / "a") != hypotheses(tmp_path / "c")


@pytest.mark.parametrize(
    "kind, flags, said",
    [
        ("nllb", [], "--model-source-lang en: "),
        ("nllb", ["--model-source-lang", "eng_Latn", "--model-target-lang", "de"], "--model-target-lang de"),
        ("marian", ["--model-target-lang", "de"], "does not take a target language"),
        ("marian", ["--source-prefix", "x"], "--source-prefix: "),
        ("marian", ["--sentencepiece-model", "x"], "has its own tokenizer"),
        ("marian", ["--engine", "fairseq"], "Hugging Face"),
        ("marian", ["--model-overrides", '{"a": 1}'], "--model-overrides: is for fairseq checkpoints"),
        ("marian", ["--dict-dir", "."], "--dict-dir: is for fairseq checkpoints"),
    ],
)
def test_what_does_not_fit_a_folder_is_refused_before_any_work(folder_of, tmp_path, capsys, kind, flags, said):
    corpus = tmp_path / "in.en"
    corpus.write_text(LINES[0] + "\n")
    decode(folder_of(kind), corpus, tmp_path / "out", *flags, status=1)
    error = capsys.readouterr().err
    assert said in error and "Remedy: " in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["huggingface", "marian"])
def test_without_ctranslate2_the_extra_is_named_before_any_work(folder_of, tmp_path, capsys, monkeypatch, kind):
    path = folder_of("marian")
    if kind == "marian":
        path = make_marian(path, tmp_path / "marian")
    (tmp_path / "in.en").write_text(LINES[0] + "\n")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    decode(path, tmp_path / "in.en", tmp_path / "out", status=1)
    assert "Remedy: pip install 'kd-plugin[export]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def change_npz(folder, change):
    weights = dict(np.load(folder / "model.npz"))
    change(weights)
    np.savez(folder / "model.npz", **weights)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda f: (f / "vocab.yml").unlink(), "vocab.yml is missing"),
        (lambda f: (f / "decoder.yml").write_text("models: [a.npz, b.npz]\nvocabs: [vocab.yml]\n"), "is missing"),
        (lambda f: (f / "decoder.yml").write_text("- a\n"), "does not name models and vocabs"),
        (lambda f: (f / "decoder.yml").write_text("[" * 1100), "does not name models and vocabs"),
        (lambda f: (f / "decoder.yml").write_text("!!python/object/apply:os.system [true]\n"), "does not name models"),
        (lambda f: (f / "vocab.yml").write_text("a: b\n"), "vocabularies cannot be read"),
        (lambda f: (f / "model.npz").write_bytes(b"nothing"), "cannot convert it"),
        (lambda f: (f / "model.npz").write_bytes((f / "model.npz").read_bytes()[:999]), "cannot convert it"),
        (lambda f: change_npz(f, lambda w: w.pop("encoder_l1_self_Wq")), "cannot convert it"),
        (lambda f: change_npz(f, lambda w: w.update({"special:model.yml": np.int8([58, 58, 123, 0])})), "cannot conv"),
    ],
)
def test_damaged_folders_of_marian_are_named(folder_of, tmp_path, capsys, damage, said):
    marian = make_marian(folder_of("marian"), tmp_path / "marian")
    damage(marian)
    corpus = tmp_path / "in.en"
    corpus.write_text(LINES[0] + "\n")
    decode(marian, corpus, tmp_path / "out", status=1)
    error = capsys.readouterr().err
    assert said in error and "Remedy: " in error


@pytest.mark.parametrize("verb", ["decode", "score"])
@pytest.mark.parametrize("raw", [True, False])
def test_text_that_does_not_fit_the_segmentation_is_refused(folder_of, tmp_path, capsys, verb, raw):
    """Raw text that nothing segments, and segmented text for a folder that segments."""
    marian = make_marian(folder_of("marian"), tmp_path / "marian")
    if raw:
        for name in ("source.spm", "target.spm"):
            (marian / name).unlink()
    lines = LINES if raw else [" ".join(pieces) for pieces in encoded(folder_of("marian") / "source.spm", LINES)]
    (tmp_path / "in.en").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    folders = [marian] if raw else [marian, folder_of("marian")]
    write_folder(tmp_path / "in", [record_of(at, line, line) for at, line in enumerate(lines)])
    for path in folders:
        if verb == "decode":
            decode(path, tmp_path / "in.en", tmp_path / "out", status=1)
        else:
            assert main(["score", str(tmp_path / "in"), "--path", str(path), "--output", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert ("is raw text" if raw else "is already segmented") in error and "Remedy: " in error


def test_a_conversion_that_gives_another_model_is_refused(folder_of, tmp_path, capsys, monkeypatch):
    """What a version of CTranslate2's converter may leave out, as it did with weights of other architectures."""
    from ctranslate2.converters import transformers as converters

    monkeypatch.setattr(converters.BartLoader, "set_layer_norm", lambda *_: _ones(_[1], _[2]))
    corpus = tmp_path / "in.en"
    corpus.write_text(LINES[0] + "\n")
    folder = make_folder("nllb", tmp_path / "nllb")
    _scale_norms(folder)
    decode(folder, corpus, tmp_path / "out", *codes("nllb"), status=1)
    assert "gives other probabilities than with transformers" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("model-*"))


def _ones(spec, module):
    spec.gamma, spec.beta = torch.ones_like(module.weight), torch.zeros_like(module.bias)


def _scale_norms(folder):
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(folder))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm.weight" in name:
                parameter.mul_(3)
    model.save_pretrained(str(folder))


def test_a_marian_model_whose_padding_is_no_zeros_begins_with_it(tmp_path):
    """As where somebody has initialised all embeddings anew: transformers begins with that row, Marian with zeros."""
    import transformers

    folder = make_folder("marian", tmp_path / "model")
    model = transformers.MarianMTModel.from_pretrained(str(folder))
    with torch.no_grad():
        model.get_input_embeddings().weight[-1].normal_()
    model.save_pretrained(str(folder))
    (tmp_path / "in.en").write_text("".join(line + "\n" for line in LINES))
    decode(folder, tmp_path / "in.en", tmp_path / "out", "--beam", 3, "--max-len-b", 12)
    reference = Reference("marian, padding as it is", folder, beam_size=3, max_len_a=0, max_len_b=12)
    for record in Translations(tmp_path / "out").records():
        assert record.hypotheses[0].score == pytest.approx(reference(record.source)[0][1], abs=2e-4)


def test_a_binarised_corpus_and_a_folder_of_something_else_are_refused(folder_of, tmp_path, capsys):
    arguments = ["decode", str(tmp_path), "--path", str(folder_of("marian")), "--output", str(tmp_path / "out"), *LANGS]
    assert main(arguments) == 1
    assert "Remedy: --input with the raw text" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "in").write_text("a\n")
    decode(tmp_path / "empty", tmp_path / "in", tmp_path / "out", status=1)
    assert "is an empty folder, not a checkpoint file. Remedy: " in capsys.readouterr().err


def test_a_folder_is_evaluated_beside_a_checkpoint(folder_of, tmp_path):
    """Each model segments the test set its own way; the translations are those of decode."""
    from tests.unit.sentencepiece_models import Pair

    pair = Pair(tmp_path / "pair", joint=True)
    (tmp_path / "test.en").write_text("".join(line + "\n" for line in LINES))
    (tmp_path / "test.de").write_text("".join(line + "\n" for line in sentences("de", seed=3, lines=len(LINES))))
    output = tmp_path / "evaluation"
    arguments = [
        "evaluate", "--model", f"nllb={folder_of('nllb')}", "--model", f"student={pair.path}", "--model",
        f"opus={make_marian(folder_of('marian'), tmp_path / 'opus')}", "--test",
        f"small={tmp_path / 'test.en'},{tmp_path / 'test.de'}", "--output", output, *codes("nllb"), *LANGS,
        "--max-len-b", 12, "--bootstrap", 0, *pair.flags(),
    ]  # fmt: skip
    assert main(list(map(str, arguments))) == 0
    flags = ["--max-len-b", 12, "--text"]
    decode(folder_of("nllb"), tmp_path / "test.en", tmp_path / "d1", *codes("nllb"), *flags, tmp_path / "nllb")
    decode(tmp_path / "opus", tmp_path / "test.en", tmp_path / "d2", *flags, tmp_path / "opus_text")
    for name, text in (("nllb", "nllb.de"), ("opus", "opus_text.de")):
        assert (output / "translations" / name / "small.txt").read_text() == (tmp_path / text).read_text()
    rows = json.loads((output / "evaluation.json").read_text())["models"]
    assert [row["engine"] for row in rows] == ["ctranslate2", "fairseq", "ctranslate2"]
    assert rows[0]["parameters"] > 0 and rows[0]["bytes"] > 0 and all(row["scores"] for row in rows)
