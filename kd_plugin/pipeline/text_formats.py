"""What is no plain text, told by how it begins: markup, tables, archives, documents and other encodings.

A name says little and is not asked. Text that merely holds a `<`, a brace or a tab is text.
"""

import json
import re
from pathlib import Path
from typing import List, Optional, Tuple

from kd_plugin.errors import KDPluginError

GZIP = b"\x1f\x8b"
PLAIN = "plain text, a sentence a line"
_ECHO = f"{PLAIN}; sacrebleu -t wmt14 -l en-de --echo src (or ref) > FILE makes it of WMT's sets"

# how it begins, what it is, what to do
_BINARY = (
    (b"\xfd7zXZ\x00", "packed by xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "packed by lz4", "unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x, and the file in it"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x, and the file in it"),
    (b"%PDF-", "PDF", f"{PLAIN} (pdftotext)"),
    (b"{\\rtf", "RTF", f"{PLAIN}; save it as such"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program", f"{PLAIN}; save it as such"),
    (b"PAR1", "Parquet", f"{PLAIN}; write its columns to files"),
    (b"SQLite format 3\x00", "an SQLite database", f"{PLAIN}; write its columns to files"),
    (b"\x80\x02", "a pickle", "plain text"),
)
_MARKUP = (
    (("tmx",), "TMX", f"{PLAIN}, in a file for each language (mtdata and OpusTools read TMX)"),
    (("xliff",), "XLIFF", f"{PLAIN}, in a file for each language (xliff2po and po2txt of the translate-toolkit)"),
    (("srcset", "refset", "tstset", "mteval", "dataset"), "markup of a WMT test set", _ECHO),
    (("cesdoc", "cesalign", "letsmt"), "XML of OPUS", f"{PLAIN}: the corpus in Moses' format, or opus_read"),
    (("html",), "HTML", PLAIN),
)
_BEGINS_AS_MARKUP = re.compile(
    rb"<(\?xml|!doctype|(srcset|refset|tstset|mteval|dataset|tmx|xliff|cesdoc|cesalign|letsmt|html|doc)[\s>])"
)
_SUBTITLES = re.compile(rb"WEBVTT\b|1\r?\n\d\d:\d\d:\d\d[,.]\d{3} -->")
_GENERATED = re.compile(rb"[STHDPW]-\d+\t")


def check_plain(head: bytes, path: Path, flag: str, table: bool = False) -> None:
    """Refuse what is no text in UTF-8 with a sentence a line.

    Args:
        head: the first bytes, at least a line of them where there are so many
        flag: that names the file, for errors
        table: columns and JSON are asked for

    Raises:
        KDPluginError: says what it is, and the way to plain text
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
    return None if name is None else (f"text in {name}", f"iconv -f {name} -t UTF-8 FILE > NEW, and NEW")


def _wide_lines(head: bytes) -> bool:
    """Whether line feeds, if there are any, have a NUL beside them; a stray NUL in UTF-8 is no other encoding."""
    if b"\n" in head:
        return b"\n\0" in head or b"\0\n" in head
    return 3 * head.count(b"\0") >= len(head)


def _binary(head: bytes) -> Optional[Tuple[str, str]]:
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return "packed by bzip2", "bunzip2"
    if head[257:262] == b"ustar":
        return "a tar archive", "tar -xf, and the file in it"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        office = b"[Content_Types].xml" in head or b"word/" in head or b"mimetype" in head
        if office:
            return "a document of an office program", f"{PLAIN}; save it as such"
        return "a zip archive", "unzip, and the file in it"
    return next(((what, remedy) for magic, what, remedy in _BINARY if head.startswith(magic)), None)


def _text(head: bytes) -> bytes:
    return (head[3:] if head.startswith(b"\xef\xbb\xbf") else head).lstrip()


def _markup(head: bytes) -> Optional[Tuple[str, str]]:
    text = _text(head).lower()
    if not _BEGINS_AS_MARKUP.match(text):
        return None
    for names, what, remedy in _MARKUP:
        if any(re.search(rb"<(!doctype\s+)?" + name.encode() + rb"[\s>]", text) for name in names):
            return what, remedy
    return ("markup of a WMT test set", _ECHO) if text.startswith(b"<doc") else ("XML", PLAIN)


def _rows(head: bytes) -> Optional[Tuple[str, str]]:
    """Tables and the like, which are text, but no sentences."""
    text = _text(head)
    if _SUBTITLES.match(text):
        return "a file of subtitles", f"{PLAIN}, without numbers and times"
    if _GENERATED.match(text):
        return "fairseq-generate's output", "its sentences: grep ^D- FILE | sort -V | cut -f 3"
    if _is_json(text):
        return "JSON", f"{PLAIN}; kd-plugin import reads translations in JSON lines"
    lines = _lines(text, len(head))
    tabs = {line.count(b"\t") for line in lines}
    if len(lines) > 1 and len(tabs) == 1 and tabs != {0}:
        return "a table (TSV)", f"{PLAIN}: one column (cut -f 1); kd-plugin import reads translations in TSV"
    return None


def _lines(text: bytes, read: int) -> List[bytes]:
    """Those that are whole, without empty ones."""
    lines = text.split(b"\n")
    return [line for line in (lines[:-1] if read >= 4096 else lines) if line.strip()]


def _is_json(text: bytes) -> bool:
    if re.match(rb"\[\s*\{\s*\"", text):
        return True
    if not text.startswith(b"{"):
        return False
    if re.match(rb"\{\s*\n\s*\"[^\"\n]*\"\s*:", text):  # an object over several lines
        return True
    try:
        return isinstance(json.loads(text.split(b"\n")[0]), dict)
    except (ValueError, RecursionError):
        return False
