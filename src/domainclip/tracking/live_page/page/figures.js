"use strict";

/* What all other scripts share: figures as text, elements, numbers of a series. They are loaded in the order in which
   page.html names them, and each adds to this one object. */
window.domainclip = { snapshot: null };

(function (page) {
  const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

  /* Four significant digits, and powers of ten only where the zeros would have to be counted. */
  function figure(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
    if (Number.isInteger(value)) return round(value, 0);
    return round(value, size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4);
  }

  function duration(seconds) {
    const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
    if (days) return `${days} d ${hours % 24} h`;
    if (hours) return `${hours} h ${minutes % 60} min`;
    return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
  }

  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
  const moment = (seconds) => `${new Date(seconds * 1000).toLocaleDateString("en-CA")} ${clock(seconds)}`;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /* A screen reader is not told of what has not changed, nor is the page laid out again. */
  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  const shown = new WeakMap();
  /* Whether `value` differs from what was last shown in `node`. */
  function changed(node, value) {
    const text = JSON.stringify(value);
    if (shown.get(node) === text) return false;
    shown.set(node, text);
    return true;
  }

  const words = (name) => name.replace(/^val_/, "").replaceAll("_", " ");

  /* Row of the last step that is not after `step`; -1 where there is none. */
  function rowAt(steps, step) {
    let low = 0, high = steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle + 1; else high = middle;
    }
    return low - 1;
  }

  /* An exponential moving average whose weights fall with the distance in steps (time constant `span`), so that points
     that stand further apart weigh more; corrected for its start, as Adam's moments are. */
  function movingAverage({ steps, values }, span) {
    let mean = 0, weight = 0, before = null;
    return values.map((value, row) => {
      if (value === null) return null;
      const kept = Math.exp(-(before === null ? 1 : steps[row] - before) / span);
      before = steps[row];
      mean = kept * mean + (1 - kept) * value;
      weight = kept * weight + (1 - kept);
      return mean / weight;
    });
  }

  Object.assign(page, { figure, round, duration, clock, moment, element, setText, changed, words, rowAt, movingAverage });
  page.byId = (id) => document.getElementById(id);
})(window.domainclip);
