"use strict";

/* What is not a chart: the state of each run, its milestones, its classes, what the recipes differ in. */
(function (page) {
  const { byId, element, setText, changed, figure, duration, moment, clock, percent, inPercent, bare, words, swatch, tableOf } = page;

  /* ---- state ---- */

  const LEVELS = { running: "good", finished: "good", interrupted: "warn", failed: "bad", killed: "bad", unknown: "unknown" };
  const MEANINGS = {
    running: "It is going on.", finished: "It is done.", interrupted: "Somebody has stopped it; --resume goes on with it.",
    failed: "An error has ended it.", killed: "Its process is gone and has not said why; --resume goes on with it.",
    unknown: "Nothing says whether its process is alive.",
  };

  const newest = (run, key) => run.series[key]?.values.findLast((value) => value !== null) ?? null;
  const metric = (name, value) => value === null || value === undefined ? "–" : inPercent(name) ? percent(100 * value) : figure(value);

  function best(run) {
    const name = bare(run);
    const values = (run.series[`val_${name}`]?.values ?? []).filter((value) => value !== null);
    if (!values.length) return null;
    return run.greater_is_better === false ? Math.min(...values) : Math.max(...values);
  }

  function facts(run) {
    const name = bare(run), total = run.total_steps ? ` of ${figure(run.total_steps)}` : "";
    const left = run.state === "running" ? run.phases.find((phase) => phase.name === "training")?.seconds_left : null;
    const zero = run.zero_shot?.[name];
    const rows = [["Step", `${figure(run.step)}${total}`, ""]];
    if (typeof left === "number") rows.push(["Time left", duration(left), "of the training"]);
    if (name && best(run) !== null) {
      rows.push([`${words(name)}, newest`, metric(name, newest(run, `val_${name}`)), `best ${metric(name, best(run))}${typeof zero === "number" ? `, zero-shot ${metric(name, zero)}` : ""}`]);
    } else if (name && typeof zero === "number") rows.push([`${words(name)}, zero-shot`, metric(name, zero), "the initial model"]);
    if (newest(run, "loss") !== null) {
      rows.push(["Loss, newest", figure(newest(run, "loss")), newest(run, "val_loss") === null ? "training" : `training; validation ${figure(newest(run, "val_loss"))}`]);
    }
    if (newest(run, "samples_per_second") !== null) rows.push(["Images per second", figure(newest(run, "samples_per_second")), ""]);
    // memory.json is written before the first step and after the last: meanwhile the steps know more.
    const peak = newest(run, "peak_memory_mb") ?? run.memory?.measured_peak_mb;
    if (peak) rows.push(["Memory, peak", `${figure(peak)} MB`, run.memory?.predicted_mb ? `predicted ${figure(run.memory.predicted_mb)} MB` : ""]);
    return rows;
  }

  function phaseRow(phase) {
    const known = typeof phase.done === "number" && phase.total;
    const bar = element("progress", { "aria-label": `Progress of ${words(phase.name)}`, ...(known ? { max: phase.total, value: phase.done } : {}) });
    const said = [known ? `${figure(phase.done)} of ${figure(phase.total)}` : "", `${duration(phase.seconds ?? 0)} so far`,
      typeof phase.seconds_left === "number" ? `${duration(phase.seconds_left)} left` : ""].filter(Boolean).join(", ");
    return element("li", {}, element("span", { class: "phase" }, words(phase.name)), bar, element("span", { class: "note" }, said));
  }

  function verdict(report) {
    const names = Object.keys(report.after ?? {}).filter((name) => typeof report.after[name] === "number" && typeof report.before?.[name] === "number" && !/^n_/.test(name));
    return [element("p", { class: "verdict" }, element("strong", {}, "Report: "), report.verdict ?? ""),
      ...(names.length ? [element("details", {}, element("summary", {}, "Before and after"), element("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": "Before and after" },
        tableOf(["Metric", "Before", "After"], names.map((name) => [words(name), metric(name, report.before[name]), metric(name, report.after[name])]))))] : [])];
  }

  function card(run, index, several) {
    const level = LEVELS[run.state] ?? "unknown";
    const times = [run.started_at ? `started ${moment(run.started_at)}` : "", run.updated_at ? `last heard of ${clock(run.updated_at)}` : ""].filter(Boolean).join(", ");
    return element("article", { class: "card run", "aria-label": `Run ${run.name}` },
      element("div", { class: "run-head" },
        element("h3", {}, ...(several ? [swatch({ run: index })] : []), run.name),
        element("p", { class: "badge state", "data-level": level }, run.state)),
      element("p", { class: "reason" }, run.text || MEANINGS[run.state] || ""),
      element("p", { class: "note" }, [run.folder, times].filter(Boolean).join(" · ")),
      ...(run.phases.length ? [element("ul", { class: "phases", role: "list", "aria-label": `What ${run.name} is doing` }, ...run.phases.map(phaseRow))] : []),
      element("dl", { class: "tiles" }, ...facts(run).map(([name, value, note]) => element("div", {},
        element("dt", {}, name), element("dd", { class: "value" }, value), element("dd", { class: "note" }, note)))),
      ...(run.report ? verdict(run.report) : []));
  }

  function showRuns({ runs }) {
    setText(byId("runs-title"), runs.length > 1 ? "Runs: each has its dash pattern, and in legends their figures stand in this order" : "Run");
    setText(byId("names"), runs.map((run) => run.name).join(", "));
    document.title = `${runs.map((run) => run.state === "running" && run.total_steps ? `${Math.floor(100 * run.step / run.total_steps)} %` : run.state).join(", ")} · ${runs.map((run) => run.name).join(", ")} · domainclip`;
    runs.forEach((run, index) => {
      const host = byId("runs").children[index] ?? byId("runs").appendChild(element("div"));
      const { name, folder, state, text, step, total_steps, started_at, updated_at, phases, report } = run;
      if (!changed(host, [name, folder, state, text, step, total_steps, started_at, updated_at, phases, report, runs.length, facts(run)])) return;
      const open = host.querySelector("details")?.open ?? false;
      host.replaceChildren(card(run, index, runs.length > 1));
      if (open && host.querySelector("details")) host.querySelector("details").open = true;
    });
    while (byId("runs").children.length > runs.length) byId("runs").lastChild.remove();
  }

  /* ---- milestones ---- */

  const WORDS = { info: "Information", warning: "Warning", error: "Error" };

  function milestone({ run, step, level, text, rule, evidence, advice, name }, several) {
    const figures = Object.entries(evidence ?? {}).map(([key, value]) => `${words(key)} ${typeof value === "number" ? figure(value) : value}`).join(", ");
    const more = [["Rule", rule], ["Evidence", figures]].filter(([, said]) => said);
    return element("li", { "data-level": level },
      element("p", {}, element("strong", { class: "level" }, `${WORDS[level] ?? level}:`), ` ${text}`),
      element("p", { class: "note" }, `${several ? `${run}, ` : ""}step ${figure(step)}, ${words(name ?? "")}`),
      ...(advice ? [element("p", {}, element("strong", {}, "What to do: "), advice)] : []),
      ...(more.length ? [element("details", {}, element("summary", {}, "Rule and evidence"), element("dl", { class: "facts" },
        ...more.flatMap(([term, said]) => [element("dt", {}, term), element("dd", {}, said)])))] : []));
  }

  function showMilestones({ runs }) {
    const all = runs.flatMap((run) => (run.milestones ?? []).map((each) => ({ ...each, run: run.name })));
    byId("milestones").hidden = all.length === 0;
    const list = byId("milestones").querySelector("ol");
    if (!changed(list, [all, runs.length])) return;
    list.replaceChildren(...all.sort((a, b) => b.step - a.step).map((each) => milestone(each, runs.length > 1)));
  }

  /* ---- classes ---- */

  function thumbnail(path, predicted, label, index) {
    const embedded = page.snapshot.thumbnails?.[path];
    const source = embedded ?? (page.isFile ? null : `image?run=${index}&path=${encodeURIComponent(path)}`);
    const name = path.split("/").at(-1);
    return element("figure", {},
      source ? element("img", { src: source, alt: `${name}: ${label}, taken for ${predicted}`, loading: "lazy", title: path }) : element("span", { class: "no-image" }, name),
      element("figcaption", {}, "taken for ", element("strong", {}, predicted)));
  }

  function classesOf(run, index, several) {
    const sorted = [...run.classes.classes].sort((a, b) => a.recall - b.recall);
    const table = tableOf(["Class", "Images", "Recall"], sorted.map((each) => [each.label, figure(each.images), percent(100 * each.recall)]));
    [...table.tBodies[0].rows].forEach((row, at) => row.cells[2].append(element("meter", { min: 0, max: 1, value: sorted[at].recall, "aria-label": `Recall of ${sorted[at].label}` })));
    const wrong = sorted.filter((each) => each.mistaken?.length);
    const title = `${several ? `${run.name}, ` : ""}validation of step ${figure(run.classes.step)}`;
    return [
      element("div", { class: "card" }, element("h3", {}, "Recall by class", element("span", {}, title)),
        element("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": `Recall by class, ${title}` }, table)),
      element("div", { class: "card" }, element("h3", {}, "Taken for another class", element("span", {}, title)),
        ...(wrong.length ? wrong.map((each) => element("div", { class: "mistaken" },
          element("h4", {}, each.label, element("span", {}, `recall ${percent(100 * each.recall)}`)),
          element("div", { class: "images" }, ...each.mistaken.map(([path, predicted]) => thumbnail(path, predicted, each.label, index)))))
          : [element("p", { class: "note" }, "None of the images was taken for another class.")])),
    ];
  }

  function showClasses({ runs }) {
    const there = runs.map((run, index) => ({ run, index })).filter(({ run }) => run.classes?.classes?.length);
    byId("classes").hidden = there.length === 0;
    const host = byId("classes").querySelector(".pair");
    if (!changed(host, there.map(({ run, index }) => [run.name, index, run.classes]))) return;
    host.replaceChildren(...there.flatMap(({ run, index }) => classesOf(run, index, runs.length > 1)));
  }

  /* ---- recipes ---- */

  const text = (value) => value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value);

  function showRecipes({ runs, recipe_difference: difference = [] }) {
    byId("difference").hidden = runs.length < 2;
    const host = byId("difference").querySelector(".card");
    if (runs.length > 1 && changed(host, [runs.map((run) => run.name), difference])) {
      host.replaceChildren(difference.length
        ? tableOf(["Key", ...runs.map((run) => run.name)], difference.map(({ key, values }) => [key, ...values.map(text)]))
        : element("p", { class: "note" }, "The recipes are the same."));
    }
    const recipes = runs.filter((run) => Object.keys(run.recipe ?? {}).length);
    byId("recipe").hidden = recipes.length === 0;
    const card = byId("recipe").querySelector(".card");
    if (!changed(card, recipes.map((run) => [run.name, run.recipe]))) return;
    card.replaceChildren(...recipes.map((run) => element("details", {}, element("summary", {}, `Recipe of ${run.name}`),
      element("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": `Recipe of ${run.name}` },
        tableOf(["Key", "Value"], Object.entries(run.recipe).map(([key, value]) => [key, text(value)]))))));
  }

  page.showRuns = (snapshot) => {
    showRuns(snapshot);
    showMilestones(snapshot);
    showClasses(snapshot);
    showRecipes(snapshot);
  };
})(window.domainclip);
