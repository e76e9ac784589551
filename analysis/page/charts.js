"use strict";
// Small charts as SVG: axes, lines with intervals, points that lead somewhere, distributions, bars.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; text stays text. */
function make(name, attributes = {}, ...children) {
  const svg = make.svgNames.has(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (key === "colour") node.style.setProperty("--c", value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
make.svgNames = new Set(["svg", "g", "line", "path", "circle", "rect", "text"]);

/** An anchor within an SVG. */
function svgLink(href, attributes, ...children) {
  const node = document.createElementNS(SVG, "a");
  node.setAttribute("href", href);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Round steps that cover low to high: 1, 2 or 5 times a power of ten. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= raw) || raw || 1;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

/** Ticks of a logarithmic axis: 1, 2, 5 in each decade, or decades alone where there are many. */
function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const n of decades > 2.2 ? [1] : [1, 2, 5]) {
      const at = n * 10 ** e;
      if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
    }
  return found;
}

/** A number for people: thin spaces between thousands, no more digits than tell something. */
function told(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en").replace(/,/g, "\u2009");
  return String(+value.toPrecision(digits));
}

/** The frame of a chart: its SVG, the scales x and y, and the box they fill. */
function frame({ width = 380, height = 230, x, y, label, left = 46, bottom = 36, top = 8, right = 12 }) {
  const box = { x0: left, x1: width - right, y0: top, y1: height - bottom };
  const along = (axis, from, to) => (value) => {
    const [low, high] = axis.range;
    const share = axis.log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low || 1);
    return from + share * (to - from);
  };
  const scale = { x: along(x, box.x0, box.x1), y: along(y, box.y1, box.y0) };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  for (const at of y.ticks || ticks(...y.range, 6)) {
    const py = scale.y(at);
    svg.append(make("line", { class: "grid", x1: box.x0, x2: box.x1, y1: py, y2: py }));
    svg.append(make("text", { x: box.x0 - 6, y: py + 4, "text-anchor": "end", text: (y.text || told)(at) }));
  }
  for (const at of x.ticks || (x.log ? logTicks(...x.range) : ticks(...x.range, 6))) {
    const px = scale.x(at);
    svg.append(make("line", { class: "axis", x1: px, x2: px, y1: box.y1, y2: box.y1 + 4 }));
    svg.append(make("text", { x: px, y: box.y1 + 16, "text-anchor": "middle", text: (x.text || told)(at) }));
  }
  svg.append(make("line", { class: "axis", x1: box.x0, x2: box.x1, y1: box.y1, y2: box.y1 }));
  svg.append(make("text", { x: (box.x0 + box.x1) / 2, y: height - 4, "text-anchor": "middle", text: x.label }));
  return { svg, scale, box };
}

const SHAPES = {
  circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
  square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  down: (x, y, r) => `M${x - r},${y - r * 0.8}h${2 * r}L${x},${y + r * 1.1}z`,
  up: (x, y, r) => `M${x - r},${y + r * 0.8}h${2 * r}L${x},${y - r * 1.1}z`,
  diamond: (x, y, r) => `M${x},${y - r * 1.25}l${r * 1.15},${r * 1.25}l${-r * 1.15},${r * 1.25}l${-r * 1.15},${-r * 1.25}z`,
  cross: (x, y, r) => `M${x - r},${y - r * 0.4}h${r * 0.6}v${-r * 0.6}h${r * 0.8}v${r * 0.6}h${r * 0.6}v${r * 0.8}h${-r * 0.6}v${r * 0.6}h${-r * 0.8}v${-r * 0.6}h${-r * 0.6}z`,
};
const SHAPE_NAMES = Object.keys(SHAPES);

/** The same shape for a name in every chart of the page, so that colour alone tells nothing. */
function shapeOf(name) {
  if (!shapeOf.known.has(name)) shapeOf.known.set(name, SHAPE_NAMES[shapeOf.known.size % SHAPE_NAMES.length]);
  return shapeOf.known.get(name);
}
shapeOf.known = new Map();

function mark(name, colour, x, y, { radius = 4, hollow = false } = {}) {
  return make("path", { class: hollow ? "mark hollow" : "mark", colour, d: SHAPES[shapeOf(name)](x, y, radius) });
}

