"use strict";

/* ---- figures ---- */

const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const figure = (value) => round(value, value < 9.95 && value !== Math.round(value) ? 1 : 0);
const milliseconds = (seconds) => figure(seconds * 1000);
const MEBI = 2 ** 20;
const bytes = (value) => value >= 1024 * MEBI ? [round(value / (1024 * MEBI), 2), "GiB"] : [figure(value / MEBI), "MiB"];
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const orDash = (value, show) => value === null || value === undefined ? "–" : show(value);

function duration(seconds) {
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

/* A screen reader is not told of what has not changed, nor is the page laid out again. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/* ---- tiles ---- */

function latencyTile(name) {
  return {
    title: `Latency, ${name}`,
    show({ latency, slo_seconds }) {
      const value = latency[name];
      if (value === null) return { value: "–", note: "no requests" };
      const limit = `${milliseconds(slo_seconds)} ms`;
      // The objective is one for the 95th percentile.
      if (name !== "p95") return { value: milliseconds(value), unit: "ms", note: "last minute" };
      return value <= slo_seconds
        ? { value: milliseconds(value), unit: "ms", note: `within ${limit}`, level: "good" }
        : { value: milliseconds(value), unit: "ms", note: `over ${limit}`, level: "bad" };
    },
  };
}

const TILES = [
  ...["p50", "p95", "p99"].map(latencyTile),
  {
    title: "Throughput",
    show: (now) => ({
      value: orDash(now.requests_per_second, figure), unit: "requests/s",
      note: `${orDash(now.rows_per_second, figure)} rows/s`,
    }),
  },
  { title: "Queue", show: (now) => ({ value: figure(now.queue_rows), unit: "rows", note: `${now.in_flight} requests open` }) },
  { title: "Mean batch", show: (now) => ({ value: orDash(now.mean_batch_rows, figure), unit: "rows", note: "last minute" }) },
  {
    title: "Cache hits",
    show: (now) => now.cache_hit_rate === null
      ? { value: "–", note: "no look-ups" }
      : { value: figure(100 * now.cache_hit_rate), unit: "%", note: "last minute" },
  },
  {
    title: "Memory",
    show({ memory }) {
      if (memory.rss === null) return { value: "–" };
      const [value, unit] = bytes(memory.rss);
      return { value, unit, note: memory.device === null ? "of the process" : `device ${bytes(memory.device).join(" ")}` };
    },
  },
  { title: "CPU", show: (now) => ({ value: orDash(now.cpu_percent, (value) => round(value, 0)), unit: "%", note: "100 % is one core" }) },
  {
    title: "Failed",
    show: (now) => ({
      value: figure(now.failed + now.rejected), note: `${now.failed} errors, ${now.rejected} refused`,
      level: now.failed ? "bad" : undefined,
    }),
  },
];

for (const tile of TILES) {
  tile.value = element("span", {}, "–");
  tile.unit = element("span", { class: "unit" });
  tile.note = element("dd", { class: "note" });
  tile.box = element("div", { class: "tile" },
    element("dt", {}, tile.title), element("dd", { class: "value" }, tile.value, tile.unit), tile.note);
  byId("tiles").append(tile.box);
}

function showTiles(now) {
  for (const tile of TILES) {
    const { value, unit = "", note = "", level = "" } = tile.show(now);
    setText(tile.value, value);
    setText(tile.unit, value === "–" ? "" : unit);
    setText(tile.note, note);
    tile.box.dataset.level = level;
  }
}

/* ---- charts ---- */

const WINDOW = 300;
const COLUMNS = ["p50", "p95", "p99", "requests", "rows", "failed", "queue_rows", "batch_rows", "rss", "device"];
const columns = Object.fromEntries(["at", ...COLUMNS].map((name) => [name, []]));
let slo = 0.1;

/* Seconds that are there already are repeated by the next events; those that are missing become a gap. */
function remember(history, afresh) {
  if (afresh) for (const values of Object.values(columns)) values.length = 0;
  history.at.forEach((at, row) => {
    const newest = columns.at.at(-1) ?? at - 1;
    if (at <= newest) return;
    for (let missing = Math.max(newest + 1, at - WINDOW); missing < at; missing++) {
      columns.at.push(missing);
      for (const name of COLUMNS) columns[name].push(null);
    }
    columns.at.push(at);
    for (const name of COLUMNS) columns[name].push(history[name][row]);
  });
  for (const values of Object.values(columns)) values.splice(0, values.length - WINDOW);
}

const CHARTS = [
  {
    title: "Latency", unit: "ms", scale: 1000, least: () => slo * 1200, line: () => slo * 1000,
    series: [["p50", "p50", 1], ["p95", "p95", 2], ["p99", "p99", 3]],
  },
  { title: "Throughput", unit: "per second", series: [["requests", "requests", 2], ["rows", "rows", 4], ["failed", "failed or refused", 5]] },
  { title: "Queue", unit: "rows", series: [["queue_rows", "waiting", 2]] },
  { title: "Batch size", unit: "rows, mean", series: [["batch_rows", "batch", 4]], least: () => 8 },
  { title: "Memory", unit: "MiB", scale: 1 / MEBI, series: [["rss", "process", 2], ["device", "device", 4]], spanGaps: true },
];

for (const chart of CHARTS) {
  chart.shown = [];
  const legend = element("ul", { class: "legend" });
  for (const [column, label, colour] of chart.series) {
    const key = element("i", { "aria-hidden": "true" });
    key.style.color = `var(--series-${colour})`;
    const value = element("b", {}, "–");
    const item = element("li", {}, key, label, value);
    legend.append(item);
    chart.shown.push({ column, label, key, value, item });
  }
  if (chart.line) {
    chart.limit = element("b");
    legend.append(element("li", { class: "limit" }, element("i", { "aria-hidden": "true" }), "objective for p95", chart.limit));
  }
  // A slider is what a keyboard and a screen reader know how to move along the time of a chart.
  chart.plot = element("div", {
    class: "plot", tabindex: "0", role: "slider", "aria-label": `${chart.title}: seconds ago`,
    "aria-valuemin": -WINDOW, "aria-valuemax": 0, "aria-valuenow": 0,
  });
  byId("charts").append(element("div", { class: "chart" },
    element("div", { class: "chart-head" }, element("h3", {}, chart.title, element("span", {}, chart.unit)), legend),
    chart.plot));
  chart.plot.addEventListener("keydown", (event) => moveCursor(chart, event));
  chart.plot.addEventListener("blur", () => chart.drawn?.setCursor({ left: -10, top: -10 }));
  new ResizeObserver(() => chart.drawn?.setSize(sizeOf(chart))).observe(chart.plot);
}

const sizeOf = ({ plot }) => ({ width: plot.clientWidth, height: plot.clientHeight });
const dataOf = ({ series, scale = 1 }) => [
  columns.at, ...series.map(([column]) => columns[column].map((value) => value === null ? null : value * scale)),
];

/* The objective, as a dashed line that needs no series. */
function drawLimit(chart, { ctx, bbox, valToPos }, colour) {
  if (!chart.line) return;
  const y = Math.round(valToPos(chart.line(), "y", true));
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/* A canvas knows no variables of CSS, so a chart is made anew when the theme changes. */
function makeChart(chart) {
  chart.drawn?.destroy();
  const style = getComputedStyle(chart.plot);
  const axis = {
    stroke: style.color, font: "12px system-ui, sans-serif",
    grid: { stroke: style.borderTopColor, width: 1 }, ticks: { show: false },
  };
  chart.drawn = new uPlot({
    ...sizeOf(chart),
    padding: [8, 20, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: {
      x: { time: true, range: () => { const newest = columns.at.at(-1) ?? Date.now() / 1000; return [newest - WINDOW, newest]; } },
      y: { range: (_, low, high) => [0, Math.max(1.1 * (high ?? 0), chart.least?.() ?? 0, 1)] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 24, space: 50, incrs: [60, 120, 300], values: (_, ticks) => ticks.map((tick) => clock(tick).slice(0, 5)) },
      { ...axis, size: 52, values: (_, ticks) => ticks.map((tick) => tick >= 10000 ? `${figure(tick / 1000)}k` : figure(tick)) },
    ],
    series: [{}, ...chart.shown.map(({ key }) => ({
      stroke: getComputedStyle(key).color, width: 1.75, spanGaps: chart.spanGaps ?? false, points: { show: false },
    }))],
    hooks: { draw: [(plot) => drawLimit(chart, plot, style.color)], setCursor: [() => showLegend(chart)] },
  }, dataOf(chart), chart.plot);
}

/* The figures under the cursor, otherwise the newest. */
function showLegend(chart) {
  const row = chart.drawn.cursor.idx ?? columns.at.length - 1;
  if (row < 0) return;
  const said = [];
  if (chart.line) setText(chart.limit, figure(chart.line()));
  for (const { column, label, value, item } of chart.shown) {
    item.hidden = column === "device" && columns.device.every((each) => each === null);
    setText(value, orDash(columns[column][row], (each) => figure(each * (chart.scale ?? 1))));
    if (!item.hidden) said.push(`${label} ${value.textContent}`);
  }
  // One who is on a chart hears where the keys lead, and not each second that passes.
  if (document.activeElement === chart.plot && !chart.moved) return;
  chart.moved = false;
  chart.plot.setAttribute("aria-valuenow", columns.at[row] - columns.at.at(-1));
  chart.plot.setAttribute("aria-valuetext", `${clock(columns.at[row])}: ${said.join(", ")} ${chart.unit}`);
}

function moveCursor(chart, event) {
  const last = columns.at.length - 1;
  const at = chart.drawn?.cursor.idx ?? last;
  const to = {
    ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 30, PageUp: at + 30, Home: 0, End: last,
  }[event.key];
  if (event.key === "Escape") chart.drawn?.setCursor({ left: -10, top: -10 });
  if (to === undefined || !chart.drawn || last < 0) return;
  event.preventDefault();
  const row = Math.min(last, Math.max(0, to));
  chart.moved = true;
  chart.drawn.setCursor({ left: chart.drawn.valToPos(columns.at[row], "x"), top: 1 });
}

function showCharts() {
  for (const chart of CHARTS) {
    if (chart.drawn) chart.drawn.setData(dataOf(chart));
    else makeChart(chart);
    showLegend(chart);
  }
}

/* ---- errors and facts ---- */

let errorsShown = "";
function showErrors(errors) {
  const text = JSON.stringify(errors);
  if (text === errorsShown) return;
  errorsShown = text;
  byId("no-errors").hidden = errors.length > 0;
  byId("errors").hidden = errors.length === 0;
  byId("errors").tBodies[0].replaceChildren(...errors.map((error) => element("tr", {},
    element("td", {}, clock(error.at)),
    element("td", {}, error.code, element("small", {}, error.request_id)),
    element("td", {}, error.message))));
}

const factsShown = {};
function showFacts(id, facts) {
  const text = JSON.stringify(facts);
  if (text === factsShown[id]) return;
  factsShown[id] = text;
  byId(id).replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [
    element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, orDash(value, String)),
  ]));
}

