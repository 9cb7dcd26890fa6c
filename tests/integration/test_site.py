"""The documentation site: it builds strictly, opens from disk, fetches nothing, and fits a phone and a desktop."""

import html
import json
import os
import re
import subprocess
import sys

import pytest

from tests.integration.test_report_browser import BROWSER, browse
from tests.support import ROOT

pytest.importorskip("mkdocs", reason="pip install 'kd-plugin[docs]' (Python 3.9 or newer)")
pytest.importorskip("material", reason="pip install 'kd-plugin[docs]'")
pytestmark = pytest.mark.slow

PAGES = (
    "index.html",
    "choose.html",
    "get-started.html",
    "how-to/sequence-level.html",
    "reference/training-flags.html",
    "reference/file-formats.html",
    "results/published-format.html",
    "explained/losses.html",
    "explained/architecture.html",
    "troubleshooting.html",
)

# Each page in a frame as wide as a phone and as a desktop; what can be scrolled sideways by itself may be wider.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><body><iframe id="frame" height="900" style="border:0"></iframe>
<pre id="result"></pre>
<script>
const frame = document.getElementById("frame");
const load = (address) => new Promise((done) => {{ frame.onload = done; frame.src = address; }});
const wait = (time) => new Promise((done) => setTimeout(done, time));
(async () => {{
  const found = [];
  for (const width of [400, 1280]) for (const page of {pages}) {{
    frame.width = width;
    await load("{site}/" + page);
    await wait(100);
    const inner = frame.contentDocument;
    const wide = [...inner.querySelectorAll(".md-content *, .md-header *")]
      .filter((node) => !node.closest(".md-typeset__table, svg, math, .md-search"))
      .filter((node) => node.getBoundingClientRect().width && node.getBoundingClientRect().right > width + 0.5)
      .map((node) => node.tagName + " " + node.textContent.slice(0, 60));
    const view = inner.defaultView, picture = inner.querySelector("svg[role=img] text");
    found.push({{
      page, width, wide, scroll: inner.documentElement.scrollWidth, title: inner.querySelector("h1").textContent,
      paper: view.getComputedStyle(inner.body).backgroundColor,
      ink: picture && view.getComputedStyle(picture).fill,
    }});
  }}
  document.getElementById("result").textContent = JSON.stringify(found);
}})();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=str(ROOT), env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_fetched_from_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?([^\"'\s>]+)", text)
        loads += re.findall(r"<link\b(?=[^>]*stylesheet)[^>]*?\bhref=[\"']?([^\"'\s>]+)", text)
        assert loads and not [address for address in loads if re.match(r"(https?:)?//", address)], page


def test_generated_parts_and_formulas_are_there(site):
    flags = (site / "reference" / "training-flags.html").read_text(encoding="utf-8")
    assert "--kd-alpha" in flags and "--teacher-path" in flags and "<!-- generated" not in flags
    losses = (site / "explained" / "losses.html").read_text(encoding="utf-8")
    assert losses.count("<math") > 20 and "arithmatex" not in losses and "\\sum" not in losses
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "<svg role=" in home and "<style>svg" not in home  # that would be the whole page's
    assert "hellinger" in (site / "contributing.html").read_text(encoding="utf-8")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on PATH")
def test_search_works_from_disk(site, tmp_path):
    page = (site / "index.html").as_uri() + "?q=temperature"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--virtual-time-budget=15000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert re.search(r"\d+ matching documents", dom), dom[-2000:]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium on PATH")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_take_the_reader_s_colours(site, tmp_path, scheme):
    pages = PAGES if scheme == "light" else PAGES[:3]  # colours change no widths
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(WRAPPER.format(pages=json.dumps(pages), site=site.as_uri()), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dom = browse(
        wrapper, tmp_path, "--allow-file-access-from-files", "--virtual-time-budget=60000", "--dump-dom", *dark
    )
    found = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL).group(1)))
    assert len(found) == 2 * len(pages)
    for shown in found:
        assert shown["title"] and shown["wide"] == [] and shown["scroll"] <= shown["width"], shown
    papers, inks = {shown["paper"] for shown in found}, {shown["ink"] for shown in found if shown["ink"]}
    assert len(papers) == 1 and inks
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (papers.pop(), inks.pop())]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
