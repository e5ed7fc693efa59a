"use strict";

/* Similarities of the positives and of the hardest negatives at each validation, with a slider over the validations. */
(function (page) {
  const { element, setText, figure, percent, hatching, fade, swatch } = page;
  const BINS = 40;

  const sum = (counts) => counts.reduce((total, count) => total + count, 0);
  const shares = (counts) => counts.map((count) => 100 * count / (sum(counts) || 1));
  const centre = (validation, bin) => validation.low + (bin + 0.5) * (validation.high - validation.low) / BINS;
  const mean = (validation, counts) => sum(counts.map((count, bin) => count * centre(validation, bin))) / (sum(counts) || 1);

  class Histogram {
    constructor(index) {
      this.index = index;
      this.slider = element("input", { type: "range", min: 0, max: 0, value: 0, id: `validation-${index}` });
      this.where = element("output", { for: `validation-${index}` });
      this.keys = [["positives", 2, 0], ["hardest negatives", 5, 1]].map(([name, colour, hatch]) => {
        const key = element("i", { class: `series-${colour}` }, swatch({ hatch })), value = element("b");
        return { name, hatch, key, value, item: element("li", {}, key, element("span", {}, `${name}, mean`), value) };
      });
      this.title = element("span");
      this.plot = element("div", { class: "plot", role: "img" });
      this.note = element("p", { class: "note" });
      this.table = element("div", { class: "scroll", role: "group", tabindex: "0" });
      this.details = element("details", {}, element("summary", {}, "Table of the similarities"), this.table);
      this.box = element("div", { class: "chart wide", id: `chart-similarities-${index}` },
        element("div", { class: "chart-head" }, element("h3", {}, "Similarities", this.title), element("ul", { class: "legend", role: "list", "aria-label": "Legend of Similarities" }, ...this.keys.map((key) => key.item))),
        element("div", { class: "slider" }, element("label", { for: `validation-${index}` }, "Validation"), this.slider, this.where),
        this.plot, this.note, this.details);
      this.slider.addEventListener("input", () => this.show());
      this.details.addEventListener("toggle", () => this.showTable());
      new ResizeObserver(() => this.drawn ? this.drawn.setSize(this.size()) : this.draw()).observe(this.plot);
    }

    size() { return { width: this.plot.clientWidth, height: this.plot.clientHeight }; }

    /* It goes along with the newest validation until somebody has moved the slider to another. */
    update(run, several) {
      this.run = run;
      const last = run.validations.length - 1, newest = Number(this.slider.value) === Number(this.slider.max);
      this.slider.max = last;
      if (newest) this.slider.value = last;
      setText(this.title, `${several ? `${run.name}, ` : ""}cosine of image and caption`);
      this.show();
    }

    show() {
      const at = Number(this.slider.value), validation = this.validation = this.run.validations[at];
      const place = `step ${figure(validation.step)}, ${at + 1} of ${this.run.validations.length}`;
      setText(this.where, place);
      this.slider.setAttribute("aria-valuetext", place);
      const counts = [validation.positives, validation.hardest_negatives];
      this.keys.forEach(({ value }, row) => setText(value, sum(counts[row]) ? figure(mean(validation, counts[row])) : "–"));
      const [positives, negatives] = this.shares = counts.map(shares);
      const overlap = percent(sum(positives.map((share, bin) => Math.min(share, negatives[bin]))));
      setText(this.note, `The two overlap by ${overlap}: the less, the better an image's own caption is told from the nearest wrong one.`);
      this.plot.setAttribute("aria-label", `Similarities at ${place}: ${this.keys.map(({ name, value }) => `${name} ${value.textContent} on average`).join(", ")}, overlap ${overlap}`);
      if (this.drawn) this.drawn.setData(this.data());
      else this.draw();
      this.showTable();
    }

    /* A step for each bin, from its lower edge to the next. */
    data() {
      const { low, high } = this.validation;
      const edges = Array.from({ length: BINS + 1 }, (_, edge) => low + edge * (high - low) / BINS);
      return [edges, ...this.shares.map((each) => [...each, each.at(-1)])];
    }

    /* One range for all validations, so that a move of the slider shows how the similarities move. */
    range() {
      const all = this.run.validations;
      return [Math.min(...all.map((each) => each.low)), Math.max(...all.map((each) => each.high))];
    }

    draw() {
      if (!this.validation || this.plot.clientWidth === 0) return;
      this.drawn?.destroy();
      const style = getComputedStyle(this.plot);
      const axis = { stroke: style.color, font: "12px system-ui, sans-serif", grid: { stroke: style.borderTopColor, width: 1 }, ticks: { show: false } };
      this.drawn = new uPlot({
        ...this.size(), padding: [10, 26, 0, 0], legend: { show: false }, cursor: { show: false },
        scales: { x: { time: false, range: () => this.range() }, y: { range: (_, low, high) => [0, 1.08 * (high || 1)] } },
        axes: [
          { ...axis, grid: { show: false }, size: 26, values: (_, ticks, __, ___, apart) => ticks.map((tick) => page.tickText(tick, apart)) },
          { ...axis, size: 58, values: (_, ticks, __, ___, apart) => ticks.map((tick) => `${page.tickText(tick, apart)} %`) },
        ],
        series: [{}, ...this.keys.map(({ key, hatch }) => {
          const colour = getComputedStyle(key).color;
          return {
            stroke: colour, width: 1.75, dash: hatch ? [4, 3] : [], points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }),
            fill: (plot) => hatch ? hatching(plot.ctx, hatch, colour) : fade(colour, 0.35),
          };
        })],
      }, this.data(), this.plot);
    }

    showTable() {
      if (!this.details.open || !this.validation) return;
      const { positives, hardest_negatives: negatives } = this.validation;
      const rows = positives.map((count, bin) => [figure(centre(this.validation, bin)), figure(count), figure(negatives[bin])])
        .filter((row) => row[1] !== "0" || row[2] !== "0");
      this.table.setAttribute("aria-label", `Table of the similarities, step ${this.validation.step}`);
      this.table.replaceChildren(page.tableOf(["Similarity", "Positives", "Hardest negatives"], rows));
    }
  }

  let histograms = [];

  /* One for each run that has validations, before the charts in `grid`; how many there are. */
  page.showHistograms = (grid, runs) => {
    const shown = runs.filter((run) => run.validations?.length);
    if (histograms.length !== shown.length || histograms[0]?.box.parentNode !== grid) {
      for (const histogram of histograms) histogram.box.remove();
      histograms = shown.map((_, row) => new Histogram(row));
      grid.prepend(...histograms.map((histogram) => histogram.box));
    }
    shown.forEach((run, row) => histograms[row].update(run, runs.length > 1));
    return shown.length;
  };

  page.redrawHistograms = () => { for (const histogram of histograms) if (histogram.drawn) histogram.draw(); };
})(window.domainclip);
