"""Scores of languages without spaces: the numbers of sacreBLEU with the right tokenizer, wherever BLEU is computed."""

import json
import re
import shutil

import pytest
from sacrebleu.metrics import BLEU, TER

from kd_plugin import cli
from kd_plugin.corpus import languages
from kd_plugin.corpus.languages import bleu_tokenizer
from kd_plugin.corpus.translations import Writer
from kd_plugin.evaluation.scores import sacrebleu_scores
from tests.support import MODEL, make_checkpoint
from tests.unit.translation_folders import record, refusal, run_verb, texts_by_line

ZH = [
    "我们明天早上去北京看望老朋友。", "他每天晚上都在图书馆里读书。", "这家餐馆的面条又便宜又好吃。",
    "孩子们在公园里高兴地踢足球。", "昨天下了一整天的雨，所以我没有出门。",
]  # fmt: skip
NEAR = [line.replace("早上", "上午").replace("每天", "天天").replace("高兴地", "开心地") for line in ZH]
FAR = ["我们", "他每天", "好吃的面条", "踢足球的孩子", "下雨了"]
TH = ["พรุ่งนี้เราจะไปปักกิ่งด้วยกัน", "เขาอ่านหนังสืออยู่ในห้องสมุดทุกคืน"]


@pytest.fixture
def without_mecab(monkeypatch):
    monkeypatch.setattr(languages, "_works", lambda name: False)


def scores(texts, references, code, samples=0, **options):
    found = sacrebleu_scores([("a", texts)], references, None, samples, language=bleu_tokenizer(code), **options)
    return {score.metric: score for score in found["a"]}


@pytest.mark.parametrize("samples", [0, 20])
@pytest.mark.parametrize("code", ["zh", "zho_Hans", "cmn", "zh-TW", "yue_Hant"])
def test_chinese_is_cut_by_the_tokenizer_for_chinese(code, samples):
    found = scores(NEAR, ZH, code, samples)
    expected = BLEU(tokenize="zh").corpus_score(NEAR, [ZH]).score
    assert found["BLEU"].value == pytest.approx(expected) and expected > 70
    assert BLEU().corpus_score(NEAR, [ZH]).score < 35  # what it was
    assert (
        "|tok:zh|" in found["BLEU"].signature
        and f"tokenizer zh, because the target language is {code}" in found["BLEU"].note
    )
    ter = TER(normalized=True, asian_support=True)
    assert found["TER"].value == pytest.approx(ter.corpus_score(NEAR, [ZH]).score) and found["TER"].value < 20
    assert "norm:yes|punct:yes|asian:yes" in found["TER"].signature


def test_characters_where_sacrebleu_has_no_tokenizer(without_mecab):
    for code, texts in (("tha_Thai", TH), ("ja", ["明日、北京に行きます。"]), ("ko", ["내일 우리는 갑니다 ."])):
        shorter = [text[:-2] for text in texts]
        expected = BLEU(tokenize="char").corpus_score(shorter, [texts]).score
        found = scores(shorter, texts, code)
        assert found["BLEU"].value == pytest.approx(expected) and "tok:char" in found["BLEU"].signature
    assert scores(TH, TH, "th")["TER"].value is None and "no spaces" in scores(TH, TH, "th")["TER"].note
    assert [s.metric for s in sacrebleu_scores([("a", TH)], TH, None, 5, language=bleu_tokenizer("th"))["a"]] == [
        "BLEU", "chrF2", "TER",
    ]  # fmt: skip


def test_the_users_tokenizer_wins():
    found = scores(NEAR, ZH, "zh", tokenize="char")
    assert found["BLEU"].value == pytest.approx(BLEU(tokenize="char").corpus_score(NEAR, [ZH]).score)
    assert found["BLEU"].note == ""
    segmented = ["他 每天 读书"]
    assert scores(segmented, segmented, "th", tokenize="none")["TER"].value == 0.0


