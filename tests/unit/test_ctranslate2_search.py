"""CTranslate2 gives what fairseq's search gives: at the length limit, in n-best lists, of models that do not end."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch

from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.cli import main
from kd_plugin.corpus.subwords import Subwords
from kd_plugin.corpus.translations import Translations
from kd_plugin.decoding import ctranslate2_search
from kd_plugin.decoding.base import Settings
from kd_plugin.decoding.ctranslate2 import CTranslate2Decoder
from kd_plugin.decoding.ctranslate2_search import Search
from kd_plugin.decoding.fairseq import FairseqDecoder, open_checkpoints
from kd_plugin.decoding.length_limit import is_capped, length_limit
from kd_plugin.decoding.models import Translated, translate
from kd_plugin.errors import KDPluginError
from kd_plugin.export import check as export_check
from tests.support import MODEL, ROOT, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries

pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")

LANGS = ["-s", "en", "-t", "de"]
SHORT = Settings(max_len_b=12)
SENTENCES = [random.Random(i).choices(WORDS, k=1 + i % 9) for i in range(16)]
TEACHER = Path(ROOT).parent / "shared" / "teachers" / "multi30k.en-de"
MULTI30K = Path(ROOT).parent / "shared" / "data" / "multi30k" / "test_2016_flickr.en.gz"


def both(path, folder, settings, data=None):
    """fairseq's search and CTranslate2's with the same model."""
    from kd_plugin.checkpoints.ctranslate2_models import convert

    overrides = {"data": str(data or path.parent)}
    converted = folder / "converted"
    if not converted.is_dir():
        convert(open_checkpoint(str(path), overrides, "en", "de"), converted)
    checkpoints = open_checkpoints(str(path), overrides, "en", "de")
    return FairseqDecoder(checkpoints, settings, torch.device("cpu")), CTranslate2Decoder(converted, settings)


def assert_equal(theirs, ours):
    assert [[tokens for tokens, _ in answer] for answer in ours] == [[t for t, _ in answer] for answer in theirs]
    for one, other in zip(ours, theirs):
        assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-4)


@pytest.fixture(scope="module", params=[1, 2])
def untrained(request, tmp_path_factory):
    """A model that never ends by itself, and one that wants to write padding and to end at the beginning."""
    folder = tmp_path_factory.mktemp("untrained")
    write_dictionaries(folder, WORDS)
    make_checkpoint(folder / "model.pt", folder, *LANGS, *MODEL, "--max-target-positions", 40, seed=request.param)
    return folder / "model.pt"


@pytest.mark.parametrize(
    "settings",
    [
        Settings(max_len_b=8),
        Settings(),  # the model's positions are the limit
        Settings(max_len_b=12, nbest=5),
        Settings(max_len_b=12, lenpen=0.0, nbest=3),
        Settings(max_len_b=10, lenpen=2.0, beam=3),
        Settings(max_len_b=20, beam=1),
        Settings(max_len_b=15, unkpen=float("inf")),
        Settings(max_len_a=1.3, max_len_b=1, nbest=2),
        Settings(max_len_b=1, nbest=4),
    ],
    ids=str,
)
def test_models_that_do_not_end_are_ended_as_fairseq_ends_them(untrained, settings):
    theirs, ours = (decoder(SENTENCES) for decoder in both(untrained, untrained.parent, settings))
    assert_equal(theirs, ours)
    for tokens, _ in (scored for answer in ours for scored in answer):
        assert "<blank>" not in tokens and "</s>" not in tokens


@pytest.mark.parametrize("settings", [Settings(max_len_b=12, nbest=5), Settings(max_len_a=1.3, nbest=2)], ids=str)
def test_what_takes_too_long_step_by_step_is_fairseqs_own(untrained, settings, monkeypatch):
    monkeypatch.setattr(ctranslate2_search, "STEPS", 0)
    checkpoints = open_checkpoints(str(untrained), {"data": str(untrained.parent)}, "en", "de")
    theirs, _ = (decoder(SENTENCES) for decoder in both(untrained, untrained.parent, settings))
    ours = CTranslate2Decoder(untrained.parent / "converted", settings, checkpoints=checkpoints)(SENTENCES)
    assert_equal(theirs, ours)


def test_without_the_checkpoint_it_is_searched_once_and_scored_as_the_model_does(untrained, monkeypatch):
    monkeypatch.setattr(ctranslate2_search, "STEPS", 0)
    _, decoder = both(untrained, untrained.parent, Settings(max_len_b=12, nbest=5))
    monkeypatch.setattr(ctranslate2_search.Search, "_grow", None)
    for source, answer in zip(SENTENCES, decoder._search(False)(SENTENCES, 12)):
        assert len(answer) == 5 and [score for _, score in answer] == sorted((s for _, s in answer), reverse=True)
        for tokens, score in answer:
            log_probs = decoder._translator.score_batch([source], [tokens])[0].log_probs
            assert score == pytest.approx(sum(log_probs) / (len(tokens) + 1), abs=1e-4)
            assert 0 < len(tokens) <= 12 and not {"<blank>", "</s>"} & set(tokens)


def test_what_is_not_fairseqs_search_is_counted_and_said(untrained, tmp_path, monkeypatch):
    """A bare folder has no checkpoint with which fairseq could search for what takes too long step by step."""
    both(untrained, untrained.parent, SHORT)  # converts it
    monkeypatch.setattr(ctranslate2_search, "STEPS", 0)
    monkeypatch.setattr(Search, "_is_clean", lambda *_: False)  # as of a model that wants to write padding everywhere
    decoder = CTranslate2Decoder(untrained.parent / "converted", SHORT)
    found = translate(decoder, SENTENCES)
    assert found.approximate == len(SENTENCES)
    checkpoints = open_checkpoints(str(untrained), {"data": str(untrained.parent)}, "en", "de")
    beside = CTranslate2Decoder(untrained.parent / "converted", SHORT, checkpoints=checkpoints)
    assert translate(beside, SENTENCES).approximate == 0
    for name in ("test.en", "test.de"):
        (tmp_path / name).write_text("".join(" ".join(sentence) + "\n" for sentence in SENTENCES))
    arguments = ["evaluate", "--model", f"m={untrained.parent / 'converted'}", "--bootstrap", "0", "--max-len-b", "12"]
    test, output = f"t={tmp_path / 'test.en'},{tmp_path / 'test.de'}", str(tmp_path / "out")
    assert main([*arguments, "--test", test, "--output", output, "--remove-bpe", "none"]) == 0
    (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert f"{len(SENTENCES)} translations are from CTranslate2's own search" in row["note"]


@pytest.mark.skipif(not (TEACHER / "teacher.pt").is_file(), reason="there is no shared teacher")
@pytest.mark.parametrize("limit, nbest, capped", [(8, 1, 35), (12, 5, 20), (200, 5, 0)])
def test_a_real_teacher_at_every_limit(limit, nbest, capped, tmp_path_factory):
    """Before: 27, 12 and 37 of the 40 lines, and the scores of none of the capped ones."""
    folder = tmp_path_factory.getbasetemp() / "real"
    subwords = Subwords(str(TEACHER / "spm.model"))
    lines = gzip.decompress(MULTI30K.read_bytes()).decode("utf-8").splitlines()[:40]
    sentences = [subwords.encode(line) for line in lines]
    settings = Settings(max_len_b=limit, nbest=nbest)
    theirs, ours = (decoder(sentences) for decoder in both(TEACHER / "teacher.pt", folder, settings, TEACHER))
    assert_equal(theirs, ours)
    assert sum(is_capped(answer, limit) for answer in ours) >= capped


def test_what_is_not_at_the_limit_is_searched_once(tmp_path, monkeypatch):
    """Nothing that is rare costs time where it does not happen."""
    write_dictionaries(tmp_path, WORDS)
    make_checkpoint(tmp_path / "model.pt", tmp_path, *LANGS, *MODEL)
    _, decoder = both(tmp_path / "model.pt", tmp_path, Settings())

    class Answer:
        hypotheses, scores = [["a", "</s>"], ["b", "c", "</s>"]], [-0.1, -0.2]

    class Translator:
        calls = 0

        def translate_batch(self, sources, **_):
            self.calls += 1
            return [Answer()] * len(sources)

    decoder._translator = translator = Translator()
    assert decoder(SENTENCES[:2]) == [[(["a"], -0.1)]] * 2
    assert translator.calls == 1


def test_draws_pay_for_the_end_that_the_limit_forces(untrained):
    _, decoder = both(untrained, untrained.parent, Settings(max_len_b=4, sampling=True, beam=4, nbest=4))
    decoder.start_draws(5)
    answers = decoder(SENTENCES[1:5])
    capped = [(s, tokens, score) for s, a in zip(SENTENCES[1:5], answers) for tokens, score in a if len(tokens) == 4]
    assert len(capped) > 3
    for source, tokens, score in capped:
        log_probs = decoder._translator.score_batch([source], [tokens])[0].log_probs
        # an end at the beginning, and padding, are impossible before the softmax here
        assert score == pytest.approx(sum(log_probs) / 5, abs=0.15)
        assert abs(score - sum(log_probs[:-1]) / 4) > 0.15 or abs(log_probs[-1] - sum(log_probs[:-1]) / 4) < 1
    assert all(scores == sorted(scores, reverse=True) for scores in ([score for _, score in a] for a in answers))


def test_draws_are_the_best_of_beam(untrained):
    """As fairseq-generate --sampling --beam 5 --nbest 1."""
    drawn = {}
    for nbest in (1, 5):
        _, decoder = both(untrained, untrained.parent, Settings(max_len_b=6, sampling=True, beam=5, nbest=nbest))
        decoder.start_draws(3)
        drawn[nbest] = decoder(SENTENCES[:3])
    assert [answer[0] for answer in drawn[5]] == [answer[0] for answer in drawn[1]]
    assert all(len(answer) == 1 for answer in drawn[1])


# --- the limit


def test_the_limit_is_fairseq_s():
    assert length_limit(0.0, 200, 7, 1023) == 200
    assert length_limit(1.5, 2, 7, 1023) == 14  # of the padded source, its end included
    assert length_limit(2.0, 0, 50, 31) == 31
    assert (
        is_capped([(["a"], 0.0), (["a", "b"], 0.0)], 2) and not is_capped([(["a"], 0.0)], 2) and not is_capped(None, 2)
    )


@pytest.mark.parametrize("engine", [0, 1])
def test_no_room_for_a_symbol_is_refused(untrained, engine):
    decoder = both(untrained, untrained.parent, Settings(max_len_a=0.1, max_len_b=0))[engine]
    with pytest.raises(KDPluginError, match="no symbol is left.*Remedy: use a larger --max-len-b"):
        decoder(SENTENCES[:2])


def test_a_score_that_is_not_a_number_is_no_translation():
    class Answer:
        hypotheses, scores = [["a", "</s>"]], [float("nan")]

    class Translator:
        def translate_batch(self, sources, **_):
            return [Answer()] * len(sources)

    with pytest.raises(FloatingPointError):
        Search(Translator(), 1, 1, 1.0, {}, [], {})([["a"]], 9)


# --- in the verbs


def test_decode_counts_capped_lines_with_both_engines(untrained, tmp_path, capsys):
    text = tmp_path / "input"
    text.write_text("".join(" ".join(tokens) + "\n" for tokens in [*SENTENCES, SENTENCES[0], []]))
    found = {}
    for engine in ("fairseq", "ctranslate2"):
        arguments = ["decode", "--input", text, "--path", untrained, "--output", tmp_path / engine, "--engine", engine]
        arguments += [*LANGS, "--remove-bpe", "none", "--max-len-b", 6, "--nbest", 2]
        assert main(list(map(str, arguments))) == 0
        assert "capped lines" in capsys.readouterr().out
        records = list(Translations(tmp_path / engine).records())
        found[engine] = Translations(tmp_path / engine).manifest.counts["capped_lines"]
        capped = [r for r in records if any(len(h.text.split()) == 6 for h in r.hypotheses)]
        assert found[engine] == sum(len(record.ids) for record in capped) > 2
    assert found["fairseq"] == found["ctranslate2"]


def test_evaluate_says_how_many_translations_are_capped(untrained, tmp_path):
    for name in ("src", "ref"):
        (tmp_path / name).write_text("".join(" ".join(tokens) + "\n" for tokens in SENTENCES))
    arguments = ["evaluate", "--model", f"m={untrained}", "--test", f"t={tmp_path / 'src'},{tmp_path / 'ref'}", *LANGS]
    arguments += ["--remove-bpe", "none", "--output", tmp_path / "out", "--bootstrap", 0, "--max-len-b", 3]
    assert main(list(map(str, arguments))) == 0
    note = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"][0]["note"]
    assert "of 16 translations are cut off at the length limit of 3 symbols" in note
    assert note in (tmp_path / "out" / "evaluation.md").read_text()


def export_checked(path, output, text, *flags):
    arguments = ["export", path, "--output", output, "--format", "ctranslate2", "--check", text, *LANGS, *flags]
    return main(list(map(str, arguments)))


def test_export_of_a_model_that_does_not_end_passes_its_check(untrained, tmp_path, capsys):
    text = tmp_path / "input"
    text.write_text("".join(" ".join(tokens) + "\n" for tokens in SENTENCES))
    assert export_checked(untrained, tmp_path / "out", text, "--quantization", "float32") == 0
    check = json.loads((tmp_path / "out" / "kd_plugin.json").read_text())["check"]
    assert check["identical"] == 1.0


@pytest.mark.parametrize(
    "capped, type_name, cause",
    [
        (12, "int8", "The checkpoint does not end 12 of 16 translations"),
        (0, "int8", "Remedy: a finer --quantization"),
        (0, "float32", "a finer --quantization will not help"),
    ],
)
def test_the_check_s_remedy_names_the_cause(capped, type_name, cause, untrained, tmp_path, monkeypatch, capsys):
    def parted(decoder, sentences, **others):
        answer = translate(decoder, sentences, **others)._replace(capped={at: 200 for at in range(capped)})
        if isinstance(decoder, CTranslate2Decoder):
            answer.hypotheses[:] = [["another", "word", "for", "all"]] * len(sentences)
        return answer

    monkeypatch.setattr(export_check, "translate", parted)
    text = tmp_path / "input"
    text.write_text("".join(" ".join(tokens) + "\n" for tokens in SENTENCES))
    assert export_checked(untrained, tmp_path / "out", text, "--quantization", type_name) == 1
    error = capsys.readouterr().err
    assert cause in error and error.count("Remedy") == 1 and not (tmp_path / "out").exists()


def test_the_check_judges_what_the_checkpoint_ends_itself():
    ours = Translated([["a"] * 200, ["x", "y", "z", "w"]], 1.0, 0, 2, 206, {0: 200})
    theirs = ours._replace(hypotheses=[["b"] * 200, ["x", "y", "z", "w"]])
    subwords = Subwords(None, "none")
    assert export_check._compared(ours, theirs, subwords, "de").bleu < 50
    judged = export_check._compared(ours, theirs, subwords, "de", [1])
    assert judged.bleu == pytest.approx(100) and judged.sentences == 1 and judged.capped == 0


# --- what the converter does not read


def test_weights_that_the_converter_leaves_out_are_refused(tmp_path, capsys):
    """--quant-noise-pq puts a layer behind the embeddings, also where nothing is quantised."""
    write_dictionaries(tmp_path, WORDS)
    path = tmp_path / "model.pt"
    make_checkpoint(path, tmp_path, *LANGS, *MODEL, "--quant-noise-pq", 0.1)
    text = tmp_path / "input"
    text.write_text(" ".join(SENTENCES[5]) + "\n")
    decode = ["decode", "--input", text, "--path", path, "--output", tmp_path / "d", *LANGS, "--remove-bpe", "none"]
    for arguments in (
        ["export", path, "--output", tmp_path / "out", "--format", "ctranslate2", *LANGS],
        [*decode, "--engine", "ctranslate2"],
    ):
        assert main(list(map(str, arguments))) == 1
        error = capsys.readouterr().err
        assert "CTranslate2's converter ignores encoder.quant_noise.weight, decoder.quant_noise.weight." in error
        assert error.count("Remedy") == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("d/model-*"))


def test_a_layer_of_somebody_s_own_is_refused(tmp_path):
    from kd_plugin.checkpoints.ctranslate2_models import convert

    write_dictionaries(tmp_path, WORDS)
    make_checkpoint(tmp_path / "model.pt", tmp_path, *LANGS, *MODEL)
    opened = open_checkpoint(str(tmp_path / "model.pt"))
    opened.model.decoder.layers[0].adapter = torch.nn.Linear(16, 16)
    with pytest.raises(KDPluginError, match="adapter"):
        convert(opened, tmp_path / "out")


@pytest.mark.parametrize(
    "flags",
    [
        ["--layernorm-embedding"],
        ["--encoder-layerdrop", "0.2", "--decoder-layerdrop", "0.2"],
        ["--share-decoder-input-output-embed"],
    ],
)
def test_ordinary_transformers_are_not_refused(flags, tmp_path):
    write_dictionaries(tmp_path, WORDS)
    make_checkpoint(tmp_path / "model.pt", tmp_path, *LANGS, *MODEL, *flags)
    theirs, ours = (d(SENTENCES[:4]) for d in both(tmp_path / "model.pt", tmp_path, Settings(max_len_b=5)))
    assert_equal(theirs, ours)
