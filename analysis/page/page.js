"use strict";
// Fills the page from the data below it.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Light and dark: as the system has it, until the reader chooses.

const redraws = [];
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = dark ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
  for (const redraw of redraws) redraw();
}
let chosenTheme = null;
byId("theme").addEventListener("click", () => {
  chosenTheme = document.documentElement.dataset.theme !== "dark";
  setTheme(chosenTheme);
});
darkSystem.addEventListener("change", () => chosenTheme === null && setTheme(darkSystem.matches));
let beforePrint = false;
addEventListener("beforeprint", () => {
  document.querySelector("#what details").open = true;
  beforePrint = document.documentElement.dataset.theme === "dark";
  if (beforePrint) setTheme(false);
});
addEventListener("afterprint", () => beforePrint && setTheme(true));
setTheme(darkSystem.matches);

// What is under the pointer or in focus says what it is.

const tip = byId("tip");
function showTip(event) {
  const target = event.target.closest && event.target.closest("[data-tip]");
  if (!target) return hideTip();
  tip.textContent = target.dataset.tip;
  tip.hidden = false;
  const box = target.getBoundingClientRect(), own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(innerWidth - own.width - 4, box.left + box.width / 2 - own.width / 2))}px`;
  tip.style.top = `${box.top - own.height - 8 > 0 ? box.top - own.height - 8 : box.bottom + 8}px`;
}
function hideTip() { tip.hidden = true; }
document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Top: facts, warnings, verdict

byId("facts").textContent = data.what.facts.map(([label, text]) => `${label}: ${text}`).join("  \u00b7  ");
if (data.warnings.length) {
  byId("warnings").hidden = false;
  byId("warnings").append(...data.warnings.map((text) => make("p", { text })));
}
byId("verdict-title").textContent = data.verdict.lead;
byId("verdict-lines").append(...data.verdict.lines.map(({ policy, text }) =>
  make("li", {}, policy ? make("span", { class: "chip", colour: data.colours[policy] }) : null, policy ? make("strong", { text: policy }) : null, ` ${text}`)));

// Table

function drawTable() {
  const { header, rows, text_columns: texts, policy_column: policies } = data.table;
  const body = make("tbody");
  const cells = (row, previous) => {
    const block = !previous || row.cells.slice(0, policies).join("\0") !== previous.cells.slice(0, policies).join("\0");
    return make("tr", { class: [block ? "block" : "", row.policy === data.baseline ? "base" : ""].join(" ").trim() || null },
      ...row.cells.map((text, i) => {
        if (i !== policies) return make("td", { class: i < policies ? "text" : null, text });
        const name = row.run ? make("a", { href: `#${row.run}`, text }) : text;
        return make("th", { scope: "row", class: "text" }, make("span", { class: "chip", colour: data.colours[row.policy] }), name);
      }));
  };
  const fill = (ordered, blocks) => body.replaceChildren(...ordered.map((row, i) => cells(row, blocks ? ordered[i - 1] : row)));
  const titles = header.map((text, i) => make("th", { scope: "col", class: i < texts ? "text" : null, "aria-sort": "none" },
    make("button", { type: "button", text, on: { click: () => sortBy(i) } })));
  function sortBy(column) {
    const rising = titles[column].getAttribute("aria-sort") === "descending" || (titles[column].getAttribute("aria-sort") === "none" && column < texts);
    titles.forEach((title, i) => title.setAttribute("aria-sort", i === column ? (rising ? "ascending" : "descending") : "none"));
    const known = rows.filter((row) => row.sort[column] !== null), unknown = rows.filter((row) => row.sort[column] === null);
    known.sort((a, b) => {
      const [x, y] = [a.sort[column], b.sort[column]];
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return rising ? order : -order;
    });
    fill([...known, ...unknown], column < policies);
  }
  byId("numbers").append(make("thead", {}, make("tr", {}, ...titles)), body);
  byId("numbers").setAttribute("aria-label", "Every policy at every setting");
  fill(rows, true);
}
drawTable();
byId("notes").append(...data.notes.map((text) => make("li", { text })));
byId("csv").addEventListener("click", () => download("voltana.csv", data.csv));

