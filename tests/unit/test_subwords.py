"""Subwords that belong to the model and to the text, on both sides, or a refusal; and unknown symbols."""

import contextlib
import io
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary, indexed_dataset

from kd_plugin import cli
from kd_plugin.corpus.raw_text import numbered_lines
from kd_plugin.corpus.subword_checks import Marks, check_known, check_model, check_size, check_text, kind_of
from kd_plugin.corpus.subwords import Segmentation, Subwords
from kd_plugin.errors import KDPluginError
from kd_plugin.files.sharded_folder import MANIFEST
from tests.support import MODEL, ROOT, load, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.sentencepiece_models import Pair, encoded, sentences, symbols, train
from tests.unit.translation_folders import counts_of, record, records_of, refusal, run_verb, write_folder

pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
SHARED = Path(ROOT).parent / "shared" / "teachers" / "multi30k.en-de"
MULTI30K = Path(ROOT).parent / "shared" / "data" / "multi30k"
STORED = ("source.spm", "target.spm")
TINY = ["--beam", 1, "--max-len-b", 4]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("joint") / "model", joint=True)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("apart") / "model", joint=False)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A model of other English lines, of the same size and kind."""
    return train(tmp_path_factory.mktemp("wrong") / "wrong.spm", sentences("en", 1))


@pytest.fixture
def translations(tmp_path):
    write_folder(tmp_path / "translations", [record(0, sentences("en")[0], sentences("de")[0])])
    return tmp_path / "translations"


def checked(model, dictionary):
    check_model("--sentencepiece-model M", Subwords(str(model)).pieces, dictionary, "the dictionary")


# --- a model and a dictionary


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char", "word"])
def test_a_model_s_own_dictionary_is_accepted(tmp_path, kind):
    lines = sentences("en") + sentences("de") + ["⊕⊗ 日本語 the an", "the ⊕⊗⊕ 本 😀 ing"]
    model = train(tmp_path / "m.spm", lines, kind=kind, character_coverage=0.99)
    dictionary = symbols(model, lines)
    assert "日本語" in dictionary or kind == "word"  # characters that the model does not know stay as they are
    added = ["<s>", "<pad>", "</s>", "<unk>", "<2de>", "__de__", "[de_DE]", ">>deu<<", "madeupword0000", "<0x0A>"]
    checked(model, [*added, *dictionary])
    checked(model, dictionary[::3])  # as cut by --nwordssrc
    checked(model, [*dictionary, "@url@"])


def test_bytes_and_symbols_of_the_user_are_pieces(tmp_path):
    lines = [*sentences("en"), "⊕ the SEP an"]
    model = train(tmp_path / "m.spm", lines, size=380, byte_fallback=True, user_defined_symbols=["SEP"])
    dictionary = symbols(model, [*lines, "日 the"])
    assert "SEP" in dictionary and any(symbol.startswith("<0x") for symbol in dictionary)
    checked(model, dictionary)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"size": 90}, {"kind": "bpe"}, {"kind": "char"}, {"kind": "word"}, {"language": "de"}],
    ids=str,
)
def test_another_model_is_refused_with_counts_and_examples(tmp_path, change):
    language, seed = change.pop("language", "en"), change.pop("seed", 0)
    dictionary = symbols(train(tmp_path / "right.spm", sentences("en")), sentences("en"))
    other = train(tmp_path / "other.spm", sentences(language, seed), **change)
    with pytest.raises(KDPluginError, match=r"M: is not the one .*: \d+ of \d+ symbols .* \(\S+, .*Remedy: the .model"):
        checked(other, dictionary)


def test_few_beginnings_of_words_tell_more_than_few_placeholders():
    pieces = [f"▁p{i}" for i in range(2000)]
    placeholders, beginnings = [[f"{mark}q{i}" for i in range(8)] for mark in ("p", "▁")]
    check_model("M", [*pieces, "p"], [*pieces, *placeholders, *beginnings[:2]], "the dictionary")
    with pytest.raises(KDPluginError, match="M: is not the one .*: 8 of 2,008 symbols"):
        check_model("M", [*pieces, "p"], [*pieces, *beginnings], "the dictionary")


def test_a_larger_model_is_told_from_a_dictionary_with_few_symbols():
    merges = [f"m{i}" for i in range(200)]
    used = [merge for at, merge in enumerate(merges) if at < 100 and at % 50]  # one in fifty is never written itself
    check_size("M", merges[:100], used, "the dictionary")
    check_size("M", merges, merges[::2], "the dictionary")
    check_size("M", merges, [*merges[:40], *merges[50:90], merges[150]], "the dictionary")
    check_size("M", [], used, "the dictionary")
    with pytest.raises(KDPluginError, match="M: is larger than .* the last 102 of its 200 merges .*m195, .*m199"):
        check_size("M", merges, used, "the dictionary")


@pytest.mark.skipif(not MULTI30K.is_dir(), reason="there is no shared data")
def test_a_larger_model_of_the_same_merges_is_refused(tmp_path):
    lines = [line for _, line in itertools.islice(numbered_lines(MULTI30K / "train.de.gz", "text"), 4000)]
    small, large = (Subwords(str(train(tmp_path / f"{n}.spm", lines, n, kind="bpe"))) for n in (2000, 2500))
    assert not Subwords(str(train(tmp_path / "u.spm", sentences("en")))).merges
    of_small, of_large = (symbols(one.path, lines) for one in (small, large))
    Segmentation(small, small).check("A.pt", of_small, ["▁"])
    Segmentation(large, large).check("A.pt", of_large, ["▁"])
    Segmentation(large, large).check("A.pt", symbols(large.path, lines[:300]), ["▁"])
    for pair, target in (
        (Segmentation(large, large), of_small),
        (Segmentation(large, large), of_small[1:]),
        (Segmentation(large, small), of_small[1:]),
    ):
        with pytest.raises(KDPluginError, match=r"larger than .* the last [\d,]+ of its [\d,]+ merges"):
            pair.check("A.pt", of_small, target)


def test_a_dictionary_of_another_script_is_no_list_of_unknown_characters(tmp_path):
    model = train(tmp_path / "m.spm", sentences("en"))
    with pytest.raises(KDPluginError, match="not among its pieces"):
        checked(model, ["▁", "▁the", *map(chr, range(0x4E00, 0x4F00))])


@pytest.mark.parametrize("dictionary", [WORDS, ["d@@", "o@@", "g", "dog@@", "s"]])
def test_a_dictionary_without_spaces_is_not_sentencepiece_s(tmp_path, dictionary):
    model = train(tmp_path / "m.spm", sentences("en"))
    with pytest.raises(KDPluginError, match="has sentencepiece's ▁.*leave the model out"):
        checked(model, dictionary)


def test_a_joined_dictionary_holds_the_pieces_of_two_models(apart, wrong):
    own = [symbols(apart.models[lang], sentences(lang)) for lang in ("en", "de")]
    joined = sorted(set(sum(own, [])))
    ours, theirs, other = (Subwords(str(path)) for path in (*apart.models.values(), wrong))
    Segmentation(ours, theirs).check("A.pt", joined, joined)
    for pair in (Segmentation(ours, ours), Segmentation(other, theirs), Segmentation(ours, other)):
        with pytest.raises(KDPluginError, match="A.pt's joined dictionary"):
            pair.check("A.pt", joined, joined)


@pytest.mark.skipif(not SHARED.is_dir(), reason="there is no shared teacher")
def test_the_shared_teacher_s_pieces_are_its_dictionary(wrong):
    dictionary = Dictionary.load(str(SHARED / "dict.txt")).symbols
    checked(SHARED / "spm.model", dictionary)
    with pytest.raises(KDPluginError, match="of 3,997 symbols"):
        checked(wrong, dictionary)


def test_models_for_each_other_s_side_of_a_joined_dictionary(apart):
    source, target = (Subwords(str(apart.models[language])) for language in ("en", "de"))
    lines = sentences("en")[:20]
    Segmentation(source, target).check_sides(lines, "--input x", True)
    Segmentation(target, source).check_sides(lines, "--input x", False)  # its dictionaries say so already
    Segmentation(target, source).check_sides(lines[:1], "--input x", True)  # too little to say
    Segmentation(target, target).check_sides(lines, "--input x", True)
    with pytest.raises(KDPluginError, match=r"splits --input x into.*swapped.*Remedy"):
        Segmentation(target, source).check_sides(lines, "--input x", True)


# --- text and a dictionary


@pytest.mark.parametrize(
    ("lines", "has_model", "dictionary", "refused"),
    [
        (["Ein Hund."], False, "pieces", "raw text"),
        (["", " ", "Hund"], False, "pieces", "raw text"),
        (["▁Ein ▁H und"], False, "pieces", None),
        (["▁Ein ▁H und"], True, "pieces", "contain ▁.*already segmented"),
        (["H@@ und"], True, "pieces", "contain @@.*already segmented"),
        (["Ein Hund.", "mit ▁ darin", "mit @@ darin"], True, "pieces", None),
        (["Ein Hund."], False, "words", None),
        (["Ein Hund."], False, "parts", None),
        ([], False, "pieces", None),
    ],
)
def test_text_that_is_segmented_and_text_that_is_not(lines, has_model, dictionary, refused):
    known = {"pieces": ["▁Ein", "▁H", "und", "Hund"], "words": WORDS, "parts": ["Ein", "H@@", "und"]}[dictionary]
    with pytest.raises(KDPluginError, match=f"--input x: .*{refused}") if refused else contextlib.nullcontext():
        check_text(Marks(lines), has_model, known, "--input x")


def test_whole_words_for_a_dictionary_of_parts():
    parts = ["a", "dog", *"dogs.", *(c + "@@" for c in "dogs.")]
    with pytest.raises(KDPluginError, match=r"1 of 2 words .*in parts \(@@\)"):
        check_known([["a", "dogs."]], parts)
    check_known([["a", "dog@@", "s"], ["dogs."]], parts)  # segmented: that word is just unknown
    check_known([["a", "dog"]], parts)
    check_known([["a", "dög"]], parts)


def test_few_unknown_symbols_are_said_and_many_refused(capsys):
    check_known([["x"]], ["a"], has_model=True)
    assert "warning: 1 of 1 symbols of the text are not in" in capsys.readouterr().err
    check_known([["x", "a"]], ["a"], has_model=True)
    assert capsys.readouterr().err == ""
    with pytest.raises(KDPluginError, match="20 of 20 .*another language or script"):
        check_known([["x"] * 20], ["a"], has_model=True)


@pytest.mark.parametrize(
    ("dictionary", "kind"),
    [
        (["▁", "a", "b"], None),
        (["▁a", "b"], "sentencepiece"),
        (["a@@", "b"], "subword_nmt"),
        (["a", "b"], None),
        (["▁", *map(str, range(200))], None),
    ],
)
def test_kinds_of_dictionaries(dictionary, kind):
    assert kind_of(dictionary) == kind


def test_text_is_put_together_as_its_dictionary_was_taken_apart():
    parts = ["▁", *(f"{i}@@" for i in range(150)), *map(str, range(150))]  # ▁ was in the text
    for symbol, dictionary in (("sentencepiece", parts), ("sentencepiece", WORDS), ("subword_nmt", ["▁a", "b"])):
        with pytest.raises(KDPluginError, match=f"--remove-bpe {symbol}: .*Remedy"):
            Subwords(None, symbol).check_joining(dictionary)
    for symbol, dictionary in (("sentencepiece", ["▁a"]), ("subword_nmt", parts), ("none", WORDS)):
        Subwords(None, symbol).check_joining(dictionary)


# --- the verbs


def command(verb, pair, translations, output, *flags):
    return {
        "decode": ["decode", "--input", pair.source, "--path", pair.path, *TINY],
        "ctranslate2": ["decode", "--input", pair.source, "--path", pair.path, *TINY, "--engine", "ctranslate2"],
        "score": ["score", translations, "--path", pair.path],
        "evaluate": ["evaluate", "--model", f"m={pair.path}", "--test", f"t={pair.source},{pair.source}", *TINY],
        "export": ["export", pair.path, "--format", "fairseq"],
        "check": ["export", pair.path, "--format", "fairseq", "--check", pair.source],
    }[verb] + ["--output", output, *flags]


VERBS = ["decode", "ctranslate2", "score", "evaluate", "export", "check"]


@pytest.mark.parametrize("verb", VERBS)
def test_another_model_on_either_side_is_refused_for_a_single_line(verb, apart, wrong, translations, tmp_path, capsys):
    output = tmp_path / "out"
    for side, models in (("source", (wrong, None)), ("target", (None, wrong))):
        error = refusal(capsys, *command(verb, apart, translations, output, *apart.flags(*models)))
        assert f"--{side}-sentencepiece-model {wrong}: is not the one" in error
        assert f"{apart.path}'s {side} dictionary" in error
    swapped = apart.flags(*reversed(list(apart.models.values())))
    assert "is not the one" in refusal(capsys, *command(verb, apart, translations, output, *swapped))
    for model in apart.models.values():  # right for one side only
        error = refusal(capsys, *command(verb, apart, translations, output, "--sentencepiece-model", model))
        assert f"--sentencepiece-model {model}: is not the one" in error and "--target-sentencepiece-model" in error
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_is_missing_or_too_much_is_not_guessed(verb, apart, joint, translations, tmp_path, capsys):
    output = tmp_path / "out"
    for side, other in (("source", "target"), ("target", "source")):
        flag = [f"--{side}-sentencepiece-model", apart.models["en" if side == "source" else "de"]]
        error = refusal(capsys, *command(verb, apart, translations, output, *flag))
        assert f"no model for the {other} side" in error and f"Remedy: --{other}-sentencepiece-model" in error
        flag += ["--sentencepiece-model", joint.models["en"]]
        error = refusal(capsys, *command(verb, joint, translations, output, *flag))
        assert f"--sentencepiece-model excludes --{side}-sentencepiece-model" in error
    if verb != "export":
        assert "is raw text" in refusal(capsys, *command(verb, apart, translations, output))
    assert not output.exists() or not list(output.iterdir())


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_decode_with_two_models_is_decoding_what_they_segment(apart, tmp_path, engine):
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    lines = sentences("en")[:5]
    raw, segmented = tmp_path / "raw.en", tmp_path / "segmented.en"
    raw.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    pieces = encoded(apart.models["en"], lines)
    segmented.write_text("".join(" ".join(line) + "\n" for line in pieces), encoding="utf-8")
    common = ["--path", apart.path, *TINY, "--engine", engine]
    run_verb("decode", "--input", raw, *common, *apart.flags(), "--output", tmp_path / "raw")
    run_verb("decode", "--input", segmented, *common, "--output", tmp_path / "segmented")
    found, expected = records_of(tmp_path / "raw"), records_of(tmp_path / "segmented")
    assert [r.source for r in found] == [r.source for r in expected] == lines
    texts = [[h.text for r in records for h in r.hypotheses] for records in (found, expected)]
    assert [text.strip() for text in texts[0]] == [text.strip() for text in texts[1]] and any(texts[0])
    identity = json.loads((tmp_path / "raw" / MANIFEST).read_text())["identity"]
    assert identity["source"]["subwords"] != identity["target_subwords"]


def test_score_with_two_models_in_both_directions(apart, translations, tmp_path):
    """A model that translates back reads the translations' target: --source-sentencepiece-model is what it reads."""
    run_verb(*command("score", apart, translations, tmp_path / "there", *apart.flags()))
    back = tmp_path / "back.pt"
    make_checkpoint(back, apart.folder, "-s", "de", "-t", "en", *MODEL)
    flags = ["--path", back, "--dict-dir", apart.folder, "--output", tmp_path / "back"]
    run_verb("score", translations, *flags, *apart.flags(apart.models["de"], apart.models["en"]))
    model = load(back)["model"]
    assert model["encoder.embed_tokens.weight"].shape != model["decoder.embed_tokens.weight"].shape
    for name in ("there", "back"):
        assert records_of(tmp_path / name)[0].hypotheses[0].score < 0


