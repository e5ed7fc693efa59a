"use strict";

/* How lines are told apart without their colour: a marker says which figure it is, a dash pattern which run, a hatching
   which layer of a stack. */
(function (page) {
  const DASHES = [[], [7, 4], [2, 3], [11, 3, 2, 3], [4, 8]];
  const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "ring"];
  const FAR = 130, NEAR = 12, FEW = 16;

  const dashOf = (run) => DASHES[run % DASHES.length];

  function trace(path, shape, x, y, size) {
    if (shape === "circle" || shape === "ring") path.arc(x, y, size, 0, 2 * Math.PI);
    if (shape === "square") path.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
    const corners = {
      triangle: [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]], diamond: [[0, -1.35], [1.35, 0], [0, 1.35], [-1.35, 0]],
      cross: [[-1, -1], [1, 1], null, [1, -1], [-1, 1]],
    }[shape] ?? [];
    let next = "moveTo";
    for (const corner of corners) {
      if (corner) path[next](x + corner[0] * size, y + corner[1] * size);
      next = corner ? "lineTo" : "moveTo";
    }
    if (shape !== "cross" && corners.length) path.closePath();
  }

  function drawMarker(ctx, shape, x, y, size, colour) {
    ctx.beginPath();
    trace(ctx, shape, x, y, size);
    if (shape === "cross" || shape === "ring") {
      ctx.strokeStyle = colour;
      ctx.lineWidth = size / 2;
      ctx.stroke();
    } else {
      ctx.fillStyle = colour;
      ctx.fill();
    }
  }

  /* Markers along a line: at each of few points, otherwise so far apart that the line stays readable. */
  function drawMarkers(plot, line, colour) {
    const { ctx, bbox } = plot, ratio = devicePixelRatio;
    const apart = (line.steps.length <= FEW ? NEAR : FAR) * ratio;
    ctx.setLineDash([]); // the line before may have left its own
    let next = bbox.left + (line.steps.length <= FEW ? -1 : (20 + 23 * line.mark) * ratio);
    line.steps.forEach((step, row) => {
      const x = plot.valToPos(step, "x", true), value = line.shown[row];
      if (value === null || value === undefined || x < next) return;
      next = x + apart;
      drawMarker(ctx, SHAPES[line.mark % SHAPES.length], x, plot.valToPos(value, "y", true), 3.6 * ratio, colour);
    });
  }

  const canvases = {};
  /* A pattern of stripes for the layer `index` of a stack: full, rising, falling, level, upright. */
  function hatching(ctx, index, colour) {
    const key = `${index} ${colour}`;
    if (!canvases[key]) {
      const canvas = Object.assign(document.createElement("canvas"), { width: 12, height: 12 });
      const tile = canvas.getContext("2d");
      tile.fillStyle = tile.strokeStyle = colour;
      tile.globalAlpha = index % 5 ? 0.28 : 0.6;
      tile.fillRect(0, 0, 12, 12);
      tile.globalAlpha = 0.9;
      tile.lineWidth = 2;
      const lines = [[], [[-3, 15, 15, -3], [-3, 3, 3, -3], [9, 15, 15, 9]], [[-3, -3, 15, 15], [9, -3, 15, 3], [-3, 9, 3, 15]],
        [[0, 6, 12, 6]], [[6, 0, 6, 12]]][index % 5];
      tile.beginPath();
      for (const [x, y, toX, toY] of lines) {
        tile.moveTo(x, y);
        tile.lineTo(toX, toY);
      }
      tile.stroke();
      canvases[key] = canvas;
    }
    return ctx.createPattern(canvases[key], "repeat");
  }

  const fade = (colour, alpha) => colour.replace(/^rgb\(([^)]*)\)$/, `rgba($1, ${alpha})`);

  function svg(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  const SYMBOLS = {
    circle: "M10 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", square: "M10.5 2.5h7v7h-7Z", triangle: "M14 1.5L18.2 9.8H9.8Z",
    diamond: "M14 .8L19.2 6L14 11.2L8.8 6Z", cross: "M10.5 2.5L17.5 9.5M17.5 2.5L10.5 9.5", ring: "M10.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0Z",
  };
  const HATCHES = ["", "M0 12L12 0M8 12L20 0M16 12L28 0", "M0 0L12 12M8 0L20 12M16 0L28 12", "M0 4H28M0 8H28", "M5 0V12M11 0V12M17 0V12M23 0V12"];

  /* What stands before a name in a legend. */
  function swatch({ mark, run, hatch }) {
    const made = svg("svg", { viewBox: "0 0 28 12", width: 28, height: 12, "aria-hidden": "true", class: "swatch" });
    if (hatch !== undefined) {
      made.append(svg("rect", { width: 28, height: 12, rx: 2, fill: "currentColor", "fill-opacity": hatch % 5 ? 0.28 : 0.6 }));
      made.append(svg("path", { d: HATCHES[hatch % 5], stroke: "currentColor", "stroke-width": 1.5 }));
      return made;
    }
    made.append(svg("path", { d: "M0 6H28", stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": dashOf(run ?? 0).join(" ") }));
    if (mark !== undefined) {
      const shape = SHAPES[mark % SHAPES.length], open = shape === "cross" || shape === "ring";
      made.append(svg("path", {
        d: SYMBOLS[shape], fill: open ? "none" : "currentColor", stroke: open ? "currentColor" : "none", "stroke-width": 2,
      }));
    }
    return made;
  }

  Object.assign(page, { dashOf, drawMarkers, hatching, fade, swatch });
})(window.domainclip);