// Curves and trade-off

const policyEntries = (names) => names.map((name) => [name, data.colours[name] || "var(--soft)"]);
if (data.curves) {
  byId("curves").hidden = false;
  const lines = new Map(data.curves.panels.flatMap((panel) => panel.lines.map((line) => [line.name, line.colour])));
  byId("curves-legend").append(...legend([...lines]));
  for (const panel of data.curves.panels)
    byId("curves-panels").append(make("h3", { text: panel.title }),
      make("div", { class: "trio" }, ...data.curves.rows.map((_, row) => curveChart(data.curves, panel, row))));
}
if (data.tradeoff) {
  byId("tradeoff").hidden = false;
  const names = [...new Set(data.tradeoff.panels.flatMap((panel) => panel.points.map((p) => p.name)))];
  byId("tradeoff-legend").append(...legend(policyEntries(names)));
  byId("tradeoff-panels").append(...data.tradeoff.panels.map((panel) => scatterChart(data.tradeoff, panel)));
  if (data.tradeoff.left_out) byId("tradeoff-panels").append(make("p", { class: "hint", text: `${data.tradeoff.left_out} more settings are in the table.` }));
}

// Timelines

/** Back from `packed` of the writer. */
function unpack(told, count) {
  if ("c" in told) return new Array(count).fill(told.c);
  const bytes = Uint8Array.from(atob(told.d), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const step = (told.hi - told.lo) / 65534;
  return Array.from({ length: count }, (_, i) => {
    const q = view.getUint16(2 * i, true);
    return q === 65535 ? null : told.lo + q * step;
  });
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const instanceColour = (instance, index) => `--${instance.phase === "prefill" ? "p" : "d"}${index % 4}`;
const DASHES = [undefined, [6, 3], [2, 2], [8, 3, 2, 3]];

function drawTimeline(run, place) {
  const { from, to, instances, left_out } = run.timeline;
  const count = data.buckets, step = (to - from) / count;
  const times = Array.from({ length: count }, (_, i) => from + (i + 0.5) * step);
  const perPhase = {};
  const shown = instances.map((instance) => {
    const index = (perPhase[instance.phase] = (perPhase[instance.phase] ?? -1) + 1);
    return { ...instance, colour: instanceColour(instance, index), dash: DASHES[index % 4] };
  });
  const plots = [];
  let zooming = false;
  const zoom = (low, high) => {
    const span = Math.max(high - low, 4 * step);
    low = Math.max(from, Math.min(low, to - span)); high = Math.min(to, low + span);
    zooming = true;
    for (const plot of plots) plot.setScale("x", { min: low, max: high });
    zooming = false;
  };
  const follow = (plot, key) => {
    if (key === "x" && !zooming && plots.length === data.quantities.length) zoom(plot.scales.x.min, plot.scales.x.max);
  };
  const move = (share, factor) => {
    const { min, max } = plots[0].scales.x, middle = (min + max) / 2 + share * (max - min), half = ((max - min) / 2) * factor;
    zoom(Math.max(from, middle - half), Math.min(to, middle + half));
  };
  const csv = () => {
    const lines = [["time_s", "instance", ...data.quantities.flatMap(([key]) => [`${key}_least`, `${key}_mean`, `${key}_most`])].join(",")];
    for (const instance of shown) {
      const columns = data.quantities.flatMap(([key]) => ["low", "mean", "high"].map((which) => unpack(instance.values[key][which], count)));
      times.forEach((time, i) => lines.push([time.toFixed(4), instance.name, ...columns.map((c) => (c[i] === null ? "" : +c[i].toPrecision(6)))].join(",")));
    }
    download(`timeline-${run.id}.csv`, lines.join("\n") + "\n");
  };
  const button = (text, label, click) => make("button", { type: "button", text, "aria-label": label, on: { click } });
  place.append(make("div", { class: "tools" },
    make("div", { class: "legend" }, ...shown.map((instance) => make("span", {}, make("svg", { viewBox: "0 0 26 12", "aria-hidden": "true" },
      make("path", { d: "M1,6H25", style: `stroke:var(${instance.colour});stroke-width:2.5;stroke-dasharray:${(instance.dash || []).join(" ") || "none"}` })), instance.name))),
    button("\u2212", "Zoom out", () => move(0, 2)), button("+", "Zoom in", () => move(0, 0.5)),
    button("\u2190", "Earlier", () => move(-0.5, 1)), button("\u2192", "Later", () => move(0.5, 1)),
    button("All", "Show the whole run", () => zoom(from, to)), button("CSV", "Download this timeline as CSV", csv)));
  if (left_out) place.append(make("p", { class: "hint", text: `${left_out} more instances are not drawn.` }));

  data.quantities.forEach(([key, title, unit], number) => {
    const columns = [times], series = [{}], bands = [];
    for (const instance of shown) {
      const colour = () => style(instance.colour);
      const told = ["high", "low", "mean"].map((which) => unpack(instance.values[key][which], count));
      const at = columns.length;
      columns.push(...told);
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      series.push({ ...edge }, { ...edge }, { label: instance.name, stroke: colour, width: 1.4, dash: instance.dash, points: { show: false } });
      bands.push({ series: [at, at + 1], fill: () => `color-mix(in srgb, ${style(instance.colour)} 20%, transparent)` });
    }
    const said = make("span", { class: "said", "aria-hidden": "true" });
    const holder = make("div", { class: "chart", role: "img", "aria-label": `${title} of every instance over time, ${unit}` },
      said, make("h4", { text: `${title} (${unit})` }));
    place.append(holder);
    const last = number === data.quantities.length - 1;
    const axis = { stroke: () => style("--soft"), grid: { stroke: () => style("--faint"), width: 1 }, ticks: { stroke: () => style("--line"), width: 1 }, font: "11px system-ui, sans-serif" };
    const plot = new uPlot({
      width: Math.max(320, place.clientWidth), height: last ? 138 : 112,
      scales: { x: { time: false, range: (_, low, high) => [low, high] }, y: { range: (_, low, high) => (key === "clock_mhz" ? around([low ?? 0, high ?? 1], 60) : [0, (high || 1) * 1.05]) } },
      legend: { show: false },
      cursor: { sync: { key: run.id, scales: ["x", null], filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } }, drag: { x: true, y: false }, points: { show: false } },
      series, bands,
      axes: [{ ...axis, size: last ? 30 : 8, values: last ? (_, at) => at.map((v) => `${told(v, 4)} s`) : () => [] },
        { ...axis, size: 58, values: (_, at) => at.map((v) => told(v, 4)) }],
      hooks: {
        setScale: [follow],
        setCursor: [(u) => {
          const i = u.cursor.idx;
          said.textContent = i === null || i === undefined ? "" :
            `${times[i].toFixed(1)} s:  ` + shown.map((instance, k) => `${instance.name} ${told(columns[3 * k + 3][i], 4)}`).join("   ");
        }],
      },
    }, columns, holder);
    plot.over.addEventListener("dblclick", () => zoom(from, to));
    plots.push(plot);
  });
  redraws.push(() => plots.forEach((plot) => plot.redraw(false, true)));
  new ResizeObserver(() => {
    if (place.clientWidth) for (const plot of plots) plot.setSize({ width: Math.max(320, place.clientWidth), height: plot.height });
  }).observe(place);
}

// Runs

function failuresOf(run) {
  const { failed, unfinished, servers, rows } = run.failures;
  const dead = servers.length ? `Servers that died: ${servers.join(", ")}. ` : "";
  if (!failed && !unfinished) return make("p", { class: "hint", text: `${dead}No request failed or was left unfinished.` });
  const header = ["request", "arrival s", "status", "input", "output", "prefill", "decode"];
  const first = rows.length < failed + unfinished ? `, the first ${rows.length} of them` : "";
  return make("div", {}, make("p", { text: `${dead}${failed} requests failed, ${unfinished} did not end${first}:` }),
    make("table", { class: "small" }, make("thead", {}, make("tr", {}, ...header.map((text) => make("th", { scope: "col", text })))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text) => make("td", { text })))))));
}