@pytest.mark.parametrize("code", ["zh_CN", "zho_Hans", "cmn_Hans"])
def test_select_takes_the_nearer_one_of_chinese(code, tmp_path, capsys):
    writer = Writer(tmp_path / "in", {}, ["en", code], 20)
    references = [f"{ZH[i % 5][:-1]}{i}。" for i in range(20)]
    for i, line in enumerate(references):
        writer.add(record(i, f"s{i}", FAR[i % 5], line.replace("我", "咱").replace("的", "得")[:-3] + "了。"))
    writer.finish()
    (tmp_path / "ref").write_text("".join(line + "\n" for line in references), encoding="utf-8")
    command = ["select", tmp_path / "in", "--by", "reference", "--reference", tmp_path / "ref", "--output"]
    run_verb(*command, tmp_path / "out")
    assert "tokenizer zh" in capsys.readouterr().err
    assert all(text.endswith("了。") and text not in FAR for [text] in texts_by_line(tmp_path / "out").values())
    identity = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["identity"]
    assert "|tok:zh|" in identity["metric"]
    run_verb(*command, tmp_path / "13a", "--tokenize", "13a")
    assert [text for [text] in texts_by_line(tmp_path / "13a").values()] == [FAR[i % 5] for i in range(20)]
    assert "--metric bleu" in refusal(capsys, *command, tmp_path / "chrf", "--metric", "chrf", "--tokenize", "zh")


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    """Folder with models en -> zho_Hans and en -> th, and a test set."""
    folder = tmp_path_factory.mktemp("chinese")
    for code, words in (("en", "a b c d"), ("zho_Hans", " ".join("".join(ZH))), ("th", " ".join("".join(TH)))):
        (folder / f"dict.{code}.txt").write_text("".join(f"{w} 1\n" for w in dict.fromkeys(words.split())), "utf-8")
        if code != "en":
            make_checkpoint(folder / f"{code}.pt", folder, "-s", "en", "-t", code, *MODEL)
    (folder / "test.en").write_text("a b c\nb c d\n")
    (folder / "test.zh").write_text("".join(line + "\n" for line in ZH[:2]), encoding="utf-8")
    return folder


def evaluate(folder, output, *flags, models=("zho_Hans.pt",)):
    named = [flag for path in models for flag in ("--model", f"{path.partition('.')[0]}={folder / path}")]
    test = ["--test", f"t={folder / 'test.en'},{folder / 'test.zh'}", "--bootstrap", "0", "--max-len-b", "8"]
    return cli.main(["evaluate", *named, *test, "--output", str(output), "--remove-bpe", "none", *map(str, flags)])


def test_evaluate_knows_the_target_language_and_says_how_it_is_cut(chinese, tmp_path, capsys):
    assert evaluate(chinese, tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    (model,) = content["models"]
    assert content["settings"]["tokenize"] == "zh" and "|tok:zh|" in model["scores"][0]["signature"]
    lines = (tmp_path / "out" / "translations" / "zho_Hans" / "t.txt").read_text(encoding="utf-8").splitlines()
    assert model["scores"][0]["value"] == pytest.approx(BLEU(tokenize="zh").corpus_score(lines, [ZH[:2]]).score)
    table = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "BLEU with sacreBLEU's tokenizer zh, because the target language is zho_Hans" in table
    assert "kd-plugin evaluate: BLEU with sacreBLEU's tokenizer zh" in capsys.readouterr().err
    assert evaluate(chinese, tmp_path / "char", "--tokenize", "char") == 0
    assert "tok:char" in (tmp_path / "char" / "evaluation.md").read_text(encoding="utf-8")


def test_models_of_two_languages_are_not_compared(chinese, tmp_path, capsys):
    assert evaluate(chinese, tmp_path / "out", models=("zho_Hans.pt", "th.pt")) == 1
    assert "--model th: translates into th, but zho_Hans into zho_Hans" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_code_that_the_letters_contradict_is_warned_of(chinese, tmp_path, capsys):
    folder = tmp_path / "models"
    shutil.copytree(chinese, folder)
    shutil.copy(folder / "dict.zho_Hans.txt", folder / "dict.de.txt")
    assert evaluate(folder, tmp_path / "out", "--target-lang", "de") == 0
    error = capsys.readouterr().err
    assert re.search(r"warning: the references look like 'zh'.* 'de': BLEU may be worthless.*--tokenize zh", error)
    assert "may be worthless" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


def test_export_says_its_models_languages_and_checks_by_them(chinese, tmp_path, capsys):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed")
    out = tmp_path / "ct2"
    command = ["export", chinese / "zho_Hans.pt", "--format", "ctranslate2", "--check", chinese / "test.en"]
    assert cli.main([*map(str, command), "--output", str(out), "--check-threshold", "0"]) == 0
    assert "|tok:zh|" in json.loads((out / "kd_plugin.json").read_text())["check"]["signature"]
    assert "|tok:zh|" in capsys.readouterr().out
    shutil.copytree(out, chinese / "small")
    assert evaluate(chinese, tmp_path / "out", models=("small",)) == 0  # nobody says it but its description
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert content["settings"]["tokenize"] == "zh"
    (chinese / "small" / "kd_plugin.json").unlink()
    assert evaluate(chinese, tmp_path / "unsaid", models=("small",)) == 0
    assert "no language given" in capsys.readouterr().err
