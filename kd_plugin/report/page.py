"""The page of a report: templates, style and script in one file that asks nothing of any network."""

import base64
import contextlib
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict

from kd_plugin.errors import KDPluginError

try:
    import jinja2
    import vl_convert
    from markupsafe import Markup
except ImportError as error:
    raise KDPluginError(f"report: {error}. Remedy: pip install 'kd-plugin[report]'") from error

HEAD_BYTES = 1000  # of a page, with its mark
TEMPLATES = Path(__file__).parent / "templates"

# What HTML forbids, and what would let a name reorder the text around it
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def is_page_of(job: str, path: Path) -> bool:
    """Whether a file is a page that this job has written."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return not path.is_symlink() and f'content="{job}"'.encode() in file.read(HEAD_BYTES)
    return False


def page(job: str, **content: Any) -> bytes:
    """The file's bytes. job: tells this page from others, when it is written again; content: see page.html.

    The policy: a browser loads nothing, sends nothing, and runs and applies what has these two hashes, whatever the
    names in the page are. Vega would compile its expressions with `new Function`; its interpreter (`ast` in page.js)
    walks them instead, so that `unsafe-eval` stays forbidden. It styles through the DOM, which no policy restricts, so
    that `unsafe-inline` does too. The data of the charts are blocks of JSON, which no browser runs.
    """
    style, script = (TEMPLATES / "style.css").read_text(encoding="utf-8"), _script()
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(TEMPLATES)),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["json"] = _json
    rendered = environment.get_template("page.html").render(
        job=job, policy=Markup(policy), style=Markup(style), script=Markup(script), **content
    )
    return rendered.encode("utf-8")


@functools.lru_cache(maxsize=None)
def _script() -> str:
    """Vega, Vega-Lite and Vega-Embed with this page's own few lines, in one: some 900 kB."""
    return vl_convert.javascript_bundle((TEMPLATES / "page.js").read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _shown(value: Any) -> Any:
    """Text of files, without what cannot be shown; jinja2 escapes it."""
    return value if isinstance(value, Markup) else CONTROL.sub("\ufffd", str(value))


def _json(spec: Dict[str, Any]) -> Markup:
    """JSON that no name in it can close the script around."""
    text = CONTROL.sub("\ufffd", json.dumps(spec, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    return Markup(text.replace("<", "\\u003c"))