def test_evaluate_and_export_with_two_models(apart, tmp_path, capsys):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    corpus = ["--vocabulary-map-from", apart.source, apart.source.with_suffix(".de")]
    apart.source.with_suffix(".de").write_text(sentences("de")[0] + "\n", encoding="utf-8")
    export = ["export", apart.path, "--format", "ctranslate2", "--quantization", "float32", "--check", apart.source]
    error = refusal(capsys, *export, *corpus, "--output", tmp_path / "raw")
    assert "--check" in error and "is raw text" in error
    run_verb(*export, "--check-threshold", 0, *corpus, *apart.flags(), "--output", tmp_path / "m")
    for side, language in (("source", "en"), ("target", "de")):
        assert (tmp_path / "m" / f"{side}.spm").read_bytes() == apart.models[language].read_bytes()
    assert not (tmp_path / "m" / "spm.model").exists()
    mapped = (tmp_path / "m" / "vmap.txt").read_text(encoding="utf-8").split("\n")[0].split()
    assert set(mapped) == set(encoded(apart.models["de"], sentences("de")[:1])[0])
    description = json.loads((tmp_path / "m" / "kd_plugin.json").read_text())
    assert description["source_sentencepiece_sha256"] == Subwords(str(apart.models["en"])).sha256
    assert description["target_sentencepiece_sha256"] == Subwords(str(apart.models["de"])).sha256
    test = f"t={apart.source},{apart.source.with_suffix('.de')}"
    both = ["--model", f"a={apart.path}", "--model", f"b={tmp_path / 'm'}", "--test", test, *TINY, "--bootstrap", 0]
    run_verb("evaluate", *both, *apart.flags(), "--output", tmp_path / "evaluation")
    settings = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["settings"]
    assert set(settings["subwords"]) == {"source", "target"}
    (code,) = re.findall(
        "```python\n(import ctranslate2.*?)```",
        (ROOT / "docs" / "how-to" / "export.md").read_text("utf-8"),
        flags=re.DOTALL,
    )
    for ours, theirs in (('"student-int8"', repr(str(tmp_path / "m"))), ('("spm.model", "spm.model")', str(STORED))):
        assert code.count(ours) == 1
        code = code.replace(ours, theirs)
    capsys.readouterr()
    exec(code.replace("max_decoding_length=200", "max_decoding_length=4"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    error = refusal(capsys, "evaluate", *both[2:], *apart.flags(None, apart.models["en"]), "--output", tmp_path / "x")
    assert f"{tmp_path / 'm'}'s target dictionary" in error or "joined" in error


def test_one_model_for_both_is_stored_as_before(joint, tmp_path):
    run_verb(*command("export", joint, None, tmp_path / "m", *joint.flags()))
    assert (tmp_path / "m" / "spm.model").read_bytes() == joint.models["en"].read_bytes()
    assert not list((tmp_path / "m").glob("*.spm"))


def test_a_side_of_whole_words_needs_no_model(apart, tmp_path, capsys):
    (tmp_path / "dict.en.txt").write_text((apart.folder / "dict.en.txt").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "dict.de.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    make_checkpoint(tmp_path / "m.pt", tmp_path, "-s", "en", "-t", "de", *MODEL)
    flags = ["--path", tmp_path / "m.pt", *TINY, "--source-sentencepiece-model", apart.models["en"]]
    decode = ["decode", "--input", apart.source, *flags, "--output", tmp_path / "out"]
    assert "--remove-bpe sentencepiece" in refusal(capsys, *decode)
    run_verb(*decode, "--remove-bpe", "none")
    assert set(records_of(tmp_path / "out")[0].hypotheses[0].text.split()) <= {*WORDS, "<pad>", "<unk>"}


# --- unknown symbols


@pytest.fixture(scope="module")
def unknowing(tmp_path_factory):
    """A teacher of words that writes <unk> alone, and a split with <unk> in two of four lines."""
    folder = tmp_path_factory.mktemp("unknowing")
    write_dictionaries(folder, WORDS)
    path = folder / "teacher.pt"
    make_checkpoint(path, folder, "-s", "en", "-t", "de", *MODEL)
    state = load(path)
    for name, weight in state["model"].items():
        if name.startswith("decoder.layers.0.final_layer_norm"):
            weight.fill_(1.0 if name.endswith("bias") else 0.0)
    projection = state["model"]["decoder.output_projection.weight"]
    projection.fill_(0.0)[3] = 1.0
    torch.save(state, str(path))
    dictionary = Dictionary.load(str(folder / "dict.en.txt"))
    builder = indexed_dataset.make_builder(str(folder / "train.en-de.en.bin"), "mmap", vocab_size=len(dictionary))
    with contextlib.redirect_stdout(io.StringIO()):
        for line in ("word1 word2", "word1 other", "word3", "another word4"):
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False).int())
    builder.finalize(str(folder / "train.en-de.en.idx"))
    return path


@pytest.mark.parametrize("engine", ["fairseq", "ctranslate2"])
def test_decode_counts_unknown_symbols_and_filter_drops_them(unknowing, tmp_path, capsys, engine):
    if engine == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    flags = ["--path", unknowing, "--engine", engine, "--remove-bpe", "none", "--beam", 2, "--nbest", 2]
    flags += ["--max-len-b", 2, "--output", tmp_path / "out"]
    run_verb("decode", unknowing.parent, *flags)
    hypotheses = [h.text for r in records_of(tmp_path / "out") for h in r.hypotheses]
    counts = counts_of(tmp_path / "out")
    assert counts["lines_with_unknown_symbols"] == 2
    assert counts["translations_with_unknown_symbols"] == sum("<unk>" in text for text in hypotheses) >= 4
    printed = capsys.readouterr().out
    assert "lines with unknown symbols 2, translations with unknown symbols" in printed
    assert "in 2 lines of train part of the source is lost" in printed and "--input RAW" in printed
    assert "translations contain unknown symbols" in printed and "--unkpen inf" in printed
    loose = ["--max-length-ratio", 100, "--copied-source", "keep", "--max-repeats", 100, "--output"]
    run_verb("filter", tmp_path / "out", *loose, tmp_path / "kept", "--unknown-symbols", "keep")
    assert len(records_of(tmp_path / "kept")) == 4
    error = refusal(capsys, "filter", tmp_path / "out", *loose, tmp_path / "clean")
    assert "unknown_symbols dropped 8 of 8" in error and "--unknown-symbols" in error


def test_raw_text_keeps_what_the_dictionary_lacks(unknowing, tmp_path, capsys):
    (tmp_path / "raw.en").write_text("word1 other\nword1 other\nword2\n")
    flags = ["--path", unknowing, "--remove-bpe", "none", *TINY, "--output", tmp_path / "out"]
    run_verb("decode", "--input", tmp_path / "raw.en", *flags)
    assert [r.source for r in records_of(tmp_path / "out")] == ["word1 other", "word2"]
    counts = {name: count for name, count in counts_of(tmp_path / "out").items() if "unknown" in name}
    assert counts == {"lines_with_unknown_symbols": 2, "translations_with_unknown_symbols": 2}
    assert "is lost" not in capsys.readouterr().out


def test_sentencepiece_s_unknown_symbol_is_found_by_filter(joint, tmp_path):
    subwords = Subwords(str(joint.models["de"]))
    source = sentences("en")[0]
    texts = [subwords.decode(tokens) for tokens in (["▁ein", "<unk>", "er"], ["<unk>", "▁ein"], ["▁ein", "<unk>"])]
    assert all("⁇" in text for text in texts)
    write_folder(tmp_path / "in", [record(0, source, *texts, "ein⁇ er der"), record(1, texts[0], "ein der")])
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "out", "--max-length-ratio", 100, "--max-repeats", 100)
    assert [h.text for r in records_of(tmp_path / "out") for h in r.hypotheses] == ["ein⁇ er der"]
    assert counts_of(tmp_path / "out") == {"dropped_unknown_symbols": 4, "lines_without_translation": 1}


def test_evaluate_notes_unknown_symbols(unknowing, tmp_path):
    (tmp_path / "t.en").write_text("word1\nword2\n\n")
    test = f"t={tmp_path / 't.en'},{tmp_path / 't.en'}"
    flags = ["--model", f"m={unknowing}", "--test", test, "--remove-bpe", "none", "--bootstrap", 0, *TINY]
    run_verb("evaluate", *flags, "--output", tmp_path / "out")
    (model,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert "2 translations have unknown symbols (<unk>)" in model["note"].split("; ")
    assert model["note"] in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert (
        cli.main(["filter", str(tmp_path / "none"), "--output", str(tmp_path / "x"), "--unknown-symbols", "keep"]) == 1
    )