const LEVELS = { ready: "good", loading: "warn", warming: "warn", draining: "warn", unhealthy: "bad" };
function showState(now) {
  setText(byId("state"), now.state);
  byId("state").hidden = false;
  byId("state").dataset.level = LEVELS[now.state] ?? "unknown";
  setText(byId("model-name"), now.model.name ?? "");
  document.title = `${now.state === "ready" ? "" : `${now.state} · `}domainclip · dashboard`;
}

function show(now, afresh) {
  slo = now.slo_seconds;
  remember(now.history, afresh);
  showState(now);
  showTiles(now);
  showCharts();
  showErrors(now.errors);
  showFacts("model", now.model);
  showFacts("hardware", { ...now.hardware, "up for": duration(now.uptime_seconds) });
}

/* ---- theme ---- */

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => document.documentElement.dataset.theme;
const isDark = () => chosen() ? chosen() === "dark" : systemDark.matches;

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
  for (const chart of CHARTS) if (chart.drawn) makeChart(chart);
}

/* Where a browser keeps nothing, the choice lasts as long as the page. */
function stored(action) {
  try { return action(localStorage); } catch { return null; }
}

const before = stored((storage) => storage.getItem("domainclip-theme"));
if (before === "light" || before === "dark") document.documentElement.dataset.theme = before;
byId("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  stored((storage) => storage.setItem("domainclip-theme", theme));
  showTheme();
});
systemDark.addEventListener("change", showTheme);
showTheme();

