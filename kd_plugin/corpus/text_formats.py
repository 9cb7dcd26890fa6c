"""Detects by its beginning what is not plain text: markup, tables, archives, documents and other encodings.

File names prove little and are ignored. Text that merely contains a `<`, a brace or a tab is text.
"""

import json
import re
from pathlib import Path
from typing import List, Optional, Tuple

from kd_plugin.errors import KDPluginError

GZIP = b"\x1f\x8b"
PLAIN = "plain text, one sentence per line"
_ECHO = f"{PLAIN}; sacrebleu -t wmt14 -l en-de --echo src (or ref) > FILE extracts it from WMT's sets"

# first bytes, description, remedy
_BINARY = (
    (b"\xfd7zXZ\x00", "packed by xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "packed by lz4", "unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x, then the file in it"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x, then the file in it"),
    (b"%PDF-", "PDF", f"{PLAIN} (pdftotext)"),
    (b"{\\rtf", "RTF", f"{PLAIN}; save it as such"),
    (b"\xd0\xcf\x11\xe0", "an office document", f"{PLAIN}; save it as such"),
    (b"PAR1", "Parquet", f"{PLAIN}; write its columns to files"),
    (b"SQLite format 3\x00", "an SQLite database", f"{PLAIN}; write its columns to files"),
    (b"\x80\x02", "a pickle", "plain text"),
)
_MARKUP = (
    (("tmx",), "TMX", f"{PLAIN}, in one file per language (mtdata and OpusTools read TMX)"),
    (("xliff",), "XLIFF", f"{PLAIN}, in one file per language (xliff2po and po2txt of the translate-toolkit)"),
    (("srcset", "refset", "tstset", "mteval", "dataset"), "markup of a WMT test set", _ECHO),
    (("cesdoc", "cesalign", "letsmt"), "OPUS XML", f"{PLAIN}: the corpus in Moses format, or opus_read"),
    (("html",), "HTML", PLAIN),
)
_BEGINS_AS_MARKUP = re.compile(
    rb"<(\?xml|!doctype|(srcset|refset|tstset|mteval|dataset|tmx|xliff|cesdoc|cesalign|letsmt|html|doc)[\s>])"
)
_COMMENTS = re.compile(rb"(<!--.*?-->\s*)+", re.DOTALL)
# Markup with any other name: lines that contain only tags, or begin with an opening and end with a closing tag. <2de>
# is not markup; inline tags, which may be all of a short sentence, prove nothing.
_TAG = (
    rb"</?(?!(?:a|abbr|b|big|bpt|br|code|del|em|ept|font|g|i|img|ins|it|kbd|mark|mrk|ph|q|ruby|small|span|strike|strong|sub|"
    rb"sup|tt|u|x)[\s/>])[a-z][\w:.-]*(?:\s[^<>]*)?>"
)
_ELEMENT = re.compile(rb"\s*%s(?:[^\t]*</[a-z][\w:.-]*>|(?:\s*%s)*)\s*" % (_TAG, _TAG))
_ATTRIBUTE = re.compile(rb"<[a-z][\w:.-]*\s[^<>]*=\s*[\"'\w]")
_NESTED = re.compile(rb"%s\s*\n\s*%s" % (_TAG, _TAG))
MOSTLY = 0.6  # of the lines: an element over three lines has tags in two
_TIMES = rb"(\d+:)?\d\d:\d\d[,.]\d{2,3}[ \t]*-->"
_SUBTITLES = re.compile(
    rb"WEBVTT(\r?\n|[ \t].*?^%s)|(\d+[ \t]*\r?\n)?%s|\[Script Info\]\r?\n|\{\d+\}\{\d+\}" % (_TIMES, _TIMES),
    re.DOTALL | re.MULTILINE,
)
_PO = re.compile(
    rb"((#.*|\r)?\n)*(msgctxt .*\n(\".*\n)*)?msgid \".*\n(\".*\n)*(msgid_plural \".*\n(\".*\n)*)?msgstr(\[0\])? \""
)
_QUOTED = rb'"(?:[^"]|"")*"'
_CSV = re.compile(rb"(?:[\d.]*[,;])*%s(?:[,;](?:%s|[\d.]*))*\s*" % (_QUOTED, _QUOTED))
_ARRAY = re.compile(rb"\[\s*(\[\s*)?\"(?:[^\"\\\n]|\\.)*\"\s*,\s*\"")
_GENERATED = re.compile(rb"[STHDPW]-\d+\t")


def check_plain(head: bytes, path: Path, flag: str, table: bool = False) -> None:
    """Refuses anything but UTF-8 text with one sentence per line.

    Args:
        head: the first bytes, preferably including a whole line
        table: whether columns and JSON are expected
    """
    found = _binary(head) or _other_encoding(head) or _markup(head) or (None if table else _rows(head))
    if found:
        what, remedy = found
        raise KDPluginError(f"{flag} {path}: is {what}, not plain text. Remedy: {remedy}")


