/**
 * The drawing of the strip: lanes of batches on one line of time, the queue's depth above, the scale below.
 */

import { colour, count } from "./dom.js";
import { briefly, laneName, plainly } from "./readout.js";
import { REASONS } from "./reasons.js";
import { scaleBarSeconds } from "./timeline.js";

const QUEUE_HEIGHT = 58;
const AXIS_HEIGHT = 36;
const MARKER_HEIGHT = 11;
const SYMBOL_HEIGHT = 11;
const MOST_LANES_HEIGHT = 340;
const LANE_HEIGHTS = [150, 150, 118, 96, 76];
const LOW_LANE_HEIGHT = 46;
/** Rows that the height of a lane has at least, so that a batch of one looks small. */
const LEAST_ROWS = 4;
const EDGE = 6;
const RIGHT_MARGIN = 10;
const FONT = "11px system-ui, sans-serif";
const SMALL_FONT = "10px system-ui, sans-serif";

/** Return where the lanes of batches stand, those of the `served` model that are at rest, too, and how high all is. */
export function layoutOf(batches, served) {
  const lanes = new Map(Array.from({ length: served?.lanes.lanes ?? 0 }, (_, lane) => [lane, []]));
  for (const batch of batches) {
    if (!lanes.has(batch.lane)) lanes.set(batch.lane, []);
    lanes.get(batch.lane).push(batch);
  }
  const height = LANE_HEIGHTS[lanes.size] ?? LOW_LANE_HEIGHT;
  const sorted = [...lanes].sort(([one], [other]) => one - other);
  const rows = sorted.map(([lane, own], place) => ({ lane, batches: own, top: place * height, height }));
  const largest = Math.max(LEAST_ROWS, ...batches.flatMap(({ bucket, rows: filled }) => [bucket, filled]));
  const contentHeight = QUEUE_HEIGHT + rows.length * height + AXIS_HEIGHT;
  return { rows, largest, contentHeight, canvasHeight: Math.min(contentHeight, QUEUE_HEIGHT + MOST_LANES_HEIGHT + AXIS_HEIGHT) };
}

/** Return the part of a canvas of that width on which time runs. */
export function plotOf(width) {
  const left = width < 500 ? 64 : 80;
  return { left, right: width - RIGHT_MARGIN, width: Math.max(1, width - RIGHT_MARGIN - left) };
}