function drawRun(run, place) {
  if (run.starved.length) place.append(make("p", { class: "warning", text: `Starved: ${run.starved.join("; ")}. The numbers are the machine's, not the policy's.` }));
  if (run.timeline) {
    const charts = make("div", { class: "timeline" });
    place.append(make("h3", { text: "Timeline" }),
      make("p", { class: "hint", text: `Lines: means over 1/${data.buckets} of the run; shaded: least to most within it. Drag over a span to zoom all five, double-click for the whole run.` }), charts);
    drawTimeline(run, charts);
  }
  const reference = data.runs.find((other) => other.policy === data.baseline && other.setting === run.setting && other.id !== run.id);
  const colour = data.colours[run.policy];
  const kinds = [["ttft", "TTFT"], ["itl", "ITL, mean of a request"], ["e2e", "End to end"]].filter(([kind]) => run.distributions[kind]);
  place.append(make("h3", { text: "Latency" }));
  if (reference) place.append(make("p", { class: "hint", text: `Dashed: ${data.baseline} at the same setting.` }));
  place.append(make("div", { class: "trio" }, ...kinds.map(([kind, title]) => distributionChart(title, data.percent,
    { values: run.distributions[kind], colour },
    reference && reference.distributions[kind] ? { values: reference.distributions[kind], colour: data.colours[reference.policy] } : null,
    run.slo[kind] ?? null))));
  place.append(make("h3", { text: "Energy, clocks, decode" }));
  place.append(make("div", { class: "trio" },
    run.energy.length ? energyChart(run.energy, data.parts) : null,
    Object.keys(run.residency).length ? residencyChart(run.residency) : null,
    run.states ? statesChart(run.states) : null));
  if (Object.keys(run.residency).length) place.append(make("div", { class: "legend" }, ...Object.keys(run.residency).sort().reverse().map((phase) =>
    make("span", {}, make("span", { class: "chip plain", colour: `var(--${phase[0]}0)` }), `${phase} clocks`))));
  place.append(failuresOf(run), make("p", { class: "hint" }, "Record: ", make("code", { text: run.folder })));
}

