"""A report in a real browser, where one is installed: nothing throws, nothing is wider than a phone, names can be read.

Every number in here is invented.
"""

import argparse
import html
import json
import re
import shutil
import subprocess

import pytest

from kd_plugin.report import command as report
from tests.unit.test_report import evaluation

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on PATH")

NAMES = (
    "teacher (6+6, d512)",
    "student",
    "student, distilled",
    "a student with a name that goes on and on_and_on",
    "s4",
)

# The page in a frame as wide as a phone: a window of Chromium's cannot be made that narrow everywhere.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe id="frame" width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<pre id="result"></pre>
<script>
addEventListener("load", () => {{
  // what stands in a .scroll may be wider than it; a script of the page's own moves the readout
  const inner = document.getElementById("frame").contentDocument, width = {width};
  for (const part of inner.querySelectorAll("details")) part.open = true;
  const name = (node) => node.tagName + " " + node.textContent.slice(0, 60);
  const boxes = (what, within) =>
    [...within.querySelectorAll(what)].map((node) => [node, node.getBoundingClientRect()]);
  const wide = boxes("body *", inner).filter(([node, box]) => !node.closest(".scroll table, .readout")
    && (box.right > width + 0.5 || box.left < -0.5)).map(([node]) => name(node));
  const clipped = [], overlapping = [];
  for (const picture of inner.querySelectorAll("svg[role=img]")) {{
    const frame = picture.getBoundingClientRect(), texts = boxes("text", picture);
    texts.forEach(([node, box], index) => {{
      if (box.left < frame.left - 0.5 || box.right > frame.right + 0.5 || box.top < frame.top - 0.5
        || box.bottom > frame.bottom + 0.5) clipped.push(name(node));
      for (const [other, rest] of texts.slice(0, index))
        if (Math.min(box.right, rest.right) - Math.max(box.left, rest.left) > 0.5
          && Math.min(box.bottom, rest.bottom) - Math.max(box.top, rest.top) > 2.5)
          overlapping.push(name(node) + " / " + name(other));
    }});
  }}
  const chart = inner.querySelector("svg.curves"), box = chart.getBoundingClientRect();
  const place = {{ clientX: box.left + box.width * 0.6, clientY: box.top + 20 }};
  chart.dispatchEvent(new PointerEvent("pointermove", place));
  const readout = inner.querySelector(".readout");
  document.getElementById("result").textContent = JSON.stringify({{
    wide, clipped, overlapping, scroll: inner.documentElement.scrollWidth, readout: readout.textContent,
    shown: inner.defaultView.getComputedStyle(readout).visibility,
    paper: inner.defaultView.getComputedStyle(inner.body).backgroundColor,
  }});
}});
</script>"""


def log(path, factor, every=100):
    lines = []
    for update in range(every, 3001, every):
        loss = factor * (3 + 800 / update)
        lines.append(
            f"epoch 001:  {update} / 9999 loss={loss:.3f}, nll_loss={loss / 2:.3f}, num_updates={update}, lr=0.1"
        )
        if update % 500 == 0:
            terms = f"loss {loss:.3f} | nll_loss {loss / 2:.3f} | kd_loss {loss / 3:.3f} | agreement {10 * factor:.1f}"
            lines.append(f"epoch 001 | valid on 'valid' subset | {terms} | num_updates {update}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "evaluation.json").write_text(json.dumps(evaluation(NAMES)))
    logs = [f"plain={log(folder / 'a.log', 1.0)}", f"<script>throw 1</script>={log(folder / 'b.log', 0.8)}"]
    output = folder / "report.html"
    report.run(argparse.Namespace(evaluation=[str(folder)], log=logs, output=str(output), title="A report"))
    return output


@pytest.fixture(scope="module")
def dense_page(tmp_path_factory):
    """So many points that medians are drawn over them."""
    folder = tmp_path_factory.mktemp("dense")
    output = folder / "report.html"
    logs = [f"plain={log(folder / 'a.log', 1.0, every=5)}"]
    report.run(argparse.Namespace(evaluation=[], log=logs, output=str(output), title="A report"))
    return output


def browse(page, folder, *arguments):
    """Standard output; the browser's console has to stay empty."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_page_is_drawn_and_its_console_stays_empty(page, tmp_path):
    dom = browse(page, tmp_path, "--dump-dom")
    assert 'class="readout"' in dom  # which only the script makes
    assert "a student with a name that goes on" in dom


def measured(page, tmp_path, width, scheme="light"):
    """What the wrapper's script finds."""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        WRAPPER.format(width=width, page=html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8"
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dom = browse(wrapper, tmp_path, "--dump-dom", *dark)
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(found.group(1)))


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_or_overlaps(page, tmp_path, width, scheme):
    result = measured(page, tmp_path, width, scheme)
    assert result["wide"] == [] and result["scroll"] <= width
    assert result["clipped"] == []
    assert result["overlapping"] == []
    assert result["shown"] == "visible"
    assert re.fullmatch(r"update [\d,]+plain[\d.]+<script>throw 1</script>[\d.]+", result["readout"])
    if scheme == "light":
        assert result["paper"] == "rgb(255, 255, 255)"


def test_dense_curves_have_a_readout(dense_page, tmp_path):
    result = measured(dense_page, tmp_path, 1280)
    assert result["shown"] == "visible" and re.fullmatch(r"update [\d,]+plain[\d.]+", result["readout"])


def test_page_prints(page, tmp_path):
    printed = tmp_path / "report.pdf"
    browse(page, tmp_path, f"--print-to-pdf={printed}")
    assert printed.stat().st_size > 20_000
