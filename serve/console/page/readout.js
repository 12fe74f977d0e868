/**
 * A batch in words and numbers: below the strip, in the table, and spoken.
 */

import { count, h, milliseconds, percent, plural, replace } from "./dom.js";
import { meaningOf } from "./reasons.js";

/** Name of a lane: the one numbered -1 has all cores, while no other works. */
export function laneName(lane) {
  return lane === -1 ? "all cores" : `lane ${lane}`;
}

/** A time in s as a few characters: "80 ms", "3.2 s", "12 min". */
export function briefly(seconds) {
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5970) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Each number of a batch with its name, in the order in which they are shown. */
function numbersOf(batch, wallTime) {
  return [
    ["Batch", `${count(batch.n)}${batch.failed ? " failed" : ""}`],
    ["Model", `${batch.model} ${batch.version}`],
    ["Lane", laneName(batch.lane)],
    ["Rows of bucket", `${count(batch.rows)} of ${count(batch.bucket)}`],
    ["Padding", percent(paddingOf(batch), 0)],
    ["Compute", milliseconds(1000 * batch.compute)],
    ["Whole", milliseconds(1000 * (batch.finished - batch.started))],
    ["Oldest waited", milliseconds(1000 * batch.waited)],
    ["Started", wallTime(batch.started)],
  ];
}

/** Share of a batch's bucket that is padding. */
function paddingOf({ rows, bucket }) {
  return bucket > 0 ? (bucket - rows) / bucket : 0;
}

/** Show a batch's numbers in `element`, or, for none, how to get them. */
export function showNumbers(element, batch, wallTime) {
  if (batch === null) {
    replace(element, h("p", { class: "muted" }, "Point at a bar, touch it, or focus the strip and press the arrow keys: its numbers stand here."));
    return;
  }
  const numbers = numbersOf(batch, wallTime).map(([name, value]) =>
    h("div", { class: name === "Batch" && batch.failed ? "bad" : null }, h("dt", { text: name }), h("dd", { text: value })),
  );
  const why = h("p", {}, "Left as ", h("strong", { text: batch.reason }), `: ${meaningOf(batch.reason)}.`);
  replace(element, h("dl", {}, numbers), why);
}

/** A batch as a sentence, for who listens. */
export function sentenceOf(batch, lit) {
  const failed = batch.failed ? ", failed" : "";
  return (
    `${lit ? "Yours: " : ""}Batch ${batch.n}${failed}, ${batch.model} ${batch.version}, ${laneName(batch.lane)}: ` +
    `${batch.rows} of ${plural(batch.bucket, "row")}, computed in ${milliseconds(1000 * batch.compute)}, ` +
    `oldest waited ${milliseconds(1000 * batch.waited)}. ${batch.reason}: ${meaningOf(batch.reason)}.`
  );
}

/** What has happened in the seconds before `now`, as text: batches a second, rows, padding; or for how long none came. */
export function activityOf(batches, now, seconds) {
  if (batches.length === 0) return "no batch yet";
  const newest = batches.reduce((latest, batch) => Math.max(latest, batch.finished), -Infinity);
  if (now - newest > seconds) return `idle for ${briefly(now - newest)}`;
  const from = Math.max(now - seconds, batches.length > 1 ? batches[0].finished : -Infinity);
  const late = batches.filter((batch) => batch.finished > from);
  const sum = (value) => late.reduce((total, batch) => total + batch.weight * value(batch), 0);
  const number = sum(() => 1);
  if (number === 0) return "1 batch";
  const rows = sum((batch) => batch.rows);
  const buckets = sum((batch) => batch.bucket);
  const rate = number / Math.max(0.1, now - from);
  return (
    `${count(Number(rate.toFixed(rate < 10 ? 1 : 0)))} batches/s, ${(rows / number).toFixed(1)} rows each, ` +
    `${percent(buckets > 0 ? 1 - rows / buckets : 0, 0)} padding`
  );
}

/** Show the latest batches in the body of a table, newest first. */
export function fillTable(body, batches, isLit, wallTime) {
  replace(
    body,
    [...batches].reverse().map((batch) =>
      h("tr", {}, [
        h("th", { scope: "row", class: "number", text: count(batch.n) }),
        h("td", { text: `${batch.model} ${batch.version}` }),
        h("td", { text: laneName(batch.lane) }),
        h("td", { class: "number", text: `${batch.rows} of ${batch.bucket}` }),
        h("td", { class: "number", text: milliseconds(1000 * batch.compute) }),
        h("td", { class: "number", text: milliseconds(1000 * batch.waited) }),
        h("td", { text: batch.reason }),
        h("td", { text: [batch.failed && "failed", isLit(batch) && "yours"].filter(Boolean).join(", ") || "ok" }),
        h("td", { class: "number", text: wallTime(batch.started) }),
      ]),
    ),
  );
}

/** The head of that table. */
export function tableHead() {
  const names = ["Batch", "Model", "Lane", "Rows", "Compute", "Oldest waited", "Reason", "Outcome", "Started"];
  return h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col", text: name }))));
}
