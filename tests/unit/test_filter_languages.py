# ruff: noqa: E501  wide characters count twice
"""`kd-plugin filter` in other languages: honest sentences stay, at the defaults, and what goes is said."""

import argparse

import pytest

from kd_plugin.cli import filter as cli_filter
from kd_plugin.corpus.hypotheses import Hypothesis, Record
from kd_plugin.corpus.translations import Writer
from kd_plugin.curate import filter as filtering
from tests.unit.translation_folders import record, refusal, run_verb, texts_by_line, write_folder

ENGLISH = [
    "Hi!",
    "Congratulations!",
    "I love you.",
    "Who is that?",
    "Tomorrow we are going to Beijing to visit old friends.",
    "The noodles of this restaurant are cheap and good, aren't they?",
    "It rained all day yesterday, so I did not go out.",
    "In 2019 the company sold 1,234 cars for $20 million.",
    "Two young boys are playing football in a park while their father reads a newspaper on a bench.",
    "The European Parliament adopted the resolution on the protection of personal data by a large majority.",
    "Haha, that is really funny!",
    "No, no, no!",
]
HONEST = {
    "zh": [
        "你好！", "恭喜！", "我爱你。", "那是谁？", "明天我们去北京看望老朋友。", "这家餐馆的面条又便宜又好吃，不是吗？",
        "昨天下了一整天的雨，所以我没有出门。", "２０１９年该公司以2000万美元售出了1234辆汽车。",
        "两个小男孩在公园里踢足球，他们的父亲坐在长椅上看报纸。", "欧洲议会以绝对多数通过了关于保护个人数据的决议。",
        "哈哈哈，真好笑！", "不，不，不！",
    ],
    "ja": [
        "こんにちは！", "おめでとうございます！", "愛しています。", "あの人は誰ですか？",
        "明日、私たちは昔の友達に会いに北京へ行きます。", "このレストランの麺は安くておいしいですよね？",
        "昨日は一日中雨が降っていたので、出かけませんでした。", "2019年、同社は1,234台の車を2,000万ドルで販売した。",
        "公園で二人の少年がサッカーをしていて、父親はベンチで新聞を読んでいる。",
        "欧州議会は個人データの保護に関する決議を圧倒的多数で採択した。", "ハハハ、本当に面白い！", "いや、いや、いや！",
    ],
    "th": [
        "สวัสดี!", "ขอแสดงความยินดีด้วย!", "ฉันรักคุณ", "นั่นใคร", "พรุ่งนี้เราจะไปเยี่ยมเพื่อนเก่าที่ปักกิ่ง",
        "ก๋วยเตี๋ยวร้านนี้ทั้งถูกทั้งอร่อยใช่ไหม", "เมื่อวานฝนตกทั้งวัน ฉันเลยไม่ได้ออกไปข้างนอก",
        "ในปี ๒๕๖๒ บริษัทขายรถยนต์ได้ 1,234 คันเป็นเงิน 20 ล้านดอลลาร์",
        "เด็กผู้ชายสองคนกำลังเล่นฟุตบอลในสวนสาธารณะ ขณะที่พ่อของพวกเขานั่งอ่านหนังสือพิมพ์อยู่บนม้านั่ง",
        "รัฐสภายุโรปลงมติรับรองมติว่าด้วยการคุ้มครองข้อมูลส่วนบุคคลด้วยเสียงข้างมาก", "ฮ่าๆ ตลกจริงๆ", "ไม่ ไม่ ไม่!",
    ],
    "ar": [
        "مرحبا!", "تهانينا!", "أحبك.", "من هذا؟", "غدا سنذهب إلى بكين لزيارة أصدقاء قدامى.",
        "معكرونة هذا المطعم رخيصة ولذيذة، أليس كذلك؟", "هطل المطر طوال يوم أمس، لذلك لم أخرج.",
        "في عام ٢٠١٩ باعت الشركة ١٬٢٣٤ سيارة مقابل ٢٠ مليون دولار.",
        "يلعب صبيان صغيران كرة القدم في حديقة بينما يقرأ والدهما صحيفة على مقعد.",
        "اعتمد البرلمان الأوروبي القرار المتعلق بحماية البيانات الشخصية بأغلبية كبيرة.", "هاها، هذا مضحك حقا!", "لا، لا، لا!",
    ],
    "ru": [
        "Привет!", "Поздравляю!", "Я тебя люблю.", "Кто это?", "Завтра мы едем в Пекин навестить старых друзей.",
        "Лапша в этом ресторане дешёвая и вкусная, правда?", "Вчера весь день шёл дождь, поэтому я не выходил.",
        "В 2019 году компания продала 1234 автомобиля на 20 миллионов долларов.",
        "Два мальчика играют в парке в футбол, а их отец читает на скамейке газету.",
        "Европейский парламент подавляющим большинством принял резолюцию о защите персональных данных.",
        "Ха-ха, это правда смешно!", "Нет, нет, нет!",
    ],
    "de": [
        "Hallo!", "Herzlichen Glückwunsch!", "Ich liebe dich.", "Wer ist das?",
        "Morgen fahren wir nach Peking und besuchen alte Freunde.",
        "Die Nudeln dieses Restaurants sind billig und gut, nicht wahr?",
        "Gestern hat es den ganzen Tag geregnet, deshalb bin ich nicht ausgegangen.",
        "2019 verkaufte das Unternehmen 1.234 Autos für 20 Millionen Dollar.",
        "Zwei kleine Jungen spielen in einem Park Fußball, während ihr Vater auf einer Bank Zeitung liest.",
        "Das Europäische Parlament nahm die Datenschutzentschließung mit großer Mehrheit an.",
        "Haha, das ist wirklich lustig!", "Nein, nein, nein!",
    ],
    "km": [
        "សួស្តី!", "អបអរសាទរ!", "ខ្ញុំស្រឡាញ់អ្នក។", "នោះជានរណា?", "ថ្ងៃស្អែកយើងនឹងទៅប៉េកាំងដើម្បីសួរសុខទុក្ខមិត្តចាស់។",
    ],
    "my": ["မင်္ဂလာပါ!", "ဂုဏ်ယူပါတယ်!", "ငါမင်းကိုချစ်တယ်။", "အဲဒါဘယ်သူလဲ?"],
    "ko": ["안녕!", "축하합니다!", "사랑해요.", "저 사람은 누구예요?", "내일 우리는 옛 친구들을 만나러 베이징에 갑니다."],
    "hi": ["नमस्ते!", "बधाई हो!", "मैं तुमसे प्यार करता हूँ।", "वह कौन है?", "कल हम पुराने दोस्तों से मिलने बीजिंग जा रहे हैं।"],
}  # fmt: skip


