/**
 * The histogram of answer times as SVG: seconds by logarithm, a line for the time that should be kept.
 */

import { count, svg } from "./dom.js";
import { plainly } from "./readout.js";

const HEIGHT = 210;
const MARGIN = { left: 46, right: 26, top: 36, bottom: 34 };
const LEAST_DECADES = 1.5;

/** Draw into an SVG element that is `width` pixels wide. */
export function drawHistogram(figure, { bins, p50, p99, limit, limitName }, width) {
  figure.setAttribute("width", width);
  figure.setAttribute("height", HEIGHT);
  const bottom = HEIGHT - MARGIN.bottom;
  const right = width - MARGIN.right;
  const [low, high] = rangeOf(bins, limit);
  const xOf = (seconds) => MARGIN.left + ((right - MARGIN.left) * (Math.log10(seconds) - low)) / (high - low);
  const most = roundedUp(Math.max(...bins.map(({ number }) => number)));
  const yOf = (number) => bottom - ((bottom - MARGIN.top) * number) / most;
  const label = (words, x, y, anchor, name = "") => svg("text", { x, y, "text-anchor": anchor, class: name }, words);
  const ticks = [0, most / 2, most].map((number) => [
    svg("line.grid", { x1: MARGIN.left, x2: right, y1: yOf(number), y2: yOf(number) }),
    label(count(Number(number.toPrecision(3))), MARGIN.left - 6, yOf(number) + 4, "end"),
  ]);
  const steps = right - MARGIN.left > 150 * (high - low) ? [1, 2, 5] : [1];
  const times = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const step of steps) {
      const seconds = step * 10 ** power;
      const x = xOf(seconds);
      if (x < MARGIN.left - 1 || x > right + 1) continue;
      times.push(svg("line.tick", { x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      times.push(label(plainly(seconds), x, bottom + 16, "middle"));
    }
  }
  const bars = bins.map(({ from, to, number }) => {
    const x = xOf(from);
    const height = number > 0 ? Math.max(1.5, bottom - yOf(number)) : 0;
    const late = limit !== null && from >= limit * 0.999;
    const barWidth = Math.max(1, xOf(to) - x - 1);
    return svg("rect", { class: late ? "late" : "in-time", x: x + 0.5, y: bottom - height, width: barWidth, height });
  });
  /** An upright line from `top` on, with words beside or above it, that stay within the figure. */
  const mark = (words, seconds, { line, name, top, y, side, margin }) => {
    const x = xOf(seconds);
    const anchor = x < MARGIN.left + margin ? "start" : x > right - margin ? "end" : side;
    const shift = side === "middle" ? 0 : anchor === "end" ? -4 : 4;
    return [svg(`line.${line}`, { x1: x, x2: x, y1: top, y2: bottom }), label(words, x + shift, y, anchor, name)];
  };
  const quantile = { line: "quantile", name: "strong", top: MARGIN.top - 12, y: MARGIN.top - 4, margin: 36 };
  const kept = { line: "limit", name: "limit-name", top: 16, y: 11, side: "middle", margin: 50 };
  const titles = [label("requests", 0, 11, "start"), label("time to the answer", right, HEIGHT - 3, "end")];
  const marks = [mark("p50", p50, { ...quantile, side: "end" }), mark("p99", p99, { ...quantile, side: "start" })];
  if (limit !== null) marks.push(mark(`${limitName} ${plainly(limit)}`, limit, kept));
  figure.replaceChildren(...[ticks, bars, times, titles, marks].flat(3));
}

/** Logarithms of the first and last time that are drawn, to thirds of a power of ten so that they seldom change. */
function rangeOf(bins, limit) {
  const ends = [bins[0].from, bins.at(-1).to, ...(limit === null ? [] : [limit])].map(Math.log10);
  const low = Math.floor(3 * Math.min(...ends) + 1e-9) / 3;
  const high = Math.ceil(3 * Math.max(...ends) - 1e-9) / 3;
  const missing = Math.max(0, LEAST_DECADES - (high - low)) / 2;
  return [low - missing, high + missing];
}

/** The next number above that is 1, 2, 4, 6 or 8 times a power of ten. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value);
}
