"""What is given for plain text and is none is named, with the way to plain text; odd text stays text."""

import bz2
import gzip
import io
import lzma
import os
import threading
import zipfile
from pathlib import Path

import pytest

from kd_plugin.corpus.raw_text import TextLines, numbered_lines
from kd_plugin.errors import KDPluginError
from tests.unit.translation_folders import refusal, write_folder

LINES = "Ein Hund läuft.\nEine Katze schläft.\n"


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, LINES)
    return file.getvalue()


SGM = '<srcset setid="wmt14" srclang="any">\n<doc docid="1">\n<seg id="1">Hi</seg>\n'
FOREIGN = {
    "UTF-16": LINES.encode("utf-16"),
    "UTF-16LE": LINES.encode("utf-16-le"),
    "UTF-16BE": LINES.encode("utf-16-be"),
    "UTF-32": LINES.encode("utf-32"),
    "UTF-32LE": LINES.encode("utf-32-le"),
    "UTF-32BE": LINES.encode("utf-32-be"),
    "UTF-16LE, one line": "Ein Hund".encode("utf-16-le"),
    "bzip2": bz2.compress(LINES.encode()),
    "xz": lzma.compress(LINES.encode()),
    "zstd": b"\x28\xb5\x2f\xfd\x20\x05" + LINES.encode(),
    "a zip archive": zipped("test.en"),
    "an office document": zipped("[Content_Types].xml", "word/document.xml"),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj",
    "WMT": SGM.encode(),
    "WMT, refset": b"\xef\xbb\xbf \n" + SGM.replace("srcset", "refset").encode(),
    "WMT, xml": b'<?xml version="1.0"?>\n<!DOCTYPE mteval SYSTEM "x.dtd">\n' + SGM.encode(),
    "WMT, upper case": SGM.upper().encode(),
    "WMT, documents": b'<doc sysid="ref" docid="1">\n<p>\n',
    "TMX": b'<?xml version="1.0" encoding="utf-8"?>\n<tmx version="1.4">\n',
    "TMX, with a type": b'<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n',
    "XLIFF": b'<?xml version="1.0"?>\n<xliff version="1.2">\n',
    "OPUS": b'<?xml version="1.0"?>\n<cesDoc version="4">\n',
    "XML": b'<?xml version="1.0"?>\n<text>\n',
    "XML or the like, segments": b'<seg id="1">A man.</seg>\n<seg id="2">A dog.</seg>\n',
    "XML or the like, one segment": b'<seg id="1">A man.</seg>\n',
    "XML or the like, a root": b'<corpus><s id="1">A man.</s>\n<s id="2">A dog.</s>\n</corpus>\n',
    "XML or the like, over lines": b"<corpus>\r\n  <s>\r\n    A man.\r\n  </s>\r\n</corpus>\r\n",
    "XML or the like, a word a line": b'<text id="1">\n<s>\nA\nman\n.\n</s>\n<s>\nA\ndog\n',
    "XML or the like, one long line": b"<corpus>" + b'<s id="1">A <b>man</b>.</s>' * 900 + b"</corpus>\n",
    "XML or the like, a comment": b"<!-- a\nb -->\n<row>A man.</row>\n<row>A dog.</row>\n",
    "WMT, a comment": b"<!-- made -->\n<!-- by -->\n" + SGM.encode(),
    "HTML": b"<!DOCTYPE html>\n<html>\n",
    "TSV": b"Ein Hund\tA dog\nEine Katze\tA cat\n",
    "JSON": b'{"source": "a", "hypothesis": "b"}\n',
    "JSON, an array": b'[\n  {"source": "a"}\n]\n',
    "JSON, over lines": b'{\n  "source": "a"\n}\n',
    "JSON, strings": b'["A man.", "A dog."]\n',
    "JSON, strings over lines": b'[\n  "A man.",\n  "A dog."\n]\n',
    "JSON, many strings": b"[\n" + b'  "A man.",\n' * 900 + b'  "A dog."\n]\n',
    "JSON, many strings in one line": b'["A man."' + b', "A \\"dog\\"."' * 900 + b"]\n",
    "JSON, lists": b'["A man.", "Ein Mann."]\n["A dog.", "Ein Hund."]\n',
    "JSON, lists in a list": b'[["A man.", "Ein Mann."],\n["A dog.", "Ein Hund."]]\n',
    "CSV": b'"A man","Ein Mann"\r\n"A ""dog"", it runs","Ein Hund"\r\n',
    "CSV, names of columns": b'id;en;de\n1;"A man";"Ein Mann"\n2;"A dog";"Ein Hund"\n',
    "PO": b'# made\r\n\r\n#: a.c:3\r\nmsgid ""\r\nmsgstr ""\r\n"Language: de"\r\n',
    "PO, plural": b'msgctxt "a"\nmsgid "A man"\nmsgid_plural "Men"\nmsgstr[0] "Ein Mann"\n',
    "subtitles, from 0": b"0\n00:00:01,000 --> 00:00:02,000\nHi.\n",
    "subtitles, WebVTT": b"WEBVTT - made\nKind: captions\n\n00:01.000 --> 00:02.000\nHi.\n",
    "subtitles, without numbers": b"00:01.000 --> 00:02.000\nHi.\n",
    "subtitles": b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHi.\r\n",
    "fairseq-generate": b"S-0\tA dog\nT-0\tEin Hund\nH-0\t-0.3\tEin Hund\n",
}
TABLES = tuple(name for name in FOREIGN if name.split(",")[0] in "TSV CSV JSON PO subtitles fairseq-generate".split())
ODD = [
    "a < b\n<b>fett</b> & <i>schräg</i>\n",
    "<unk> ist ein Wort\n<s> auch\n",
    "<3 ist ein Herz\n",
    "<2de> A man.\n<2de> A <b>big</b> dog.\n<en> A cat. <eos>\n",
    "<b>Warnung</b>\n<i>Ein Hund</i>\n",
    "<title>Hunde</title>\nEin Hund läuft.\nEine Katze auch.\n",
    "<music>\n<laughter>\n",
    "<name>\n",
    "<p>Ein Hund</p>\n",
    "<!-- sagt man so\n<!-- Ein --> Hund\n",
    '["Ja", "nein"] sagte er\n[Musik]\n',
    '"Ja!"\n"Nein!"\n',
    '"Ja", sagte er\n"Nein", sagte sie\n',
    'Ja, nein\n"Ja","nein"\n',
    "# Hunde\r\n" * 99,
    'msgid "a" steht im Katalog\nund msgstr "b"\n',
    "WEBVTT ist ein Format\n\n00:01 --> 00:02\n",
    "0\n00:00:01\n",
    "<document> sagt er\n",
    "{sic} sagte er\n[Musik]\n[1] Siehe dort\n",
    "Ein Tab\there\nund hier keiner\n",
    "ein einziger\tTab\n",
    "12\n\n00:00\n",
    "mit\0Null\nund ohne\n",
    "\ufeffBOM\n",
    "PK ist eine Abkürzung\nBZh auch\n",
    "我们明天去北京。\n",
    "\n\n",
    "",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_by_what_they_hold(name, tmp_path):
    path = tmp_path / "test.en"
    path.write_bytes(FOREIGN[name])
    for read in (lambda: list(numbered_lines(path, "--test")), lambda: TextLines(path, "--test")):
        with pytest.raises(KDPluginError, match=f"--test .*test.en: is .*{name.split(',')[0]}.*. Remedy: ") as error:
            read()
    assert "not plain text" in str(error.value)
    if name in TABLES:
        list(numbered_lines(path, "import", table=True))
    else:
        with pytest.raises(KDPluginError, match="not plain text"):
            list(numbered_lines(path, "import", table=True))


@pytest.mark.parametrize("name", ["UTF-16LE", "TMX", "TSV", "a zip archive"])
def test_what_gzip_has_packed_is_looked_at_too(name, tmp_path):
    path = tmp_path / "test.en.gz"
    path.write_bytes(gzip.compress(FOREIGN[name]))
    with pytest.raises(KDPluginError, match=name):
        list(numbered_lines(path, "--test"))


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_text(text, tmp_path):
    path = tmp_path / "text"
    path.write_text(text, encoding="utf-8", newline="")
    expected = [line[1:] if line.startswith("\ufeff") else line for line in text.replace("\r\n", "\n").split("\n")[:-1]]
    assert [line for _, line in numbered_lines(path, "--test")] == expected
    lines = TextLines(path, "--input")
    assert [lines[i] for i in range(len(lines))] == expected


def test_gzip_is_known_by_its_content(tmp_path):
    path = tmp_path / "packed.en"
    path.write_bytes(gzip.compress(LINES.encode()))
    assert [line for _, line in numbered_lines(path, "--test")] == LINES.splitlines()
    with pytest.raises(KDPluginError, match="packed.en: is packed, .*gunzip"):
        TextLines(path, "--input")
    plain = tmp_path / "plain.gz"
    plain.write_text(LINES, encoding="utf-8")
    assert len(TextLines(plain, "--input")) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_whole(pack, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(pack((LINES * 9000).encode()),))
    writer.start()
    assert [line for _, line in numbered_lines(pipe, "--test")] == (LINES * 9000).splitlines()
    writer.join()


def test_every_flag_that_takes_text_refuses_markup_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("set.sgm").write_text(SGM)
    Path("model.pt").write_bytes(b"")
    Path("rows.tsv").write_text("a\tA\n")
    write_folder(tmp_path / "in", [])
    from tests.unit.translation_folders import record

    write_folder(tmp_path / "one", [record(0, "a", "A")])
    for flag, command in (
        ("--test", ["evaluate", "--model", "a=model.pt", "--test", "t=set.sgm,set.sgm"]),
        ("--reference", ["select", "one", "--by", "reference", "--reference", "set.sgm"]),
        ("--scores", ["filter", "one", "--scores", "set.sgm", "--best-scores-share", "0.5"]),
        ("--source", ["import", "rows.tsv", "-s", "en", "-t", "de", "--source", "set.sgm"]),
        ("import", ["import", "set.sgm", "--format", "tsv", "-s", "en", "-t", "de"]),
    ):
        assert f"{flag} set.sgm: is markup of a WMT test set" in refusal(capsys, *command, "--output", "out")
        assert not Path("out").exists()