def verdicts(pairs, languages, *flags):
    """The rules that drop, with what they drop."""
    parser = argparse.ArgumentParser()
    cli_filter.add_arguments(parser)
    args = parser.parse_args(["in", "--output", "out", *map(str, flags)])
    filtering.check(args)
    judge = filtering.Judge(args, languages)
    found = [(judge((source, [text]))[0], source, text) for source, text in pairs]
    return [row for row in found if row[0]]


@pytest.mark.parametrize("language", HONEST)
def test_honest_sentences_stay_at_the_defaults_in_both_directions(language):
    pairs = list(zip(ENGLISH, HONEST[language]))
    assert verdicts(pairs, ["en", language]) == []
    assert verdicts([pair[::-1] for pair in pairs], [language, "en"]) == []
    nllb = {"zh": "zho_Hans", "ja": "jpn_Jpan", "th": "tha_Thai", "km": "khm_Khmr", "my": "mya_Mymr"}.get(language)
    assert nllb is None or verdicts(pairs, ["eng_Latn", nllb]) == []


def test_honest_sentences_stay_between_languages_of_other_kinds():
    for one, other in (("zh", "ja"), ("zh", "ru"), ("ja", "th"), ("ko", "ja"), ("ar", "zh"), ("de", "km")):
        assert verdicts(list(zip(HONEST[one], HONEST[other])), [one, other]) == []


def test_digits_of_any_script_are_the_same_digits():
    assert (
        verdicts([("In 2019, 20 of them.", "２０１９年有20个。"), ("In 2019", "في ٢٠١٩")], ["en", "zh"], "--numbers")
        == []
    )


