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
  figure.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
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
  const sideOf = (x, margin, side) => (x < MARGIN.left + margin ? "start" : x > right - margin ? "end" : side);
  const mark = (name, seconds, side) => {
    const x = xOf(seconds);
    const anchor = sideOf(x, 36, side);
    const upright = svg("line.quantile", { x1: x, x2: x, y1: MARGIN.top - 12, y2: bottom });
    return [upright, label(name, x + (anchor === "end" ? -4 : 4), MARGIN.top - 4, anchor, "strong")];
  };
  const limitMark = () => {
    const x = xOf(limit);
    const words = `${limitName} ${plainly(limit)}`;
    const upright = svg("line.limit", { x1: x, x2: x, y1: 16, y2: bottom });
    return [upright, label(words, x, 11, sideOf(x, 50, "middle"), "limit-name")];
  };
  const titles = [label("requests", 0, 11, "start"), label("time to the answer", right, HEIGHT - 3, "end")];
  const marks = [mark("p50", p50, "end"), mark("p99", p99, "start"), limit === null ? [] : limitMark()];
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
