"""The style sheet and the script of a report, as they stand in its page."""

from typing import Dict

# Okabe and Ito's colours, told apart with any colour vision; on white those of less than 3:1 contrast are darker here.
LIGHT: Dict[str, str] = {
    "paper": "#ffffff",
    "ink": "#1b1b1b",
    "muted": "#5c5c5c",
    "grid": "#e4e4e4",
    "rule": "#767676",
    "c0": "#0072b2",
    "c1": "#d55e00",
    "c2": "#007d5c",
    "c3": "#b3578a",
    "c4": "#1b1b1b",
    "c5": "#9a6a00",
    "c6": "#3f8fc2",
}
DARK: Dict[str, str] = {
    "paper": "#16181a",
    "ink": "#e6e6e3",
    "muted": "#a5a5a1",
    "grid": "#2f3336",
    "rule": "#85888a",
    "c0": "#56b4e9",
    "c1": "#ee7d3c",
    "c2": "#22bf93",
    "c3": "#dd9cc0",
    "c4": "#e6e6e3",
    "c5": "#e69f00",
    "c6": "#f0e442",
}


def _variables(colours: Dict[str, str]) -> str:
    return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"


_RULES = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, "Noto Serif", Georgia, serif;
  text-rendering: optimizeLegibility; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 600; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; font-weight: 600; margin: 3rem 0 .75rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
b { font-weight: 600; }
.muted { color: var(--muted); }
.caption, summary { margin: 2rem 0 .5rem; max-width: 46rem; font-size: .9375rem; line-height: 1.45; }
summary { cursor: pointer; }
dl.facts, dl.settings { margin: .25rem 0; font-size: .875rem; line-height: 1.45; }
dl.facts > div, dl.settings > div { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: 0 1rem; }
dl.settings > div { grid-template-columns: minmax(0, 12rem) minmax(0, 1fr); }
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; }
code, dl.settings dd { font: .8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { overflow-wrap: anywhere; }
.notes { margin: .5rem 0; padding: 0; max-width: 60rem; list-style: none; font-size: .8125rem; line-height: 1.45;
  color: var(--muted); overflow-wrap: anywhere; }
.legend, table, svg text, figcaption, .readout { font-family: system-ui, "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif; font-variant-ligatures: none; }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem 1.25rem; margin: .5rem 0 .75rem; padding: 0;
  list-style: none; font-size: .8125rem; }
.legend li { display: inline-flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; min-width: 0; }
.legends { display: flex; flex-wrap: wrap; gap: 0 3rem; }
.swatch { flex: none; }
.scroll { position: relative; overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .8125rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); }
th, td { padding: .25rem .5rem; text-align: right; font-weight: 400; vertical-align: baseline; }
thead th { color: var(--muted); white-space: nowrap; }
thead tr:last-child > * { border-bottom: 1px solid var(--rule); padding-bottom: .4rem; }
thead th.group { color: var(--ink); font-weight: 600; text-align: center; }
thead th:first-child, tbody th { text-align: left; padding-left: 0; padding-right: 1.25rem; }
tbody th { position: sticky; left: 0; background: var(--paper); min-width: 8rem;
  max-width: 22rem; overflow-wrap: anywhere; }
td.text, thead th.text { text-align: left; }
td.number { white-space: nowrap; }
td.first, th.group { padding-left: 1.5rem; }
.star { position: absolute; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr));
  gap: 1.1rem 1.25rem; }
