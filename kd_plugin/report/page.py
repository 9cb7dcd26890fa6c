"""The page around a report: head, policy, style, script. It asks nothing of any network."""

import base64
import contextlib
import hashlib
from pathlib import Path
from typing import Dict

from kd_plugin.report.style import SCRIPT, STYLE
from kd_plugin.report.svg import escape

HEAD_BYTES = 1000  # of a page, with its mark


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def is_page_of(job: str, path: Path) -> bool:
    """Whether a file is a page that this job has written."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return not path.is_symlink() and _mark(job).encode() in file.read(HEAD_BYTES)
    return False


def _mark(job: str) -> str:
    return f'<meta name="kd-plugin-job" content="{job}">'


def page(title: str, body: str, job: str = "") -> bytes:
    """The file's bytes.

    Args:
        title: text
        body: HTML
        job: tells this page from others, when it is written again

    By its content security policy a browser loads nothing, and runs no script and applies no style but those two,
    whatever the names in the body are.
    """
    policy = (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    content = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{_mark(job)}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""
    return content.encode("utf-8")


def facts(rows: Dict[str, str]) -> str:
    """A list of names and values; those without a value are left out."""
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in rows.items() if v)
    return f'<dl class="facts">{items}</dl>' if items else ""
