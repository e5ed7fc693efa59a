"use strict";

/* One chart over the steps of a training: lines of one or several runs, bands, stacked areas, level lines, a legend with
   the figures under the cursor, and the same figures as a table. */
(function (page) {
  const { element, setText, figure, rowAt, dashOf, drawMarkers, hatching, fade, swatch } = page;
  const ROWS = 300;
  const charts = new Set();

  class Chart {
    /* `panel`: {id, title, unit, note, log, zero, most, show(value)}; see panels.js. */
    constructor(panel) {
      this.panel = panel;
      this.show = panel.show ?? figure;
      this.legend = element("ul", { class: "legend", role: "list", "aria-label": `Legend of ${panel.title}` });
      // A slider is what a keyboard and a screen reader know how to move along the steps of a chart.
      this.plot = element("div", {
        class: "plot", tabindex: "0", role: "slider", "aria-label": `${panel.title}: step`, "aria-orientation": "horizontal",
      });
      this.table = element("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": `Table of ${panel.title}` });
      this.details = element("details", {}, element("summary", {}, `Table of ${panel.title}`), this.table);
      const title = element("h3", {}, panel.title, ...(panel.unit ? [element("span", {}, panel.unit)] : []));
      this.box = element("div", { class: `chart${panel.wide ? " wide" : ""}`, id: `chart-${panel.id}` },
        element("div", { class: "chart-head" }, title, this.legend), this.plot,
        ...(panel.note ? [element("p", { class: "note" }, panel.note)] : []), this.details);
      this.plot.addEventListener("keydown", (event) => this.moveCursor(event));
      this.plot.addEventListener("blur", () => this.drawn?.setCursor({ left: -10, top: -10 }));
      this.details.addEventListener("toggle", () => this.showTable());
      // A box that was hidden has no size before, and gets its chart now.
      new ResizeObserver(() => this.drawn ? this.drawn.setSize(this.size()) : this.draw()).observe(this.plot);
      charts.add(this);
    }

    size() { return { width: this.plot.clientWidth, height: this.plot.clientHeight }; }

    /* `content`: {lines: [{name, run, runName, mark, steps, values, low, high, faint, hatch, shown}], levels: [{name, value}], last} */
    update(content) {
      this.box.hidden = content.lines.length === 0;
      if (this.box.hidden) return;
      const form = (lines) => JSON.stringify(lines.map((line) => [line.name, line.run, Boolean(line.low), line.mark]));
      const same = this.content && form(this.content.lines) === form(content.lines);
      this.content = content;
      this.data = uPlot.join(content.lines.map((line) => [line.steps, line.shown, ...(line.low ? [line.low, line.high] : [])]));
      if (this.drawn && same) this.drawn.setData(this.data);
      else {
        this.makeLegend();
        this.draw();
      }
      this.showLegend();
      this.showTable();
    }

    makeLegend() {
      this.keys = new Map();
      for (const line of this.content.lines) {
        if (line.faint || this.keys.has(line.name)) continue;
        const key = element("i", { class: `series-${line.colour ?? line.mark}` }, swatch({ mark: line.mark, hatch: line.hatch }));
        this.keys.set(line.name, { key, value: element("b") });
      }
      this.legend.replaceChildren(...[...this.keys].map(([name, { key, value }]) => element("li", {}, key, element("span", {}, name), value)));
    }

    /* A canvas knows no variables of CSS, so a chart is made anew when the theme changes. */
    draw() {
      if (!this.content?.lines.length || this.plot.clientWidth === 0) return;
      this.drawn?.destroy();
      const style = getComputedStyle(this.plot);
      const axis = {
        stroke: style.color, font: "12px system-ui, sans-serif",
        grid: { stroke: style.borderTopColor, width: 1 }, ticks: { show: false },
      };
      const { series, bands } = this.series();
      this.drawn = new uPlot({
        ...this.size(),
        padding: [10, 26, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 }, sync: { key: "steps", setSeries: false } },
        scales: {
          x: { time: false, range: () => this.steps() },
          y: { distr: this.panel.log ? 3 : 1, range: (_, low, high) => this.range(low, high) },
        },
        axes: [
          { ...axis, grid: { show: false }, size: 26, space: 60, incrs: WHOLE, values: (_, ticks) => ticks.map((tick) => figure(tick)) },
          { ...axis, size: roomFor, values: (_, ticks, __, ___, apart) => ticks.map((tick) => tick === null ? null : this.panel.log ? figure(tick) : tickText(tick, apart)) },
        ],
        series: [{}, ...series],
        bands,
        hooks: { draw: [(plot) => this.drawOver(plot, style.color)], setCursor: [() => this.showLegend()] },
      }, this.data, this.plot);
    }

    series() {
      const series = [], bands = [];
      for (const line of this.content.lines) {
        const colour = this.colourOf(line);
        const dash = dashOf(line.run);
        series.push({
          stroke: colour, width: line.faint ? 1 : 1.75, alpha: line.faint ? 0.4 : 1, dash, points: { show: false },
          fill: line.hatch === 0 ? (plot) => hatching(plot.ctx, 0, colour) : undefined,
        });
        // A layer of a stack reaches down to the one below, whose line comes next.
        if (line.hatch > 0) bands.push({ series: [series.length, series.length + 1], fill: (plot) => hatching(plot.ctx, line.hatch, colour) });
        if (!line.low) continue;
        for (let edge = 0; edge < 2; edge++) series.push({ stroke: "transparent", width: 0, points: { show: false } });
        bands.push({ series: [series.length, series.length - 1], fill: fade(colour, 0.16) });
      }
      return { series, bands };
    }

    colourOf(line) { return getComputedStyle(this.keys.get(line.of ?? line.name).key).color; }

    steps() {
      const last = Math.max(this.content.last, 1);
      return [Math.min(0, ...this.content.lines.map((line) => line.steps[0] ?? 0)), last];
    }

    range(low, high) {
      const levels = this.content.levels.map((level) => level.value);
      low = Math.min(low ?? Infinity, ...levels);
      high = Math.max(high ?? -Infinity, ...levels);
      if (!Number.isFinite(low) || !Number.isFinite(high)) return this.panel.log ? [0.1, 10] : [0, 1];
      if (this.panel.log) return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high) + 1e-9)];
      const room = 0.08 * (high - low || Math.abs(high) || 1);
      const bottom = this.panel.zero ? 0 : low - room;
      return [this.panel.least === undefined ? bottom : Math.max(bottom, this.panel.least), Math.min(high + room, this.panel.most ?? Infinity)];
    }

    /* Markers, and level lines with their names, which need no series. */
    drawOver(plot, colour) {
      const { ctx, bbox } = plot, ratio = devicePixelRatio;
      ctx.save();
      for (const line of this.content.lines) if (!line.faint && line.hatch === undefined) drawMarkers(plot, line, this.colourOf(line));
      ctx.strokeStyle = ctx.fillStyle = colour;
      ctx.lineWidth = ratio;
      ctx.font = `${12 * ratio}px system-ui, sans-serif`;
      ctx.textAlign = "right";
      for (const { name, value } of this.content.levels) {
        const y = Math.round(plot.valToPos(value, "y", true));
        ctx.setLineDash([3 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        ctx.textBaseline = y - bbox.top < 20 * ratio ? "top" : "bottom";
        // On a rim of the card's colour, so that it can be read where a line passes behind it.
        const text = [`${name} ${this.show(value)}`, bbox.left + bbox.width - 4 * ratio, y + (ctx.textBaseline === "top" ? 3 : -3) * ratio];
        ctx.setLineDash([]);
        ctx.save();
        Object.assign(ctx, { strokeStyle: getComputedStyle(this.box).backgroundColor, lineWidth: 4 * ratio, lineJoin: "round" });
        ctx.strokeText(...text);
        ctx.restore();
        ctx.fillText(...text);
      }
      ctx.restore();
    }

    /* The figures under the cursor, otherwise the newest. */
    showLegend() {
      if (!this.content?.lines.length) return;
      const index = this.drawn?.cursor.idx ?? null;
      const step = index === null ? this.content.last : this.data[0][index] ?? this.content.last;
      const said = [];
      for (const [name, { value }] of this.keys) {
        const lines = this.content.lines.filter((line) => line.name === name && !line.faint);
        const figures = lines.map((line) => this.show(line.values[rowAt(line.steps, step)]));
        setText(value, figures.join(" · "));
        said.push(lines.length > 1 ? `${name} ${lines.map((line, row) => `${line.runName} ${figures[row]}`).join(", ")}` : `${name} ${figures[0]}`);
      }
      for (const level of this.content.levels) said.push(`${level.name} ${this.show(level.value)}`);
      // One who is on a chart hears where the keys lead, and not each step that is made.
      if (document.activeElement === this.plot && !this.moved) return;
      this.moved = false;
      const [first, last] = this.steps();
      for (const [key, value] of Object.entries({ valuemin: first, valuemax: last, valuenow: step })) this.plot.setAttribute(`aria-${key}`, value);
      this.plot.setAttribute("aria-valuetext", `Step ${figure(step)}: ${said.join("; ")}`);
    }

    moveCursor(event) {
      if (!this.drawn) return;
      const steps = this.data[0], last = steps.length - 1, page = Math.max(2, Math.round(steps.length / 10));
      if (event.key === "Escape") this.drawn.setCursor({ left: -10, top: -10 });
      const at = this.drawn.cursor.idx ?? last;
      const to = {
        ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - page, PageUp: at + page, Home: 0, End: last,
      }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      this.moved = true;
      this.drawn.setCursor({ left: this.drawn.valToPos(steps[Math.min(last, Math.max(0, to))], "x"), top: 1 });
    }

    showTable() {
      if (!this.details.open || !this.content) return;
      const { lines, levels } = this.content;
      const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => b - a);
      const several = new Set(lines.map((line) => line.run)).size > 1;
      const heads = ["Step", ...lines.flatMap((line) => {
        const name = `${line.name}${several ? `, ${line.runName}` : ""}`;
        return line.low ? [name, "low", "high"] : [name];
      })];
      const rows = steps.slice(0, ROWS).map((step) => [figure(step), ...lines.flatMap((line) => {
        const row = rowAt(line.steps, step), there = row >= 0 && line.steps[row] === step;
        return (line.low ? [line.values, line.low, line.high] : [line.values]).map((values) => there ? this.show(values[row]) : "");
      })]);
      const notes = levels.map((level) => `${level.name}: ${this.show(level.value)}`);
      if (steps.length > ROWS) notes.push(`The newest ${ROWS} of ${steps.length} steps.`);
      this.table.replaceChildren(page.tableOf(heads, rows), ...notes.map((note) => element("p", { class: "note" }, note)));
    }
  }

  /* As many digits as it takes to tell two ticks apart. */
  function tickText(tick, apart) {
    if (tick === 0) return "0";
    if (Math.abs(tick) < 0.001) return tick.toExponential(2).replace(/\.?0*e/, "e");
    let digits = 0;
    while (digits < 8 && Math.abs(apart * 10 ** digits - Math.round(apart * 10 ** digits)) > 1e-6) digits++;
    return page.round(tick, digits);
  }

  /* As wide as the longest of the labels of an upright axis. */
  const roomFor = (_, labels) => Math.max(58, 18 + 7.5 * Math.max(0, ...(labels ?? []).map((label) => label?.length ?? 0)));

  const WHOLE = [1, 2, 5].flatMap((digit) => Array.from({ length: 9 }, (_, power) => digit * 10 ** power)).sort((a, b) => a - b);

  page.tableOf = (heads, rows) => element("table", {},
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))));

  page.Chart = Chart;
  page.tickText = tickText;
  page.redrawCharts = () => { for (const chart of charts) if (chart.drawn) chart.draw(); };
})(window.domainclip);