.panels.main { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.panels.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem 2.5rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: .8125rem; line-height: 1.35; overflow-wrap: anywhere; }
svg { display: block; }
svg.curves, svg.scatter { width: 100%; height: auto; max-width: 34rem; }
svg text { fill: var(--ink); font-size: 11px; font-variant-numeric: tabular-nums lining-nums; }
svg .tick { fill: var(--muted); }
svg.scatter { max-width: 31rem; }
svg.scatter text { font-size: 12px; }
svg.scatter .axis-name { fill: var(--ink); }
svg .label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg .front-label { font-weight: 600; }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--rule); stroke-width: 1; }
.leader { stroke: var(--rule); stroke-width: .75; }
.whisker { stroke: var(--rule); stroke-width: 1; stroke-opacity: .65; }
.front { fill: none; stroke: var(--ink); stroke-width: 1; stroke-dasharray: 1 3; stroke-linecap: round; }
.line { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.line.raw { stroke-width: .5; stroke-opacity: .3; }
.bubble { fill-opacity: .14; stroke-width: 1; }
.bubble.on-front { stroke-width: 2; }
.bubble.plain { fill: var(--rule); stroke: var(--rule); }
.hover { stroke: var(--rule); stroke-width: 1; visibility: hidden; }
.readout { position: fixed; z-index: 1; visibility: hidden; left: 0; top: 0; max-width: 90vw; padding: .35rem .55rem;
  background: var(--paper); border: 1px solid var(--rule); font-size: .75rem; line-height: 1.4; pointer-events: none;
  font-variant-numeric: tabular-nums; }
.readout div { display: flex; align-items: center; gap: .45rem; }
.readout div span:last-child { margin-left: auto; padding-left: .75rem; }
@media (max-width: 30rem) {
  body { padding-top: 1.5rem; }
  dl.facts > div, dl.settings > div { grid-template-columns: minmax(0, 1fr); margin-bottom: .35rem; }
  tbody th { max-width: 11rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  .panels { grid-template-columns: repeat(3, 1fr); }
  .panels.main, .panels.wide { grid-template-columns: repeat(2, 1fr); }
  .readout { display: none; }
  h2, .caption, summary, .legend, .legends { break-after: avoid; }
}
"""

_SERIES = "".join(
    f".line.c{index}{{stroke:var(--c{index})}}.mark.c{index}{{fill:var(--c{index})}}"
    f".bubble.c{index}{{stroke:var(--c{index});fill:var(--c{index})}}"
    for index in range(sum(name[1:].isdigit() for name in LIGHT))
)

# Paper is white, whatever the screen is.
STYLE = (
    f"{_variables(LIGHT)}\n@media screen and (prefers-color-scheme: dark) {{ {_variables(DARK)} }}{_RULES}{_SERIES}\n"
)

# All it adds is a readout under the pointer; names and values enter the page as text, never as markup.
SCRIPT = """
"use strict";
(() => {
  const make = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const readout = document.createElement("div");
  readout.className = "readout";
  document.body.append(readout);
  const row = (name, value, swatch) => {
    const line = document.createElement("div");
    if (swatch) line.append(swatch.cloneNode(true));
    for (const text of [name, value]) line.append(Object.assign(document.createElement("span"), { textContent: text }));
    return line;
  };
  const place = (event) => {
    const size = readout.getBoundingClientRect();
    const left = event.clientX + 16 + size.width < innerWidth ? event.clientX + 16 : event.clientX - 16 - size.width;
    readout.style.left = Math.max(0, left) + "px";
    readout.style.top = Math.max(0, Math.min(event.clientY + 12, innerHeight - size.height)) + "px";
  };
  for (const chart of document.querySelectorAll("svg.curves")) {
    // as a description it keeps its id and its reader, and no longer covers the readout with a tooltip of its own
    const title = chart.querySelector("title");
    const spoken = make("desc");
    spoken.id = title.id;
    spoken.textContent = title.textContent;
    title.replaceWith(spoken);
    let curves = null;
    const read = () => [...chart.querySelectorAll("g.curve")].map((group) => ({
      name: group.dataset.name,
      swatch: [...chart.closest("details").querySelectorAll(".legend li")]
        .filter((item) => item.textContent === group.dataset.name).map((item) => item.firstElementChild)[0],
      points: [...group.querySelectorAll("polyline[data-points]")].flatMap((line) =>
        line.dataset.points.split(" ").map((text, index) => {
          const [update, value] = text.split(":");
          return { update: Number(update), value, x: line.points[index].x };
        })),
    }));
    const rule = make("line");
    rule.setAttribute("class", "hover");
    rule.setAttribute("y1", 8);
    rule.setAttribute("y2", 144);
    chart.append(rule);
    const nearest = (points, x) => points.reduce((a, b) => Math.abs(b.x - x) < Math.abs(a.x - x) ? b : a, points[0]);
    const show = (event) => {
      curves = curves || read();
      const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
      const all = curves.flatMap((curve) => curve.points);
      if (!all.length) return;
      const here = nearest(all, x);
      rule.setAttribute("x1", here.x);
      rule.setAttribute("x2", here.x);
      rule.style.visibility = "visible";
      const rows = [row("update " + here.update.toLocaleString("en"), "")];
      for (const curve of curves) {
        const point = curve.points.length && nearest(curve.points, here.x);
        if (point && Math.abs(point.x - here.x) < 6) rows.push(row(curve.name, point.value, curve.swatch));
      }
      readout.replaceChildren(...rows);
      readout.style.visibility = "visible";
      place(event);
    };
    const hide = () => { rule.style.visibility = readout.style.visibility = "hidden"; };
    chart.addEventListener("pointermove", show);
    chart.addEventListener("pointerdown", show);
    chart.addEventListener("pointerleave", hide);
  }
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
})();
"""