/* ---- connection ---- */

/* fetch in place of EventSource: that one cannot send an API key. The key is kept in this page alone. */
const SILENCE = 5000;
let key = "";

function showConnection(text, level) {
  setText(byId("connection"), text);
  byId("connection").dataset.level = level;
}

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

function askForKey(refused) {
  byId("key-form").hidden = false;
  setText(byId("key-refused"), refused ? "The service refused this key." : "");
  showConnection("API key needed", "warn");
  byId("key").focus();
  return new Promise((done) => byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = byId("key").value;
    byId("key").value = "";
    byId("key-form").hidden = true;
    done();
  }, { once: true }));
}

function take(event) {
  const fields = Object.fromEntries(event.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
  try {
    if (fields.data) show(JSON.parse(fields.data), fields.event === "history");
  } catch (error) {
    reportError(error); // a fault of this page is no fault of the connection
  }
}

async function listen() {
  const stop = new AbortController();
  let silence = setTimeout(() => stop.abort(), SILENCE);
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await fetch("dashboard/events", { headers, signal: stop.signal, cache: "no-store" });
    if (response.status === 401 || response.status === 403) return await askForKey(Boolean(key));
    if (!response.ok) throw new Error((await response.json()).error?.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return showConnection("Reconnecting", "warn");
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), SILENCE);
      const events = (text + value).split("\n\n");
      text = events.pop();
      events.forEach(take);
      showConnection("Live", "good");
    }
  } finally {
    clearTimeout(silence);
  }
}

(async () => {
  for (let tries = 0; ; tries++) {
    const began = Date.now();
    try {
      await listen();
    } catch {
      showConnection("Reconnecting", "warn");
    }
    if (Date.now() - began > SILENCE) tries = 0;
    await wait(Math.min(8000, 500 * 2 ** tries));
  }
})();
