"""A report in a real browser, where one is installed: nothing throws, nothing is wider than a phone, charts answer.

Every number in here is invented.
"""

import argparse
import html
import json
import re
import shutil
import subprocess

import pytest

from kd_plugin.cli import report
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
const result = document.getElementById("result"), width = {width};
const inner = () => document.getElementById("frame").contentDocument;
const wait = (time) => new Promise((done) => setTimeout(done, time));
addEventListener("load", async () => {{
  for (const part of inner().querySelectorAll("details")) part.open = true;
  await wait(1500);
  const wide = [...inner().querySelectorAll("body *")].filter((node) => !node.closest(".scroll, .chart")
    && node.getBoundingClientRect().right > width + 0.5).map((node) => node.tagName + node.textContent.slice(0, 60));
  const curves = [...inner().querySelectorAll(".chart")].at(-2);  // of training, between two lines of the log
  const visible = () => [...curves.querySelectorAll(".mark-symbol:not(.role-legend-symbol) path")]
    .filter((node) => Number(node.getAttribute("opacity") ?? 1) > 0).length;
  const press = (node, names) => {{
    const box = node.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    for (const name of names) node.dispatchEvent(new MouseEvent(name, {{ bubbles: true, clientX: x, clientY: y }}));
  }};
  const before = visible();
  const name = curves.querySelector(".role-legend-label text"), click = ["mousedown", "mouseup", "click"];
  press(name, click);
  await wait(300);
  const hidden = visible();
  press(curves.querySelector(".role-legend-label text"), click);
  await wait(300);
  const points = [...curves.querySelectorAll(".mark-symbol:not(.role-legend-symbol) path")];
  press(points.at(-1), ["pointerover", "pointermove"]);
  await wait(300);
  const told = inner().getElementById("vg-tooltip-element");
  const zoomed = [];
  for (const chart of [inner().querySelector(".chart"), curves]) {{
    const axes = () => [...chart.querySelectorAll(".role-axis-label text")].map((node) => node.textContent).join();
    const mark = chart.querySelector(".mark-symbol:not(.role-legend-symbol) path"), old = axes();
    const box = mark.getBoundingClientRect();
    const turn = {{ bubbles: true, cancelable: true, clientX: box.left + 2, clientY: box.top + 2, deltaY: -400 }};
    mark.dispatchEvent(new WheelEvent("wheel", turn));
    await wait(300);
    zoomed.push(axes() !== old);
  }}
  result.textContent = JSON.stringify({{
    wide, zoomed, before, hidden, after: visible(), scroll: inner().documentElement.scrollWidth,
    charts: inner().querySelectorAll(".chart").length, drawn: inner().querySelectorAll(".chart svg").length,
    readout: told && told.textContent, shown: told && inner().defaultView.getComputedStyle(told).visibility,
    paper: inner().defaultView.getComputedStyle(inner().body).backgroundColor,
    line: inner().defaultView.getComputedStyle(inner().querySelector(".mark-line path")).stroke,
  }});
}});
</script>"""


def log(path, factor):
    lines = []
    for update in range(100, 3001, 100):
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        report.run(
            argparse.Namespace(
                evaluation=[str(folder)], log=logs, sweep=[], gap=[], times=None, output=str(output), title="A report"
            )
        )
    return output


def browse(page, folder, *arguments):
    """Standard output; the browser's console has to stay empty."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=6000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run([*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_page_is_drawn_and_its_console_stays_empty(page, tmp_path):
    dom = browse(page, tmp_path, "--dump-dom")
    assert dom.count("<svg") >= 4 and "mark-line" in dom  # which only the script makes
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
def test_charts_fit_can_be_asked_and_follow_the_reader(page, tmp_path, width, scheme):
    result = measured(page, tmp_path, width, scheme)
    assert result["wide"] == [] and result["scroll"] <= width
    assert result["drawn"] == result["charts"] >= 4
    assert result["zoomed"] == [True, True]  # the picture of quality and speed, and the curves
    assert 0 < result["hidden"] < result["before"] == result["after"]  # a name in the legend was pressed, and again
    assert result["shown"] == "visible" and "<script>throw 1</script>" in result["readout"]
    assert "update" in result["readout"] and "value" in result["readout"]
    expected = {"light": ["rgb(255, 255, 255)", "rgb(27, 27, 27)"], "dark": ["rgb(22, 24, 26)", "rgb(230, 230, 227)"]}
    assert [result["paper"], result["line"]] == expected[scheme]


def test_page_prints(page, tmp_path):
    printed = tmp_path / "report.pdf"
    browse(page, tmp_path, f"--print-to-pdf={printed}")
    assert printed.stat().st_size > 20_000