/** Return what draws on `canvas`. */
export function stripOn(canvas) {
  const pen = canvas.getContext("2d");
  const symbols = new Map(REASONS.map(({ name, path }) => [name, new Path2D(path)]));
  let palette = null;
  let bars = [];

  /** Read colours again, after the scheme changed. */
  function recolour() {
    const named = (name) => colour(`--${name}`);
    const reasons = new Map(REASONS.map(({ name }) => [name, named(`reason-${name}`)]));
    palette = { reasons, hatches: new Map() };
    for (const name of ["ink", "muted", "line", "bg", "bad", "own", "accent"]) palette[name] = named(name);
  }

  function hatch(reason) {
    const ratio = window.devicePixelRatio;
    const key = `${reason} ${ratio}`;
    if (palette.hatches.has(key)) return palette.hatches.get(key);
    const size = Math.round(5 * ratio);
    const tile = document.createElement("canvas");
    tile.width = tile.height = size;
    const ink = tile.getContext("2d");
    ink.strokeStyle = palette.reasons.get(reason) ?? palette.muted;
    ink.lineWidth = 1.1 * ratio;
    for (const shift of [-size, 0, size]) {
      ink.moveTo(shift - 1, size + 1);
      ink.lineTo(shift + size + 1, -1);
    }
    ink.stroke();
    const pattern = pen.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(1 / ratio));
    palette.hatches.set(key, pattern);
    return pattern;
  }

  function line(x1, y1, x2, y2, style, width = 1) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(x1, y1);
    pen.lineTo(x2, y2);
    pen.stroke();
  }

  /** Draw a line from one side of the plot to the other. */
  function across(plot, y, style) {
    line(plot.left, y, plot.right, y, style);
  }

  function box(x, y, width, height, style, lineWidth) {
    pen.strokeStyle = style;
    pen.lineWidth = lineWidth;
    pen.strokeRect(x, y, width, height);
  }

  function fill(x, y, width, height, style, alpha = 1) {
    pen.globalAlpha = alpha;
    pen.fillStyle = style;
    pen.fillRect(x, y, width, height);
    pen.globalAlpha = 1;
  }

  function text(words, x, y, { align = "left", style = palette.muted, font = FONT } = {}) {
    pen.font = font;
    pen.textAlign = align;
    pen.fillStyle = style;
    pen.fillText(words, x, y);
  }

  /** Do `draw` with all outside of a rectangle left as it is. */
  function within(x, y, width, height, draw) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    draw();
    pen.restore();
  }

  /** Draw a view of that width and scroll position in pixels, with its `right` of the timeline at the right edge. */
  function draw(view, width, scrollTop) {
    if (palette === null) recolour();
    const height = view.layout.canvasHeight;
    const ratio = window.devicePixelRatio;
    const pixels = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) {
      [canvas.width, canvas.height] = pixels;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const plot = plotOf(width);
    const xOf = (time) => plot.right - view.right + view.timeline.xOf(time);
    const axisTop = height - AXIS_HEIGHT;
    bars = [];
    within(plot.left, 0, plot.width + 2, height, () => drawBreaks(view, plot, axisTop));
    drawQueue(view, plot, xOf);
    within(0, QUEUE_HEIGHT, width, axisTop - QUEUE_HEIGHT, () => {
      for (const row of view.layout.rows) {
        const top = QUEUE_HEIGHT + row.top - scrollTop;
        if (top + row.height < QUEUE_HEIGHT || top > axisTop) continue;
        drawLane(row, top, plot, view, xOf);
      }
    });
    drawAxis(view, plot, axisTop, height, width);
    if (view.selected) drawSelected(view, plot, xOf, axisTop);
  }

  function drawBreaks(view, plot, axisTop) {
    for (const piece of view.timeline.pieces) {
      if (piece.kind !== "break") continue;
      const x = plot.right - view.right + piece.x;
      if (x + piece.width < plot.left || x > plot.right) continue;
      const middle = x + piece.width / 2;
      fill(x + 3, 0, piece.width - 6, axisTop, palette.bg);
      if (!piece.known) text("•••", middle, axisTop + 4, { align: "center" });
      else for (const x of [middle - 4.5, middle + 0.5]) line(x, axisTop + 5, x + 4, axisTop - 5, palette.muted, 1.5);
      text(briefly(piece.to - piece.from), middle, axisTop + 15, { align: "center", font: SMALL_FONT });
    }
  }

  function drawQueue(view, plot, xOf) {
    const bottom = QUEUE_HEIGHT - 14;
    const top = 18;
    text("queue,", EDGE, bottom - 12);
    text("rows", EDGE, bottom);
    text("0", plot.left - 6, bottom, { align: "right", font: SMALL_FONT });
    across(plot, bottom, palette.line);
    const from = view.timeline.timeOf(view.right - plot.width);
    const until = view.timeline.timeOf(view.right);
    const first = Math.max(0, view.depths.findLastIndex((depth) => depth.now <= from));
    const shown = view.depths.slice(first).filter((depth) => depth.now <= until);
    const most = shown.reduce((best, depth) => (depth.rows > best.rows ? depth : best), { rows: 0, now: from });
    if (most.rows === 0) return;
    const yOf = (rows) => bottom - ((bottom - top) * rows) / most.rows;
    within(plot.left, 0, plot.width, QUEUE_HEIGHT, () => {
      pen.beginPath();
      pen.moveTo(plot.left, bottom);
      let y = bottom;
      for (const depth of shown) {
        const x = Math.max(plot.left, xOf(depth.now));
        pen.lineTo(x, y);
        y = yOf(depth.rows);
        pen.lineTo(x, y);
      }
      pen.lineTo(plot.right, y);
      pen.strokeStyle = palette.accent;
      pen.lineWidth = 1.5;
      pen.stroke();
      pen.lineTo(plot.right, bottom);
      pen.globalAlpha = 0.16;
      pen.fillStyle = palette.accent;
      pen.fill();
      pen.globalAlpha = 1;
    });
    const words = `most ${count(most.rows)}`;
    const place = Math.max(plot.left + 2, Math.min(plot.right - 56, xOf(most.now)));
    text(words, place, top - 5, { style: palette.accent });
  }

  function drawLane(row, top, plot, view, xOf) {
    const { largest } = view.layout;
    const base = top + row.height - SYMBOL_HEIGHT;
    const full = row.height - SYMBOL_HEIGHT - MARKER_HEIGHT;
    text(laneName(row.lane), EDGE, base - full / 2 + 4, { style: palette.ink });
    text(count(largest), plot.left - 6, base - full + 4, { align: "right", font: SMALL_FONT });
    pen.setLineDash([2, 4]);
    across(plot, Math.round(base - full) - 0.5, palette.line);
    pen.setLineDash([]);
    across(plot, Math.round(base) + 0.5, palette.muted);
    within(plot.left, top, plot.width + 2, row.height, () => {
      let free = -Infinity;
      for (const batch of row.batches) {
        const x = xOf(batch.started);
        const end = xOf(batch.started + batch.compute);
        if (end < plot.left || x > plot.right) continue;
        const width = Math.max(1.5, end - x > 5 ? end - x - 1 : end - x);
        const rowsHeight = Math.max(3, (full * batch.rows) / largest);
        const height = Math.max(rowsHeight, (full * batch.bucket) / largest);
        const bar = { batch, row, x, width, base, top: base - height };
        bars.push(bar);
        drawBar(bar, rowsHeight, view.isLit(batch));
        const middle = x + width / 2;
        if (middle - free >= 8) {
          drawSymbol(batch.reason, middle, base + 6);
          free = middle;
        }
      }
    });
  }

  function drawBar({ batch, x, width, base, top }, rowsHeight, lit) {
    const own = palette.reasons.get(batch.reason) ?? palette.muted;
    const alpha = batch.failed ? 0.3 : 1;
    const padding = base - rowsHeight - top;
    if (lit) fill(x - 3, 0, width + 6, base, palette.own, 0.22);
    fill(x, base - rowsHeight, width, rowsHeight, own, alpha);
    if (padding > 0.5) {
      fill(x, top, width, padding, hatch(batch.reason), alpha);
      if (width > 5) box(x + 0.5, top + 0.5, width - 1, padding, own, 1);
    }
    if (batch.failed) {
      box(x + 0.75, top + 0.75, Math.max(1, width - 1.5), base - top - 1.5, palette.bad, 1.5);
      line(x, top, x + width, base, palette.bad, 1.5);
      line(x, base, x + width, top, palette.bad, 1.5);
    }
    if (!lit) {
      if (width >= 13) text(batch.rows, x + width / 2, top - 2, { align: "center", font: SMALL_FONT });
      return;
    }
    box(x - 1, top - 1, width + 2, base - top + 1, palette.own, 2);
    const middle = x + width / 2;
    pen.fillStyle = palette.own;
    pen.beginPath();
    pen.moveTo(middle - 5, top - 10);
    pen.lineTo(middle + 5, top - 10);
    pen.lineTo(middle, top - 3);
    pen.fill();
  }

  function drawSymbol(reason, x, y) {
    const path = symbols.get(reason);
    if (!path) return;
    pen.save();
    pen.translate(x - 3, y - 3);
    pen.scale(0.75, 0.75);
    pen.fillStyle = palette.reasons.get(reason);
    pen.fill(path);
    pen.restore();
  }

  function drawAxis(view, plot, axisTop, height, width) {
    across(plot, axisTop + 0.5, palette.line);
    const bottom = height - 5;
    const seconds = scaleBarSeconds(view.pixelsPerSecond);
    const length = seconds * view.pixelsPerSecond;
    line(plot.left, bottom - 4, plot.left + length, bottom - 4, palette.ink, 1.5);
    for (const x of [plot.left, plot.left + length]) line(x, bottom - 8, x, bottom, palette.ink, 1.5);
    text(plainly(seconds), plot.left + length + 6, bottom, { style: palette.ink });
    text(width < 500 ? "scale" : "time", EDGE, bottom);
    text(view.wallTime(view.timeline.timeOf(view.right)), plot.right, bottom, { align: "right" });
  }

  function drawSelected(view, plot, xOf, axisTop) {
    const bar = bars.find(({ batch }) => batch === view.selected);
    if (!bar) return;
    const middle = Math.round(bar.x + bar.width / 2) + 0.5;
    within(plot.left - 3, 0, plot.width + 6, axisTop, () => {
      line(middle, 16, middle, QUEUE_HEIGHT - 14, palette.ink);
    });
    within(plot.left - 3, QUEUE_HEIGHT, plot.width + 6, axisTop - QUEUE_HEIGHT, () => {
      box(bar.x - 2, bar.top - 2, bar.width + 4, bar.base - bar.top + 3, palette.ink, 2);
    });
  }

  /** The batch that is drawn at a place on the canvas, or next to it in that lane; null: none is near. */
  function batchAt(x, y) {
    let best = null;
    let least = 9;
    if (y < QUEUE_HEIGHT) return null; // lanes may be scrolled below the queue
    for (const bar of bars) {
      if (y < bar.base + SYMBOL_HEIGHT - bar.row.height || y >= bar.base + SYMBOL_HEIGHT) continue;
      const distance = x < bar.x ? bar.x - x : Math.max(0, x - bar.x - bar.width);
      if (distance < least) [best, least] = [bar.batch, distance];
    }
    return best;
  }

  return { draw, recolour, batchAt };
}

/** Return the scroll position that shows a lane's row on a canvas of that height, the present one if it does. */
export function scrollTo(row, scrollTop, layout) {
  const shown = layout.canvasHeight - QUEUE_HEIGHT - AXIS_HEIGHT;
  if (row.top < scrollTop) return row.top;
  return Math.max(scrollTop, row.top + row.height - shown);
}
