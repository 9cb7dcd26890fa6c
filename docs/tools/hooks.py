"""Hooks that mkdocs calls while it builds the site: generated references, formulas and pictures without a network."""

import html
import re
import sys
from pathlib import Path
from typing import Any, List

sys.path.insert(0, str(Path(__file__).parent))

import references  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
GENERATED = re.compile(r"<!-- generated: ([a-z-]+) -->.*?<!-- end -->", re.DOTALL)
INCLUDED = re.compile(r"<!-- include: (\w+\.md) -->")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
PICTURE = re.compile(r'<img alt="([^"]*)" src="([^"]*pictures/[\w-]+\.svg)"[^>]*/?>')


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated tables and files of the checkout where a page asks for them.

    `<!-- generated: commands --> … <!-- end -->`: what is between them is for readers of the repository.
    """
    markdown = INCLUDED.sub(lambda found: included(found.group(1)), markdown)
    return GENERATED.sub(lambda found: references.WRITERS[found.group(1)](), markdown)


def on_page_content(content: str, page: Any, config: Any, **_: Any) -> str:
    """Formulas become MathML, which browsers draw; pictures become part of the page, in its colours."""
    content = FORMULA.sub(lambda found: mathml(html.unescape(found.group(2)), found.group(1) == "div"), content)
    folder = Path(config["docs_dir"], page.file.src_uri).parent
    return PICTURE.sub(lambda found: inline_picture(folder / found.group(2), found.group(1)), content)


def included(name: str) -> str:
    """A file of the checkout without its title, with an empty line before each list, table and code block."""
    text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]
    lines: List[str] = []
    in_code = False
    for line in text.split("\n"):
        begins = line.startswith(("* ", "1. ", "| ")) or (line.startswith("```") and not in_code)
        if begins and not in_code and lines and not lines[-1].startswith(("* ", " ", "| ")):
            lines.append("")
        in_code ^= line.startswith("```")
        lines.append(line)
    return "\n".join(lines)


def mathml(formula: str, block: bool) -> str:
    from latex2mathml.converter import convert

    return convert(formula, display="block" if block else "inline")


def inline_picture(path: Path, text: str) -> str:
    picture = STYLE.sub("", path.resolve().read_text(encoding="utf-8"))  # it would be the whole page's
    return picture[picture.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)