/** A point that says what it is, and leads to a run if there is one told in detail. */
function point(tip, run, shape) {
  const about = { "data-tip": tip, "aria-label": tip.replace(/\n/g, ", ") };
  return run ? svgLink(`#${run}`, about, shape) : make("g", { ...about, tabindex: "0", role: "img" }, shape);
}

function legend(entries) {
  return entries.map(([name, colour]) =>
    make("span", {}, make("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" },
      make("path", { class: "tint", colour, d: "M1,6H25" }), mark(name, colour, 13, 6)), name));
}

/** Lines with intervals over an axis; `row` chooses one of the values of every point. */
function curveChart(curves, panel, row) {
  const lines = panel.lines.map((line) => ({ ...line, points: line.points.filter((p) => p.y[row]) })).filter((l) => l.points.length);
  const xs = lines.flatMap((line) => line.points.map((p) => p.x));
  const highest = Math.max(...lines.flatMap((line) => line.points.map((p) => p.y[row][2])), 0);
  const spec = curves.rows[row];
  const low = Math.min(...xs), high = Math.max(...xs), pad = (high - low) * 0.04 || 0.5;
  const words = curves.words.length ? curves.words.map((_, i) => i) : null;
  const { svg, scale } = frame({
    label: `${spec.label} over ${curves.x}, ${panel.title}`,
    x: { range: [low - pad, high + pad], label: curves.x, ticks: words, text: words ? (at) => curves.words[at] : told },
    y: { range: [0, spec.percent ? 100 : highest * 1.06 || 1], ticks: spec.percent ? [0, 25, 50, 75, 100] : null },
  });
  const place = (p, which) => `${scale.x(p.x).toFixed(1)},${scale.y(p.y[row][which]).toFixed(1)}`;
  for (const line of lines) {
    const spread = line.points.filter((p) => p.y[row][2] > p.y[row][1]);
    if (spread.length === line.points.length && spread.length > 1) {
      const there = line.points.map((p) => place(p, 2)), back = [...line.points].reverse().map((p) => place(p, 1));
      svg.append(make("path", { class: "band", colour: line.colour, d: `M${[...there, ...back].join("L")}z` }));
    } else for (const p of spread) svg.append(make("path", { class: "whisker", colour: line.colour, d: `M${place(p, 1)}L${place(p, 2)}` }));
  }
  for (const line of lines) svg.append(make("path", { class: "tint", colour: line.colour, d: `M${line.points.map((p) => place(p, 0)).join("L")}` }));
  for (const line of lines)
    for (const p of line.points) {
      const [mean, least, most] = p.y[row];
      const interval = most > least ? ` (${told(least)} to ${told(most)})` : "";
      const at = curves.words.length ? curves.words[p.x] : `${curves.x} ${told(p.x)}`;
      const tip = `${line.name}\n${at}\n${spec.label}: ${told(mean, 4)}${interval}`;
      svg.append(point(tip, p.run, mark(line.name, line.colour, scale.x(p.x), scale.y(mean), { radius: 3.4, hollow: p.starved })));
    }
  return make("figure", {}, make("figcaption", { text: spec.label }), svg);
}

/** Limits around values, so wide that a small step looks small. */
function around(values, least, most = Infinity) {
  let low = Math.min(...values), high = Math.max(...values);
  const widen = Math.max(0.08 * Math.max(high - low, least), (least - (high - low)) / 2);
  low -= widen; high += widen;
  if (high > most) { high = most + 1; low = Math.min(low, high - least); }
  return [low, high];
}

function scatterChart(tradeoff, panel) {
  const points = panel.points;
  const { svg, scale } = frame({
    width: 320, height: 250,
    label: `${tradeoff.y} over ${tradeoff.x}, ${panel.title}`,
    x: { range: around(points.flatMap((p) => p.x), 10), label: tradeoff.x },
    y: { range: around(points.flatMap((p) => p.y), 10, 100) },
  });
  const front = points.filter((p) => p.front).sort((a, b) => a.x[0] - b.x[0]);
  svg.append(make("path", { class: "front", d: `M${front.map((p) => `${scale.x(p.x[0])},${scale.y(p.y[0])}`).join("L")}` }));
  for (const p of points) {
    const [x, y] = [scale.x(p.x[0]), scale.y(p.y[0])];
    if (p.x[2] > p.x[1]) svg.append(make("path", { class: "whisker", colour: p.colour, d: `M${scale.x(p.x[1])},${y}H${scale.x(p.x[2])}` }));
    if (p.y[2] > p.y[1]) svg.append(make("path", { class: "whisker", colour: p.colour, d: `M${x},${scale.y(p.y[1])}V${scale.y(p.y[2])}` }));
  }
  for (const p of points) {
    const tip = `${p.name}${p.front ? ", on the front" : ""}\n${tradeoff.x}: ${told(p.x[0])}\n${tradeoff.y}: ${told(p.y[0], 4)}`;
    svg.append(point(tip, p.run, mark(p.name, p.colour, scale.x(p.x[0]), scale.y(p.y[0]), { radius: 5, hollow: p.starved })));
  }
  return make("figure", {}, make("figcaption", { text: panel.title }), svg);
}

