"use strict";

/* Which figures of metrics.jsonl stand in which chart. A panel without figures is not shown. */
(function (page) {
  const { element, figure, round, words, movingAverage, rowAt } = page;
  const percent = (value) => value === null || value === undefined ? "–" : `${round(value, 1)} %`;
  const PERCENT = { unit: "%", scale: 100, show: percent, most: 100, least: 0 };

  /* A line for each run that has the series `key`. `form` may have: name, mark, scale, of (a function of a value). */
  function lines(runs, key, form = {}) {
    return runs.flatMap((run, index) => {
      const found = run.series[key];
      if (!found || !found.values.some((value) => value !== null)) return [];
      const convert = (values) => values?.map((value) => value === null ? null : (form.of ?? ((each) => each * (form.scale ?? 1)))(value));
      const values = convert(found.values);
      const line = { name: form.name ?? words(key), mark: form.mark ?? 1, run: index, runName: run.name, steps: found.steps, values, shown: values };
      return [found.low && found.high ? { ...line, low: convert(found.low), high: convert(found.high) } : line];
    });
  }

  const several = (keys, form = {}) => (runs) => keys.flatMap((key, row) => lines(runs, key, { mark: row + 1, ...form }));
  const one = (key, form) => (runs) => lines(runs, key, form);

  /* ---- loss ---- */

  /* Behind the moving average, the steps themselves as a thin line. */
  function smoothed(line) {
    const last = line.steps.at(-1) ?? 0;
    const average = movingAverage(line, Math.max(5, last / 50));
    const form = { mark: line.mark, run: line.run, runName: line.runName, steps: line.steps };
    return [{ ...form, name: "each step", of: "training", faint: true, values: line.values, shown: line.values },
      { ...form, name: "training", values: average, shown: average }];
  }

  const lossLines = (runs) => [
    ...lines(runs, "loss", { name: "training", mark: 1 }).flatMap(smoothed), ...lines(runs, "val_loss", { name: "validation", mark: 5 }),
  ];

  const OF_A_STEP = new Set([
    "loss", "epoch", "batch_size", "resolution", "temperature", "learning_rate", "grad_norm", "logit_scale", "embedding_spread",
    "effective_rank", "samples_per_second", "memory_mb", "peak_memory_mb", "target_entropy",
  ]);
  const NOT_A_PART = /^(val_|zero_shot_|probe_|saved_|seconds_|power_|energy_|temperature_|best_|learning_rate)/;
  const isPart = (name, runs) => !OF_A_STEP.has(name) && !NOT_A_PART.test(name) &&
    runs.some((run) => run.series[name]?.steps.at(-1) > 0 && run.series.loss);
  const namesOf = (runs) => [...new Set(runs.flatMap((run) => Object.keys(run.series)))];
  const parts = (runs) => several(namesOf(runs).filter((name) => isPart(name, runs)))(runs);

  /* ---- validation ---- */

  const bare = (run) => run.primary?.replace(/^val_/, "");
  const inPercent = (name) => /(acc\d*|accuracy|recall|precision|f1|R@\d+|mAP|auc|auroc|sensitivity|specificity|kappa|MRR)/i.test(name);
  const shownAs = (name) => inPercent(name) ? PERCENT : {};

  /* A level line for each value that a run has, with the run's name where they differ. */
  function levels(name, runs, valueOf) {
    const values = runs.map(valueOf);
    const known = [...new Set(values.filter((value) => typeof value === "number"))];
    return known.map((value) => ({ name: known.length > 1 ? `${name}, ${runs[values.indexOf(value)].name}` : name, value }));
  }

  const zeroShot = (runs, metric, scale = 1, name = "zero-shot") => levels(name, runs, (run) => {
    const value = run.zero_shot?.[metric];
    return typeof value === "number" ? value * scale : null;
  });

  function primaryPanel(runs) {
    const name = runs.map(bare).find(Boolean);
    if (!name) return null;
    const form = shownAs(name);
    return {
      id: "primary", title: words(name), ...form, unit: `${form.unit ? `${form.unit}, ` : ""}the primary metric, by validation`,
      note: "The band is the interval of each validation: values nearer than that are not told apart.",
      lines: (all) => lines(all.filter((run) => bare(run) === name), `val_${name}`, { ...form, name: words(name), mark: 2 })
        .map((line) => ({ ...line, run: runs.findIndex((run) => run.name === line.runName) })),
      levels: (all) => zeroShot(all, name, form.scale),
    };
  }

  const ACCURACY = ["val_acc1", "val_acc5", "val_mean_per_class_recall", "val_macro_f1"];
  const RETRIEVAL = ["val_mean_R@1", "val_i2t_R@1", "val_t2i_R@1", "val_i2t_R@5", "val_t2i_R@5"];
  const GEOMETRY = ["val_modality_gap", "val_uniformity", "val_effective_rank"];
  const COUNTS = /^val_n_/;

  /* ---- time ---- */

  const TIMES = ["data", "towers", "loss", "optimizer"];

  /* Areas on top of each other, the uppermost first, as its name stands in the legend. */
  function stack(run) {
    const series = TIMES.map((name) => run.series[`seconds_${name}`]);
    const there = TIMES.map((name, row) => ({ name, series: series[row], hatch: row })).filter((layer) => layer.series);
    if (!there.length) return [];
    const steps = [...new Set(there.flatMap((layer) => layer.series.steps))].sort((a, b) => a - b);
    const total = steps.map(() => 0);
    return there.map(({ name, series: { steps: own, values }, hatch }) => {
      const held = steps.map((step) => 1000 * (values[rowAt(own, step)] ?? 0));
      const shown = held.map((value, row) => total[row] += value);
      return { name, mark: hatch + 1, hatch, run: 0, runName: run.name, steps, values: held, shown };
    }).reverse();
  }

  /* ---- sections ---- */

  function furtherPanels(runs) {
    const shown = new Set([...ACCURACY, ...RETRIEVAL, ...GEOMETRY, "val_loss", ...runs.map((run) => `val_${bare(run)}`)]);
    return namesOf(runs)
      .filter((name) => name.startsWith("val_") && !shown.has(name) && !COUNTS.test(name) && !name.startsWith("val_reference_"))
      .map((name) => ({
        id: name.replace(/[^a-zA-Z0-9]/g, "-"), title: words(name), ...shownAs(name), lines: one(name, { ...shownAs(name), mark: 2 }),
        levels: (all) => zeroShot(all, name.slice(4), shownAs(name).scale),
      }));
  }

  function sections(runs) {
    const sets = namesOf(runs).filter((name) => name.startsWith("val_reference_") && name !== "val_reference_mean");
    const references = sets.length > 1 ? ["val_reference_mean", ...sets] : sets; // of one set, the mean says nothing more
    const power = namesOf(runs).filter((name) => /^power_/.test(name));
    const ofStacks = runs.length > 1 ? (run) => `, ${run.name}` : () => "";
    return [
      {
        title: "Does it learn?",
        panels: [
          { id: "loss", title: "Loss", wide: true, lines: lossLines, note: "Thick: a moving average of the training steps; thin: the steps themselves." },
          primaryPanel(runs),
          { id: "parts", title: "Parts of the loss", lines: parts, zero: true },
          { id: "accuracy", title: "Accuracy", ...PERCENT, lines: (all) => several(ACCURACY, PERCENT)(all).map(({ low, high, ...line }) => line) },
          { id: "retrieval", title: "Retrieval", ...PERCENT, unit: "% of queries", lines: (all) => several(RETRIEVAL, PERCENT)(all).map(({ low, high, ...line }) => line) },
          {
            id: "references", title: "Reference sets", ...PERCENT, unit: "%, what is kept of what it knew before",
            lines: (all) => references.flatMap((key, row) => lines(all, key, { ...PERCENT, mark: row + 1, name: words(key.replace("reference_", "")) })),
            // One line alone, that of the mean where there are several.
            levels: (all) => references.slice(0, 1).flatMap((key) => zeroShot(all, key.slice(4), 100, sets.length > 1 ? "zero-shot mean" : "zero-shot")),
          },
        ],
      },
      {
        title: "Embeddings", similarities: true,
        panels: [
          { id: "gap", title: "Modality gap", unit: "distance of the two means", zero: true, lines: one("val_modality_gap", { mark: 1 }), levels: (all) => zeroShot(all, "modality_gap") },
          { id: "uniformity", title: "Uniformity", unit: "lower: spread out more evenly", lines: one("val_uniformity", { mark: 3 }), levels: (all) => zeroShot(all, "uniformity") },
          {
            id: "rank", title: "Effective rank", unit: "dimensions in use", zero: true,
            lines: (all) => [...lines(all, "val_effective_rank", { name: "validation", mark: 5 }), ...lines(all, "effective_rank", { name: "batch", mark: 1 })],
            levels: (all) => zeroShot(all, "effective_rank"),
          },
          { id: "spread", title: "Spread of the embeddings", unit: "of a batch; near 0: collapse", zero: true, lines: one("embedding_spread", { mark: 4 }) },
        ],
      },
      {
        title: "Optimizer",
        panels: [
          { id: "rate", title: "Learning rate", zero: true, lines: (all) => namesOf(all).filter((name) => name.startsWith("learning_rate")).flatMap((key, row) => lines(all, key, { mark: row + 1 })) },
          { id: "temperature", title: "Temperature", unit: "1 / logit scale", lines: one("logit_scale", { name: "temperature", mark: 4, of: (scale) => scale > 0 ? 1 / scale : null }) },
          { id: "gradient", title: "Gradient norm", unit: "logarithmic", log: true, lines: one("grad_norm", { name: "norm", mark: 3, of: (norm) => norm > 0 ? norm : null }) },
        ],
      },
      {
        title: "Speed and memory",
        panels: [
          { id: "speed", title: "Images per second", zero: true, lines: one("samples_per_second", { name: "images/s", mark: 2 }) },
          ...runs.map((run, index) => ({
            id: `time-${index}`, title: `Where the time goes${ofStacks(run)}`, unit: "ms a step", zero: true, lines: (all) => all[index] ? stack(all[index]) : [],
          })),
          { id: "memory", title: "Memory", unit: "MB", lines: (all) => [...lines(all, "memory_mb", { name: "held", mark: 1 }), ...lines(all, "peak_memory_mb", { name: "peak", mark: 3 })], levels: (all) => levels("predicted", all, (run) => run.memory?.predicted_mb), zero: true },
          { id: "power", title: "Power", unit: "W", zero: true, lines: several(power) },
        ],
      },
      { title: "Further figures of the validation", folded: true, panels: furtherPanels(runs) },
    ].map((section) => ({ ...section, panels: section.panels.filter(Boolean) }));
  }

  let built = [], form = null;

  /* Frames are made again only where there are other panels than before. */
  function build(runs) {
    const wanted = sections(runs), now = JSON.stringify(wanted.map((section) => section.panels.map((panel) => [panel.id, panel.title])));
    if (now === form) return;
    form = now;
    const host = page.byId("charts");
    host.replaceChildren();
    built = wanted.map((section, index) => {
      const grid = element("div", { class: "charts" }), id = `section-${index}`;
      const title = element("h2", { id }, section.title);
      const box = element("section", { "aria-labelledby": id }, ...(section.folded
        ? [element("details", { class: "fold" }, element("summary", {}, title), grid)] : [title, grid]));
      host.append(box);
      const charts = section.panels.map((panel) => {
        const chart = new page.Chart(panel);
        grid.append(chart.box);
        return chart;
      });
      return { section, box, grid, charts };
    });
  }

  function showCharts(snapshot) {
    const { runs } = snapshot;
    build(runs);
    const last = Math.max(1, ...runs.map((run) => run.step ?? 0), ...runs.flatMap((run) => Object.values(run.series).map((each) => each.steps.at(-1) ?? 0)));
    const fresh = Object.fromEntries(sections(runs).flatMap((section) => section.panels.map((panel) => [panel.id, panel])));
    for (const { section, box, grid, charts } of built) {
      for (const chart of charts) {
        const panel = fresh[chart.panel.id];
        const content = panel.lines(runs);
        chart.update({ lines: content, levels: content.length ? panel.levels?.(runs) ?? [] : [], last });
      }
      const histograms = section.similarities ? page.showHistograms(grid, runs) : 0;
      box.hidden = histograms === 0 && charts.every((chart) => chart.box.hidden);
    }
  }

  Object.assign(page, { showCharts, percent, inPercent, bare });
})(window.domainclip);
