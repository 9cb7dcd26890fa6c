"""`kd-plugin init`: a student's symbols, matched by symbol and never by index."""

import random

import pytest
import torch
from fairseq.data import Dictionary

from kd_plugin.corpus.subwords import SubwordOptions
from kd_plugin.initialise.vocabulary import match_symbols
from tests.support import load
from tests.unit.sentencepiece_models import sentences, train
from tests.unit.teachers_to_cut import (
    BEFORE,
    SHARED,
    TIED,
    batch,
    init,
    make_dictionary,
    make_teacher,
    manifest,
    read_by_fairseq,
    words,
)

VARIANTS = {"all shared": SHARED, "separate": [], "output tied, pre-norm": [*TIED, *BEFORE]}
ENCODER, DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
OUTPUT = "decoder.output_projection.weight"


def dictionary(symbols):
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


def shuffled(symbols, seed):
    symbols = list(symbols)
    random.Random(seed).shuffle(symbols)
    return symbols


@pytest.mark.parametrize("kept", [30, 13], ids=["all symbols", "a subset"])
@pytest.mark.parametrize("name", VARIANTS)
def test_another_dictionary_order_follows_symbols(name, kept, tmp_path, capsys):
    path, teacher = make_teacher(tmp_path / "teacher", *VARIANTS[name])
    orders = [shuffled(words(30), 1)[:kept]] * 2
    if name != "all shared":
        orders[1] = shuffled(words(30), 2)[:kept]
    for language, order in zip(("en", "de"), orders):
        make_dictionary(tmp_path / "student" / f"dict.{language}.txt", order)
    assert init(path, "--output", tmp_path / "student.pt", "--dict-dir", tmp_path / "student") == 0
    assert f"source symbols: {kept} of {kept} copied\n" in capsys.readouterr().out
    state, whole = load(tmp_path / "student.pt")["model"], teacher.state_dict()
    theirs = dictionary(words(30))
    for weight, order in ((ENCODER, orders[0]), (DECODER, orders[1]), (OUTPUT, orders[1])):
        ours = dictionary(order)
        assert len(state[weight]) == kept + 4
        for symbol in [*order, "<pad>", "</s>", "<unk>", "<s>"]:
            assert torch.equal(state[weight][ours.index(symbol)], whole[weight][theirs.index(symbol)]), symbol
    # the same sentences, in each model's own indices, have the same logits for the symbols that both have
    student = read_by_fairseq(tmp_path / "student.pt", tmp_path / "student")
    net_input = batch(kept + 4)
    maps = [torch.tensor([theirs.index(symbol) for symbol in dictionary(order).symbols]) for order in orders]
    with torch.no_grad():
        found = student(**net_input)[0]
        others = {
            "src_tokens": maps[0][net_input["src_tokens"]],
            "src_lengths": net_input["src_lengths"],
            "prev_output_tokens": maps[1][net_input["prev_output_tokens"]],
        }
        wanted = teacher(**others)[0][..., maps[1]]
    real = net_input["prev_output_tokens"].ne(1)
    torch.testing.assert_close(found[real], wanted[real], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["all shared", "separate"])
def test_embeddings_stay_shared_only_with_a_joined_dictionary(name, tmp_path, capsys):
    path, teacher = make_teacher(tmp_path / "teacher", *VARIANTS[name])
    make_dictionary(tmp_path / "joined" / "dict.txt", words(9))
    make_dictionary(tmp_path / "apart" / "dict.en.txt", words(9))
    make_dictionary(tmp_path / "apart" / "dict.de.txt", words(12))
    for folder in ("joined", "apart"):
        assert init(path, "--output", tmp_path / f"{folder}.pt", "--dict-dir", tmp_path / folder) == 0
        said = capsys.readouterr().out
        assert ("--share-all-embeddings" in said) == (name == "all shared" and folder == "joined")
        assert ("--share-decoder-input-output-embed" in said) == (name == "all shared")
    state = load(tmp_path / "apart.pt")["model"]
    assert len(state[ENCODER]) == 13 and len(state[DECODER]) == len(state[OUTPUT]) == 16
    assert torch.equal(state[DECODER], state[OUTPUT]) == (name == "all shared")
    assert torch.equal(state[ENCODER][4:], teacher.state_dict()[ENCODER][4:13])


def test_a_new_symbol_is_the_mean_of_its_parts(tmp_path, capsys):
    folder = tmp_path / "teacher"
    path, teacher = make_teacher(folder, *SHARED)
    order = ["▁", "▁haus", "boot", "e", *words(26)]  # as many, so that the weights fit
    for language in ("en", "de"):
        make_dictionary(folder / f"dict.{language}.txt", order)
    new = ["▁hausboot", "▁hausboote", "boote", "▁boot", "▁häuser", "§", "madeupword0000"]
    make_dictionary(tmp_path / "student" / "dict.txt", [*words(4), *new])
    assert init(path, "--output", tmp_path / "student.pt", "--dict-dir", tmp_path / "student") == 0
    whole, theirs = teacher.state_dict()[ENCODER], dictionary(order)
    state, ours = load(tmp_path / "student.pt")["model"][ENCODER], dictionary([*words(4), *new])
    parts = {
        "▁hausboot": ["▁haus", "boot"],
        "▁hausboote": ["▁haus", "boot", "e"],
        "boote": ["boot", "e"],
        "▁boot": ["boot"],  # not the mark of a word alone
        "▁häuser": ["e"],
        "§": ["<unk>"],
        "madeupword0000": ["<unk>"],
    }
    for symbol, made_of in parts.items():
        mean = whole[[theirs.index(part) for part in made_of]].mean(0)
        torch.testing.assert_close(state[ours.index(symbol)], mean, atol=1e-6, rtol=0)
    found = manifest(tmp_path / "student.pt")["symbols"]["source"]
    assert found["copied"] == 4 and found["unknown"] == ["§", "madeupword0000"]
    assert found["averaged"]["▁hausboote"] == ["▁haus", "boot", "e"]
    said = capsys.readouterr().out
    assert "4 of 11 copied; 5 averaged, of 1.8 parts each; 2 unknown to the teacher, as its <unk>: §" in said