/** The share of requests within a latency, this run strong and another pale, and the objective. */
function distributionChart(title, percent, own, other, objective) {
  const all = [...own.values, ...(other ? other.values : []), ...(objective ? [objective] : [])].filter((v) => v > 0);
  const low = Math.min(...all) * 0.9, high = Math.max(...all) * 1.1;
  const { svg, scale, box } = frame({
    height: 210, label: `${title}: share of requests within a latency`,
    x: { range: [low, high], log: true, label: "ms" },
    y: { range: [0, 100], ticks: [0, 25, 50, 75, 100], text: (at) => `${at} %` },
  });
  const line = (values) => `M${values.map((v, i) => [v, percent[i]]).filter(([v]) => v > 0).map(([v, p]) => `${scale.x(v).toFixed(1)},${scale.y(p).toFixed(1)}`).join("L")}`;
  if (objective) {
    const x = scale.x(objective), flip = x > (box.x0 + box.x1) / 2;
    svg.append(make("path", { class: "ref", d: `M${x},${box.y0}V${box.y1}` }));
    svg.append(make("text", { x: flip ? x - 4 : x + 4, y: box.y1 - 6, "text-anchor": flip ? "end" : "start", text: `objective ${told(objective)} ms` }));
  }
  if (other) svg.append(make("path", { class: "tint other", colour: other.colour, d: line(other.values) }));
  svg.append(make("path", { class: "tint", colour: own.colour, d: line(own.values) }));
  return make("figure", {}, make("figcaption", { text: title }), svg);
}

/** Shares of time at each clock as bars, a row of them per phase. */
function residencyChart(residency) {
  const phases = Object.entries(residency).sort(([a], [b]) => (a === "prefill" ? -1 : b === "prefill" ? 1 : 0));
  const clocks = phases.flatMap(([, shares]) => shares.map(([clock]) => clock));
  const distinct = [...new Set(clocks)].sort((a, b) => a - b);
  const gap = Math.min(...distinct.slice(1).map((c, i) => c - distinct[i]), 150);
  const low = distinct[0] - gap, high = distinct[distinct.length - 1] + gap;
  const most = Math.max(...phases.flatMap(([, shares]) => shares.map(([, share]) => share)));
  const { svg, scale, box } = frame({
    height: 260, label: "Share of time at each clock",
    x: { range: [low, high], label: "SM clock (MHz)", ticks: distinct.length <= 6 ? distinct : null },
    y: { range: [0, Math.min(1, most * 1.12)], text: (at) => `${told(100 * at)} %` },
  });
  const width = Math.max(3, Math.min(26, ((box.x1 - box.x0) * gap) / (high - low) / phases.length - 2));
  phases.forEach(([phase, shares], index) => {
    for (const [clock, share] of shares) {
      const x = scale.x(clock) + (index - phases.length / 2) * (width + 1), y = scale.y(share);
      const tip = `${phase}\n${told(clock, 4)} MHz: ${(100 * share).toFixed(1)} % of the time`;
      svg.append(make("g", { "data-tip": tip, "aria-label": tip.replace("\n", ", "), role: "img", tabindex: "0" },
        make("rect", { class: "bar", colour: `var(--${phase[0]}0)`, x, y, width, height: Math.max(0.5, box.y1 - y) })));
    }
  });
  return make("figure", {}, make("figcaption", { text: "Time at each clock" }), svg);
}

const PART_COLOURS = ["var(--floor)", "var(--static)", "var(--dynamic)", "var(--knee)"];