def test_a_japanese_text_is_japanese_to_the_last_character():
    pairs = [("We often drink coffee", "我々はよくコーヒーを飲みます")]
    scripts = ["--script", "cjk,hiragana,katakana", "--script-share", 1]
    assert verdicts(pairs, ["en", "ja"], *scripts) == []


@pytest.mark.parametrize(
    "text, rule",
    [
        ("我爱你我爱你我爱你我爱你我爱你我爱你", "repetition"),
        ("我喜欢去公园，我喜欢去公园，我喜欢去公园，我喜欢去公园。", "repetition"),
        ("好好好好好好好好", "repetition"),
        ("我们明天", "length_ratio"),
        (
            "我们明天去北京看望老朋友，然后去上海看电影、吃饭、喝茶、唱歌、跳舞、聊天、散步、购物、休息。" * 2,
            "length_ratio",
        ),
        ("", "length"),
        ("We are going to BEIJING to visit old friends with my mother today.", "copied_source"),
        ("，，，。。。！！！？？？——去北京看", "few_letters"),
    ],
)
def test_what_is_wrong_in_chinese_goes(text, rule):
    source = "We are going to Beijing to visit old friends with my mother today."
    assert [row[0] for row in verdicts([(source, text)], ["en", "zh"])] == [rule]


def test_a_loop_of_the_source_is_none_of_its_translation():
    loud = ("Woof, woof, woof, woof! said the dog to the cat", "狗对猫说：汪汪汪汪汪汪汪汪！")
    assert verdicts([loud], ["en", "zh"]) == [] and verdicts([loud[::-1]], ["zh", "en"]) == []
    assert [row[0] for row in verdicts([("The dog barked loudly at the cat", loud[1])], ["en", "zh"])] == ["repetition"]


def write(folder, code, pairs):
    writer = Writer(folder, {}, ["en", code], len(pairs))
    for i, (source, text) in enumerate(pairs):
        writer.add(Record([i], source, [Hypothesis(text)]))
    writer.finish()


def test_a_corpus_without_spaces_is_kept_and_by_words_it_is_refused(tmp_path, capsys):
    write(tmp_path / "in", "zh", list(zip(ENGLISH, HONEST["zh"])))
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "out")
    assert len(texts_by_line(tmp_path / "out")) == len(ENGLISH) and "warning" not in capsys.readouterr().err
    write(tmp_path / "coded", "tgt", list(zip(ENGLISH, HONEST["zh"]))[4:10])  # nobody says what it is
    error = refusal(capsys, "filter", tmp_path / "coded", "--output", tmp_path / "none", "--text", tmp_path / "x")
    assert "no translation is left, and nothing was written: length_ratio dropped 6 of 6" in error
    assert "--max-length-ratio, or --length-unit characters" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coded", "in", "out"]
    flags = ["--length-unit", "characters", "--max-length-ratio", 5]
    run_verb("filter", tmp_path / "coded", "--output", tmp_path / "mended", *flags)
    assert len(texts_by_line(tmp_path / "mended")) == 6


def test_a_rule_that_takes_more_than_half_is_said_with_what_mends_it(tmp_path, capsys):
    records = [record(i, f"a dog {i}", f"a dog {i}") for i in range(3)] + [record(3, "a cat", "eine Katze")]
    write_folder(tmp_path / "in", records)
    run_verb("filter", tmp_path / "in", "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert "warning: copied_source dropped 3 of 4 translations (75.0%)" in printed.err
    assert "--copied-source or --copy-overlap" in printed.err
    write_folder(tmp_path / "half", records[2:])
    run_verb("filter", tmp_path / "half", "--output", tmp_path / "out2")
    assert "warning" not in capsys.readouterr().err


def test_nothing_in_is_nothing_out_and_an_error(tmp_path, capsys):
    write_folder(tmp_path / "in", [record(0, "a")])
    for verb in (["filter"], ["select", "--by", "mbr"], ["select", "--by", "score"]):
        error = refusal(capsys, verb[0], tmp_path / "in", *verb[1:], "--output", tmp_path / "out")
        assert "contains no translation" in error and not (tmp_path / "out").exists()