def test_a_sentencepiece_model_says_what_the_parts_are(tmp_path):
    lines = sentences("de")
    teachers = train(tmp_path / "teacher.spm", lines, 60)
    other = train(tmp_path / "student.spm", lines, 150)
    import sentencepiece

    models = [sentencepiece.SentencePieceProcessor(model_file=str(model)) for model in (teachers, other)]
    theirs, ours = (dictionary([m.id_to_piece(i) for i in range(3, m.get_piece_size())]) for m in models)
    subwords = SubwordOptions(sentencepiece_model=str(teachers)).open().source
    matched = match_symbols(ours, theirs, subwords)
    assert len(matched.averaged) > 40 and not matched.unknown
    inside = 0
    for symbol, parts in matched.averaged.items():
        assert "".join(parts) == symbol or "".join(parts) == symbol.replace("▁", "")
        if symbol.startswith("▁") and len(symbol) > 1:
            assert parts == models[0].encode(symbol[1:], out_type=str)
        else:
            inside += 1
    assert inside > 2
    for symbol, rows in zip(ours.symbols, matched.rows):
        if symbol in matched.averaged:
            assert rows == [theirs.index(part) for part in matched.averaged[symbol]]


def test_symbols_of_subword_nmt_keep_their_marks():
    theirs = dictionary(["haus@@", "haus", "boot", "boot@@", "e", "e@@", "x@@"])
    ours = dictionary(["hausboot", "hausboot@@", "boote", "xe", "ö"])
    matched = match_symbols(ours, theirs, None)
    assert matched.averaged == {
        "hausboot": ["haus@@", "boot"], "hausboot@@": ["haus@@", "boot@@"], "boote": ["boot@@", "e"],
        "xe": ["x@@", "e"],
    }  # fmt: skip
    assert matched.unknown == ["ö"]


def counted(symbols):
    made = Dictionary()
    for symbol, count in symbols.items():
        made.add_symbol(symbol, n=count)
    return made


def test_subword_nmt_symbols_are_found_among_sentencepiece_pieces():
    theirs = counted({"▁haus": 9, "▁boot": 3, "boot": 5, "▁e": 2, "e": 8, "▁s": 4, "s": 4, "▁": 1})
    symbols = ["haus", "haus@@", "boot", "boot@@", "e", "s@@", "hausboot", "hause@@", "ö", "@@", "madeupword0000"]
    matched = match_symbols(dictionary(symbols), theirs, None)
    found = [[theirs[row] for row in rows] for rows in matched.rows[4:]]
    assert found == [
        ["▁haus"], ["▁haus"], ["boot"], ["boot"], ["e"], ["▁s"],  # the form that is counted more; else the whole word
        ["▁haus", "boot"], ["▁haus", "e"], ["<unk>"], ["<unk>"], ["<unk>"],
    ]  # fmt: skip
    assert matched.copied == 6 and list(matched.averaged) == ["hausboot", "hause@@"]
    assert matched.unknown == ["ö", "@@", "madeupword0000"]


def test_sentencepiece_pieces_are_found_among_subword_nmt_symbols_and_words():
    theirs = counted({"haus": 9, "haus@@": 3, "boot": 2, "boot@@": 5, "e": 8})
    pieces = ["▁haus", "haus", "▁boot", "▁hausboot", "▁hause", "▁ö", "▁"]
    matched = match_symbols(dictionary(pieces), theirs, None)
    found = [[theirs[row] for row in rows] for rows in matched.rows[4:]]
    assert found == [["haus"], ["haus"], ["boot@@"], ["haus@@", "boot"], ["haus@@", "e"], ["<unk>"], ["<unk>"]]
    words_only = counted({"haus": 9, "boot": 2})
    for symbols in (["▁haus", "boot"], ["haus@@", "boot"]):
        matched = match_symbols(dictionary(symbols), words_only, None)
        assert [[words_only[row] for row in rows] for rows in matched.rows[4:]] == [["haus"], ["boot"]]


def test_the_teachers_own_words_survive_another_segmentation(tmp_path):
    """With the teacher's model: what it splits a word into, not a guess from the left."""
    lines = sentences("de")
    model = train(tmp_path / "teacher.spm", lines, 60)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    theirs = dictionary([processor.id_to_piece(i) for i in range(3, processor.get_piece_size())])
    once = sorted({word for line in lines for word in line.split() if "▁" + word not in theirs.indices})[:50]
    subwords = SubwordOptions(sentencepiece_model=str(model)).open().source
    matched = match_symbols(dictionary([*once, "ein@@"]), theirs, subwords)
    assert len(matched.averaged) > 20
    for word, rows in zip(once, matched.rows[4:]):
        if word in matched.averaged:
            assert [theirs[row] for row in rows] == processor.encode(word, out_type=str)


def test_a_damaged_dictionary_is_refused(tmp_path, capsys):
    path, _ = make_teacher(tmp_path / "teacher", *SHARED)
    (tmp_path / "dict.txt").write_text("one\n")
    assert init(path, "--output", tmp_path / "x.pt", "--dict-dir", tmp_path) == 1
    message = capsys.readouterr().err
    assert "dict.txt: not a fairseq dictionary" in message and "Remedy: " in message
    assert not (tmp_path / "x.pt").exists()