function drawRuns() {
  const timelines = data.runs.filter((run) => run.timeline).length;
  byId("runs-hint").textContent = `${data.runs.length} of ${data.all_runs} runs${data.runs.length < data.all_runs ? ", the first seed of each" : ""}; ${timelines} with a timeline (voltana-report timelines=N details=N has more).`;
  const first = data.runs.find((run) => run.timeline && run.policy === data.verdict.best) || data.runs.find((run) => run.timeline) || data.runs[0];
  for (const run of data.runs) {
    const body = make("div");
    const about = [run.setting, run.seed === null ? "" : `seed ${run.seed}`, run.timeline ? "with timeline" : "", run.starved.length ? "starved" : "",
      run.failures.failed ? `${run.failures.failed} failed` : ""].filter(Boolean).join(", ");
    const block = make("details", { class: "run", id: run.id },
      make("summary", {}, make("span", { class: "name" }, make("span", { class: "chip", colour: data.colours[run.policy] }), run.policy), make("span", { class: "rest", text: about })), body);
    block.addEventListener("toggle", () => block.open && !body.firstChild && drawRun(run, body));
    byId("runs-list").append(block);
    if (run === first) block.open = true;
  }
}
drawRuns();

function openNamed() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
}
addEventListener("hashchange", openNamed);
openNamed();

// What was run

const pairs = (rows) => make("dl", {}, ...rows.flatMap(([label, text]) => [make("dt", { text: label }), make("dd", { text })]));
byId("what-body").append(
  make("h3", { text: "Shared by all runs" }), pairs([...data.what.facts, ...data.what.shared]),
  make("h3", { text: "Where they come from" }), pairs(data.what.origin));
if (data.what.commands.length) byId("what-body").append(make("h3", { text: "To make them again" }), ...data.what.commands.map((text) => make("pre", { text })));

for (const section of document.querySelectorAll("main section:not([hidden])")) {
  const title = { verdict: "Verdict", table: "Numbers", curves: "Curves", tradeoff: "Trade-off", runs: "Runs", what: "What was run" }[section.id];
  byId("sections").append(make("a", { href: `#${section.id}`, text: title }));
}
document.documentElement.dataset.drawn = "yes";