/** Energy of every instance, stacked by what it was for; and the same as a table. */
function energyChart(rows, parts) {
  const most = Math.max(...rows.map((row) => row.total || 0)) || 1;
  const height = 26 * rows.length + 40, width = 380, left = 78;
  const { svg, scale } = frame({
    width, height, left, label: "Energy of every instance by what it was for",
    x: { range: [0, most / 1e3], label: "kJ" }, y: { range: [0, 1], ticks: [] }, right: 44,
  });
  rows.forEach((row, index) => {
    const y = 10 + 26 * index;
    svg.append(make("text", { class: "label", x: left - 6, y: y + 12, "text-anchor": "end", text: row.name }));
    let from = 0;
    const pieces = row.parts ? row.parts.map((joules, i) => [parts[i], joules, PART_COLOURS[i]]) : [["energy", row.total || 0, "var(--floor)"]];
    for (const [part, joules, colour] of pieces) {
      const x = scale.x(from / 1e3), to = scale.x((from + Math.max(0, joules)) / 1e3);
      const tip = `${row.name}: ${part}\n${told(joules / 1e3)} kJ, ${((100 * joules) / (row.total || 1)).toFixed(1)} %`;
      svg.append(make("g", { "data-tip": tip, "aria-label": tip.replace("\n", ", "), role: "img", tabindex: "0" },
        make("rect", { class: "bar", colour, x, y, width: Math.max(0, to - x), height: 17 })));
      from += joules;
    }
    svg.append(make("text", { x: scale.x(from / 1e3) + 5, y: y + 12, text: row.total === null ? "not metered" : told(row.total / 1e3) }));
  });
  const known = rows.some((row) => row.parts);
  const sum = parts.map((_, i) => rows.reduce((total, row) => total + (row.parts ? row.parts[i] : 0), 0));
  const total = rows.reduce((all, row) => all + (row.total || 0), 0) || 1;
  const entries = parts.map((part, i) => make("span", {}, make("span", { class: "chip plain", colour: PART_COLOURS[i] }), `${part} ${Math.abs((100 * sum[i]) / total).toFixed(1)} %`));
  return make("figure", {}, make("figcaption", { text: "Energy by instance" }), svg, known ? make("div", { class: "legend" }, ...entries) : null);
}

/** Where decode was, in requests and KV tokens, and up to where each clock level is predicted to keep the objective. */
function statesChart(states) {
  const n = Math.max(...states.paths.flatMap((path) => path.n)) * 1.12 || 1;
  const kv = Math.max(...states.paths.flatMap((path) => path.kv)) * 1.2 || 1;
  const { svg, scale, box } = frame({
    height: 260, left: 56, label: "State space of decode: KV tokens over requests",
    x: { range: [0, n], label: "requests in the batch" }, y: { range: [0, kv] },
  });
  let dashed = false;
  for (const level of states.boundaries ? states.boundaries.levels : []) {
    const inside = level.n.map((size, i) => [size, level.kv[i]]).filter(([size, room]) => room !== null && size <= n);
    const shown = inside.filter(([, room]) => room <= kv);
    if (!shown.length) continue;
    dashed = true;
    const start = inside.findIndex(([, room]) => room <= kv);
    const drawn = inside.slice(Math.max(0, start - 1)).map(([size, room]) => [size, Math.min(room, kv)]);
    svg.append(make("path", { class: "ref", d: `M${drawn.map(([size, room]) => `${scale.x(size)},${scale.y(room)}`).join("L")}` }));
    const [size, room] = shown[0];
    svg.append(make("text", { class: "label", x: Math.min(scale.x(size) + 4, box.x1 - 60), y: scale.y(room) + 12, text: `${level.clock} MHz` }));
  }
  states.paths.forEach((path, index) => {
    const colour = `var(--d${index % 4})`;
    svg.append(make("path", { class: "path", colour, d: `M${path.n.map((size, i) => `${scale.x(size).toFixed(1)},${scale.y(path.kv[i]).toFixed(1)}`).join("L")}` }));
  });
  const entries = states.paths.map((path, i) => make("span", {}, make("span", { class: "chip plain", colour: `var(--d${i % 4})` }), path.name));
  const of = dashed ? `Dashed: up to there the ${states.boundaries.of.replace("_", " ")} predicts that clock to keep its budget.` : "";
  return make("figure", {}, make("figcaption", { text: "State space of decode" }), svg, make("div", { class: "legend" }, ...entries), of ? make("p", { class: "hint", text: of }) : null);
}
