{ // a block, since the libraries before it have taken most short names
// Colours are the style sheet's variables: the charts follow the reader's light or dark, and paper is white.
const ink = "var(--ink)", muted = "var(--muted)", rule = "var(--rule)";
const config = {
  background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
  title: { anchor: "start", color: ink, subtitleColor: muted },
  axis: { labelColor: muted, titleColor: muted, gridColor: "var(--grid)", domainColor: rule, tickColor: rule,
    labelLimit: 150, labelSeparation: 6, titleFontWeight: "normal" },
  legend: { orient: "top", labelColor: ink, titleColor: muted, symbolBaseStrokeColor: muted, symbolBaseFillColor: muted, symbolOpacity: 1, labelLimit: 240 },
  range: { category: [0, 1, 2, 3, 4, 5, 6].map((number) => `var(--c${number})`) },
  line: { color: ink }, rule: { color: ink }, text: { color: ink },
};
const options = { mode: "vega-lite", ast: true, actions: false, defaultStyle: false, renderer: "svg", config,
  tooltip: { disableDefaultStyle: true } };

for (const place of document.querySelectorAll(".chart")) {
  const spec = JSON.parse(place.querySelector("script").textContent), picture = place.querySelector("div");
  let drawn = 0;
  // also when a <details> opens: what is folded away has no width
  new ResizeObserver(() => requestAnimationFrame(() => {
    const width = place.clientWidth, columns = Math.min(spec.concat.length, Math.floor(width / 320) || 1);
    if (!width || width === drawn) return;
    drawn = width;
    const plot = Math.min(420, Math.floor(width / columns) - (spec.params ? 75 : 200));  // bars have names beside them
    config.legend.columns = Math.floor(width / 200) || 1;
    config.text.limit = plot * 0.35;
    config.legend.layout = { top: { direction: width < 640 ? "vertical" : "horizontal", anchor: "start" } };
    const concat = spec.concat.map((panel) => ({ ...panel, width: plot, height: panel.height || 200 }));
    vegaEmbed(picture, { ...spec, columns, concat }, options);
  })).observe(place);
}
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
}
