"""From a language's code to how its text is cut, and whether it can name a file."""

import pytest

from kd_plugin.checkpoints.open import open_checkpoint
from kd_plugin.cli import main
from kd_plugin.corpus import languages
from kd_plugin.corpus.languages import bleu_tokenizer, check_languages, family, family_of_text, has_spaces
from kd_plugin.corpus.translations import Translations, Writer
from kd_plugin.errors import KDPluginError
from tests.support import MODEL, make_checkpoint
from tests.unit.conftest import WORDS, write_dictionaries
from tests.unit.test_teachers import LANGS
from tests.unit.translation_folders import refusal

FAMILIES = {
    "zh": "zh zho chi chs cht CHT zh-CHS cmn yue wuu zh_CN zh-TW zh_HK ZH zh-Hans zh_Hant zho_Hans zho_Hant cmn_Hans "
    "yue_Hant lzh_Hani",
    "ja": "ja jpn JA jpn_Jpan ja_XX ja-JP jpn_Hira jpn_Hani __ja__",
    "ko": "ko kor kor_Hang ko_KR KO kor-Hang",
    "th": "th tha tha_Thai th_TH nod_Thai",
    "lo": "lo lao lao_Laoo",
    "km": "km khm khm_Khmr km_KH",
    "my": "my mya bur mya_Mymr shn_Mymr my_MM xyz_Mymr",
    "bo": "bo bod dz dzo bod_Tibt dzo_Tibt",
    None: "en de pt_BR pt-BR sr_Cyrl zh_Latn zho-Latn ru ar ara_Arab vi vie_Latn hi tgt nb_NO mn_Cyrl thn zza jav lob "
    "kom kmr_Latn mos bos",
}
TEXT = {
    "zh": ["我们明天去北京。", "他喜欢 Python 3 和咖啡"],
    "ja": ["明日、北京に行きます。", "コーヒーが好きです"],
    "th": ["พรุ่งนี้เราจะไปปักกิ่ง"],
    "km": ["យើងនឹងទៅប៉េកាំងនៅថ្ងៃស្អែក"],
    "lo": ["ມື້ອື່ນພວກເຮົາຈະໄປປັກກິ່ງ"],
    "my": ["ကျွန်တော်တို့မနက်ဖြန်ပေကျင်းသွားမယ်"],
    "bo": ["ང་ཚོ་སང་ཉིན་པེ་ཅིང་ལ་འགྲོ་གི་ཡིན།"],
    None: ["Wir fahren morgen nach 北京.", "Завтра", "Ngày mai", "내일 우리는", "هنا", "कल हम", "12 + 3", ""],
}


@pytest.mark.parametrize("expected, codes", [(key, codes.split()) for key, codes in FAMILIES.items()])
def test_every_way_to_write_a_code_says_the_same(expected, codes):
    assert {code: family(code) for code in codes} == dict.fromkeys(codes, expected)
    assert all(has_spaces(code) == (expected in (None, "ko")) for code in codes)


@pytest.mark.parametrize("expected", TEXT)
def test_letters_tell_text_without_spaces(expected):
    assert family_of_text(TEXT[expected]) == expected
    assert family_of_text([]) is None


def test_one_rule_for_the_tokenizer(monkeypatch):
    monkeypatch.setattr(languages, "_works", lambda name: True)
    names = {code: bleu_tokenizer(code).name for code in ("zho_Hant", "jpn_Jpan", "ko", "th", "mya_Mymr", "dz", "de")}
    assert names == {
        "zho_Hant": "zh", "jpn_Jpan": "ja-mecab", "ko": "ko-mecab", "th": "char", "mya_Mymr": "char", "dz": "char",
        "de": None,
    }  # fmt: skip
    assert bleu_tokenizer("de", TEXT[None]).note == ""


def test_a_package_that_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(languages, "_works", lambda name: False)
    tokenizer = bleu_tokenizer("ja")
    assert tokenizer.name == "char" and "ja-mecab is not installed (pip install 'sacrebleu[ja]')" in tokenizer.note
    assert bleu_tokenizer("zh").name == "zh" and "installed" not in bleu_tokenizer("zh").note


def test_what_nobody_says_the_letters_do_and_what_they_contradict_is_doubted():
    unsaid = bleu_tokenizer(None, TEXT["zh"])
    assert unsaid.name == "zh" and not unsaid.doubtful and "no language given" in unsaid.note
    wrong = bleu_tokenizer("de", TEXT["th"])
    assert wrong.name is None and wrong.doubtful and "--tokenize char" in wrong.note
    assert bleu_tokenizer("zh", TEXT[None]).name == "zh"


@pytest.mark.parametrize(
    "language", ["", " ", "../x", "a/b", "/", "..", ".", "a\0b", "a b", "a\n", "a\tb", "a\\b", "-s", "x" * 65, "a,b"]
)
def test_what_cannot_name_a_file_is_refused(language):
    for pair, flag in (((language, "de"), "--source-lang"), (("de", language), "--target-lang")):
        with pytest.raises(KDPluginError, match=f"{flag} .*cannot be part of a file's name. Remedy") as error:
            check_languages(*pair)
        assert "\0" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("language", ["scores", "jsonl", "json", "None", "SCORES"])
def test_names_that_other_files_have_are_refused(language):
    with pytest.raises(KDPluginError, match="x.pt: its source language .*Remedy"):
        check_languages(language, "de", where="x.pt")


def test_two_sides_of_one_name_are_refused_where_text_is_named_by_them():
    for pair in (("de", "de"), ("de", "DE")):
        with pytest.raises(KDPluginError, match="is also the source language"):
            check_languages(*pair)
        check_languages(*pair, distinct=False)
    for codes in FAMILIES.values():
        for code in codes.split():
            check_languages("eo", code)
    check_languages(None, None)


VERBS = [
    ["decode", "--input", "none", "--path", "none.pt", "--output", "out"],
    ["import", "none.tsv", "--output", "out"],
    ["score", "none", "--path", "none.pt", "--output", "out"],
    ["cache", "none", "--teacher-path", "none.pt", "--cache-dir", "out"],
    ["evaluate", "--model", "a=none.pt", "--test", "t=none,none", "--output", "out"],
    ["init", "none.pt", "--output", "out/student.pt"],
    ["export", "none.pt", "--output", "out", "--format", "fairseq"],
]


@pytest.mark.parametrize("verb", VERBS, ids=[verb[0] for verb in VERBS])
@pytest.mark.parametrize("source, target", [("../x", "de"), ("en", "a/b"), ("de", "de"), ("", "de"), ("en", "scores")])
def test_every_verb_refuses_impossible_languages_first(verb, source, target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, *verb, f"--source-lang={source}", f"--target-lang={target}")
    assert "-lang" in error and list(tmp_path.iterdir()) == []


def test_a_checkpoints_own_languages_are_looked_at_before_its_dictionaries_are(tmp_path):
    write_dictionaries(tmp_path, WORDS)
    make_checkpoint(tmp_path / "1.pt", tmp_path, *LANGS, *MODEL)
    for flags, name in ((("../x", None), "source"), ((None, "a b"), "target")):
        with pytest.raises(KDPluginError, match=f"1.pt: its {name} language"):
            open_checkpoint(str(tmp_path / "1.pt"), {}, *flags)


def test_a_folder_of_translations_of_impossible_languages_is_refused(tmp_path, capsys):
    Writer(tmp_path / "in", {}, ["en", "../x"], 0).finish()
    with pytest.raises(KDPluginError, match="manifest.json: its target language '../x'"):
        Translations(tmp_path / "in")
    assert main(["filter", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--text", str(tmp_path / "x")]) == 1