def _other_encoding(head: bytes) -> Optional[Tuple[str, str]]:
    name = None
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        name = "UTF-32"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        name = "UTF-16"
    elif b"\0" in head and _wide_lines(head):
        big = head[0] == 0
        name = f"UTF-{32 if bytes(3) in head[:64] else 16}{'BE' if big else 'LE'}"
    return None if name is None else (f"text in {name}", f"iconv -f {name} -t UTF-8 FILE > NEW, then NEW")


def _wide_lines(head: bytes) -> bool:
    """Whether line feeds, if any, have a NUL beside them; a stray NUL in UTF-8 does not mean another encoding."""
    if b"\n" in head:
        return b"\n\0" in head or b"\0\n" in head
    return 3 * head.count(b"\0") >= len(head)


def _binary(head: bytes) -> Optional[Tuple[str, str]]:
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "packed by bzip2", "bunzip2"
    if head[257:262] == b"ustar":
        return "a tar archive", "tar -xf, then the file in it"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        office = b"[Content_Types].xml" in head or b"word/" in head or b"mimetype" in head
        if office:
            return "an office document", f"{PLAIN}; save it as such"
        return "a zip archive", "unzip, then the file in it"
    return next(((what, remedy) for magic, what, remedy in _BINARY if head.startswith(magic)), None)


def _text(head: bytes) -> bytes:
    return (head[3:] if head.startswith(b"\xef\xbb\xbf") else head).lstrip()


def _markup(head: bytes) -> Optional[Tuple[str, str]]:
    text = _text(head).lower()
    comments = _COMMENTS.match(text)
    text = text[comments.end() :] if comments else text
    if not _BEGINS_AS_MARKUP.match(text):
        return ("XML or the like", PLAIN) if _elements(text, len(head)) else None
    for names, what, remedy in _MARKUP:
        if any(re.search(rb"<(!doctype\s+)?" + name.encode() + rb"[\s>]", text) for name in names):
            return what, remedy
    return ("markup of a WMT test set", _ECHO) if text.startswith(b"<doc") else ("XML", PLAIN)


def _elements(text: bytes, read: int) -> bool:
    """Whether most of the first lines are markup; a single line, or two nested tags, count only with attributes."""
    lines = _lines(text, read) or re.findall(rb".*</[a-z][\w:.-]*>", text)[:1]
    if _NESTED.match(text) and _ATTRIBUTE.search(b"\n".join(lines[:2])):
        return True
    found = [line for line in lines if _ELEMENT.fullmatch(line)]
    if len(found) < MOSTLY * len(lines) or not any(b"</" in line for line in found):
        return False  # <music> and <laughter> have no closing tag
    return len(lines) > 1 or _ATTRIBUTE.search(lines[0]) is not None


def _rows(head: bytes) -> Optional[Tuple[str, str]]:
    """Tables and the like, which are text but not sentences."""
    text = _text(head)
    if _SUBTITLES.match(text):
        return "a file with subtitles", f"{PLAIN}, without numbers and times"
    if _PO.match(text):
        return "a gettext catalogue (PO)", f"{PLAIN}, in one file per language (po2txt of the translate-toolkit)"
    if _GENERATED.match(text):
        return "fairseq-generate's output", "its sentences: grep ^D- FILE | sort -V | cut -f 3"
    if _is_json(text, len(head)):
        return "JSON", f"{PLAIN}; kd-plugin import reads translations in JSON lines"
    lines = _lines(text, len(head))
    tabs = {line.count(b"\t") for line in lines}
    if len(lines) > 1 and len(tabs) == 1 and tabs != {0}:
        return "a table (TSV)", f"{PLAIN}: one column (cut -f 1); kd-plugin import reads translations in TSV"
    rows = lines if lines and _CSV.fullmatch(lines[0]) else lines[1:]  # the first line names columns
    columns = {len(re.findall(rb"[,;]", re.sub(_QUOTED, b"", line))) for line in lines}
    if len(rows) > 1 and len(columns) == 1 and columns != {0} and all(map(_CSV.fullmatch, rows)):
        return "a table (CSV)", f"{PLAIN}: one column, without quotes; kd-plugin import reads translations in TSV"
    return None


def _lines(text: bytes, read: int) -> List[bytes]:
    """The complete, non-empty lines."""
    lines = text.split(b"\n")
    return [line for line in (lines[:-1] if read >= 4096 else lines) if line.strip()]


def _is_json(text: bytes, read: int) -> bool:
    if re.match(rb"\[\s*\{\s*\"", text):
        return True
    if re.match(rb"\[[\s\[]*\"", text):
        lines = _lines(text, read)
        if not lines:  # one line longer than the head
            return _ARRAY.match(text) is not None
        whole_lines = b"".join(lines).rstrip()
        return any(_is_list(part) for part in (text, whole_lines.rstrip(b",") + b"]")) or all(map(_is_list, lines))
    if not text.startswith(b"{"):
        return False
    if re.match(rb"\{\s*\n\s*\"[^\"\n]*\"\s*:", text):  # an object over several lines
        return True
    try:
        return isinstance(json.loads(text.split(b"\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _is_list(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False
