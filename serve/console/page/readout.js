/**
 * A batch in words and numbers: below the strip, in the table, and spoken.
 */

import { count, h, milliseconds, percent, replace, roughly, table } from "./dom.js";
import { meaningOf } from "./reasons.js";

/** Name of a lane: the one numbered -1 has all cores, while no other works. */
export function laneName(lane) {
  return lane === -1 ? "all cores" : `lane ${lane}`;
}

/** A time in s as a few characters: "80 ms", "3.2 s", "12 min", "2 days". */
export function briefly(seconds) {
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 99.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  if (seconds < 5970) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

/** A time in s without zeros at its end: "0.5 ms", "20 ms". */
export function plainly(seconds) {
  return milliseconds(1000 * seconds).replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " ");
}

/** What is told of a batch, each with its name. */
const COLUMNS = [
  ["Batch", (batch) => count(batch.n) + (batch.failed ? " (failed)" : "")],
  ["Model", (batch) => `${batch.model} ${batch.version}`],
  ["Ran on", (batch) => laneName(batch.lane)],
  ["Rows of bucket", (batch) => `${count(batch.rows)} of ${count(batch.bucket)}`],
  ["Padding", (batch) => percent(1 - batch.rows / batch.bucket, 0)],
  ["Compute", (batch) => milliseconds(1000 * batch.compute)],
  ["Whole", (batch) => milliseconds(1000 * (batch.finished - batch.started))],
  ["Oldest waited", (batch) => milliseconds(1000 * batch.waited)],
  ["Started", (batch, wallTime) => wallTime(batch.started)],
];

const HINT = "Point at a bar, touch it, or focus the strip and press the arrow keys: its numbers stand here.";

/** Show a batch's numbers in `element`, or, for null, how to get them. */
export function showNumbers(element, batch, wallTime) {
  const valueOf = (tell) => h("dd", batch ? tell(batch, wallTime) : "–");
  const why = batch ? ["Left as ", h("strong", batch.reason), `: ${meaningOf(batch.reason)}.`] : HINT;
  replace(element, h("dl", COLUMNS.map(([name, tell]) => h("div", h("dt", name), valueOf(tell)))), h("p", why));
}

/** The same as a sentence, for who listens. */
export function sentenceOf(batch, lit, wallTime) {
  const numbers = COLUMNS.map(([name, valueOf]) => `${name} ${valueOf(batch, wallTime)}`);
  return `${lit ? "Yours. " : ""}${numbers.join(", ")}. Left as ${batch.reason}: ${meaningOf(batch.reason)}.`;
}

/** Return a table of batches, the last one first. */
export function batchTable(batches, isLit, wallTime) {
  const row = (batch) => [...COLUMNS.map(([, tell]) => tell(batch, wallTime)), batch.reason, isLit(batch) ? "yours" : "–"];
  return table(null, [...COLUMNS.map(([name]) => name), "Left as", "Whose"], batches.toReversed().map(row));
}

/** What happened in the `seconds` before `now` as text: batches a second, rows, padding; or for how long none came. */
export function activityOf(batches, now, seconds) {
  if (batches.length === 0) return "no batch yet";
  const newest = Math.max(...batches.map(({ finished }) => finished));
  if (now - newest > seconds) return `idle for ${briefly(now - newest)}`;
  const late = batches.filter(({ finished }) => finished > now - seconds);
  const sum = (valueOf) => late.reduce((total, batch) => total + batch.weight * valueOf(batch), 0);
  const [number, rows, buckets] = [sum(() => 1), sum((batch) => batch.rows), sum((batch) => batch.bucket)];
  // A busy server's batches are kept for less than those seconds.
  const rate = number / (late.length === batches.length ? Math.max(0.1, now - late[0].started) : seconds);
  return `${roughly(rate)} batches/s, ${(rows / number).toFixed(1)} rows each, ${percent(1 - rows / buckets, 0)} padding`;
}
