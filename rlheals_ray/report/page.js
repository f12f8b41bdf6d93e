// Draws every figure at the width that is there, in the colours of the page; again when either changes.
"use strict";
(() => {
  const LEFT = 62, RIGHT = 16, TOP = 40, BOTTOM = 58;   // margins of a figure, pixels
  const BETWEEN = 66, BELOW = 96;                       // gaps between columns and rows of panels, pixels

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function place(layout, width) {
    const { panels, columns, narrowest, rows } = layout.meta;
    const full = Math.min(width, layout.meta.widest || width);
    let { height, labels = 0 } = layout.meta;
    const above = rows && labels > 0.45 * full;   // names of rows stand above them, where there is no room beside them
    if (above) { labels = 0; height += 14 * rows; }
    const left = Math.max(LEFT, 16 + labels), between = Math.max(BETWEEN, 28 + labels);
    if (above) {
      layout.yaxis.showticklabels = false;
      layout.annotations.push(...layout.yaxis.categoryarray.map((text) => ({
        text, x: 0, xref: "x domain", y: text, xanchor: "left", xshift: 4 - left, yshift: 12, showarrow: false,
        font: { size: 11 },
      })));
    }
    const right = layout.meta.right || (layout.yaxis2 && layout.yaxis2.overlaying ? LEFT : RIGHT);
    const across = Math.max(1, Math.min(columns, panels, Math.floor(full / narrowest)));
    const down = Math.ceil(panels / across);
    const inner = { width: full - left - right, height: height - TOP - BOTTOM };
    const tall = down * inner.height + (down - 1) * BELOW;
    const wide = (inner.width - (across - 1) * between) / across;
    for (let i = 0; i < panels; i++) {
      const suffix = i ? i + 1 : "", column = i % across, row = Math.floor(i / across);
      const x = column * (wide + between), y = row * (inner.height + BELOW);
      layout["xaxis" + suffix].domain = [x / inner.width, Math.min(1, (x + wide) / inner.width)];
      layout["yaxis" + suffix].domain = [Math.max(0, 1 - (y + inner.height) / tall), 1 - y / tall];
    }
    for (const note of layout.annotations || []) {
      if (note.name === "title") {
        note.xshift = -labels;
        const needed = 9 * note.text.replace(/<[^>]*>/g, "").length, room = wide + labels + right - 8;
        if (needed > room) note.font.size = Math.max(10, Math.floor(note.font.size * room / needed));
      }
      if (note.name === "label") note.visible = wide >= 380;   // the legend above says the same
      if (note.name === "gain" && wide / layout.xaxis.tickvals.length < 33) note.textangle = -90;
    }
    for (let i = 0; i < panels; i++) {
      const axis = layout["xaxis" + (i ? i + 1 : "")];
      if (axis.type === "category" && axis.tickfont && wide < 280) axis.tickfont = { size: 9 };
      const room = axis.tickvals && wide / axis.tickvals.length;
      if (room < 33) axis.tickfont = { size: 10 };
      if (room < 19) axis.ticktext = (axis.ticktext || axis.tickvals).map((text, j) => j % 2 ? "" : text);
    }
    layout.margin = { l: left, r: right, t: TOP, b: BOTTOM, pad: 0 };
    layout.width = full;
    layout.height = tall + TOP + BOTTOM;
  }

  function paint(layout) {
    layout.paper_bgcolor = layout.plot_bgcolor = colour("--ground");
    layout.font.color = colour("--ink");
    for (const [name, axis] of Object.entries(layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      axis.gridcolor = colour("--grid");
      axis.linecolor = colour("--quiet");
      axis.showline = name[0] === "x";
      if (axis.showgrid === undefined) axis.showgrid = name[0] === "y";
    }
    layout.hoverlabel = { bgcolor: colour("--raised"), font: { color: colour("--ink") } };
  }

  // The plot that the reader has chosen among a figure's views; the first where there is no choice.
  function chosen(div) {
    const choice = div.closest("figure").querySelector(".views input:checked");
    return JSON.parse(document.getElementById(div.id.replace("plot-", "data-") + "-" + (choice ? choice.value : 0)).textContent);
  }

  async function draw(div, width) {
    if (!div.clientWidth) return;   // folded away: drawn when it is opened
    const { data, layout } = chosen(div);
    place(layout, Math.floor(width || div.clientWidth));
    paint(layout);
    if (layout.coloraxis && layout.coloraxis.colorbar) {
      Object.assign(layout.coloraxis.colorbar, { thickness: 12, len: 1, outlinewidth: 0, xpad: 6 });
    }
    for (const trace of data) if (trace.error_x) trace.error_x.color = colour("--ink");
    await Plotly.react(div, data, layout, {
      displaylogo: false,
      modeBarButtons: [["toImage"]],
      toImageButtonOptions: { format: "svg", filename: document.title.split(":")[0] + "-" + div.id.slice(5) },
    });
  }

  const all = (width) => Promise.all([...document.querySelectorAll(".plot")].map((div) => draw(div, width)));
  let last = 0;
  const redraw = () => { if (innerWidth !== last) { last = innerWidth; all(); } };

  for (const input of document.querySelectorAll(".views input")) {
    input.addEventListener("change", () => draw(input.closest("figure").querySelector(".plot")));
  }
  for (const fold of document.querySelectorAll("details.fold")) {
    fold.addEventListener("toggle", () => { if (fold.open) draw(fold.querySelector(".plot")); });
  }
  addEventListener("resize", () => requestAnimationFrame(redraw));
  addEventListener("beforeprint", () => all(690));
  addEventListener("afterprint", () => all());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all());
  last = innerWidth;
  all().then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
