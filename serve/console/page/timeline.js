/**
 * Time as a line of pixels on which work is to scale and idle time is short. Pure functions: no clock, no canvas.
 */

/** Widths in pixels: of the longest gap that is drawn to scale, of the mark that stands for longer ones. */
const LONGEST_GAP = 52;
const BREAK_WIDTH = 40;
/** About that of the scale bar. */
const SCALE_BAR_WIDTH = 80;

/** Width in pixels that a batch of the typical compute time has, and the range in which its scale is kept. */
const TYPICAL_WIDTH = 14;
const NARROWEST = 8;
const WIDEST = 28;

/**
 * Return where each moment is drawn, from x = 0 for the earliest start on.
 *
 * Moments in which any interval runs are to scale, so overlapping intervals keep their relation in time. A gap in which
 * none runs is to scale up to LONGEST_GAP, a break of BREAK_WIDTH above.
 *
 * @param {Array<{started: number, finished: number, follows: boolean}>} intervals In any order, in s; `follows`: none is
 *   left out just before it, so that a gap there is one, and its piece `known`.
 */
export function timelineOf(intervals, pixelsPerSecond) {
  const pieces = [];
  let x = 0;
  const append = (from, to, kind, width, known) => {
    pieces.push({ from, to, x, width, kind, known });
    x += width;
  };
  let last = null;
  for (const busy of unionOf(intervals)) {
    if (last !== null) {
      const width = (busy.from - last) * pixelsPerSecond;
      const isLong = width > LONGEST_GAP;
      append(last, busy.from, isLong ? "break" : "gap", isLong ? BREAK_WIDTH : width, busy.follows);
    }
    append(busy.from, busy.to, "busy", (busy.to - busy.from) * pixelsPerSecond, true);
    last = busy.to;
  }
  const ends = pieces.map((piece) => [piece.from, piece.to, piece.x, piece.x + piece.width]);
  const turned = ends.map(([from, to, left, right]) => [left, right, from, to]);
  return {
    pieces,
    width: x,
    xOf: (time) => mapped(time, ends),
    timeOf: (place) => mapped(place, turned),
  };
}

/** Return the pixels per second for batches of that typical compute time: `current` as long as it suits them, else anew. */
export function steadyScale(current, typicalSeconds) {
  const seconds = Math.max(typicalSeconds, 1e-6);
  if (current !== null && current * seconds >= NARROWEST && current * seconds <= WIDEST) return current;
  return 100 / nearestStep((100 * seconds) / TYPICAL_WIDTH);
}

/** Return the seconds of a scale bar: 1, 2 or 5 times a power of ten. */
export function scaleBarSeconds(pixelsPerSecond) {
  return nearestStep(SCALE_BAR_WIDTH / pixelsPerSecond);
}

/** Median of numbers, 0 for none. */
export function median(numbers) {
  if (numbers.length === 0) return 0;
  return Float64Array.from(numbers).sort()[numbers.length >> 1];
}

function nearestStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 5, 10].map((step) => step * power);
  const distance = (step) => Math.abs(Math.log(step / value));
  return steps.reduce((best, step) => (distance(step) < distance(best) ? step : best));
}

/** Return the moments in which any of the intervals runs, earliest first. */
function unionOf(intervals) {
  const sorted = [...intervals].sort((one, other) => one.started - other.started);
  const union = [];
  for (const { started, finished, follows } of sorted) {
    const last = union.at(-1);
    if (last && started <= last.to) {
      last.to = Math.max(last.to, finished);
      last.follows &&= follows;
    } else union.push({ from: started, to: Math.max(started, finished), follows });
  }
  return union;
}

/** Return where `value` is in the piece [from, to] in which it falls, on the scale of that piece's [start, end]. */
function mapped(value, pieces) {
  let low = 0;
  let high = pieces.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pieces[middle][0] <= value) low = middle;
    else high = middle - 1;
  }
  const [from, to, start, end] = pieces[low] ?? [0, 0, 0, 0];
  const share = to > from ? (value - from) / (to - from) : 0;
  return start + (end - start) * Math.min(1, Math.max(0, share));
}
