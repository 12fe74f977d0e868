/**
 * Where the time of one request went, from when the browser sent it to when it had the answer.
 */

import { h, milliseconds, plural, table, track } from "./dom.js";
import { laneName } from "./readout.js";
import { meaningOf } from "./reasons.js";

/** Return where a request's time went, in ms from when it was sent, by the server's own account of it. */
export function accountOf({ took, followed }, batch) {
  const ms = (time) => (time - followed.arrived) * 1000;
  // Pixels need no decoding: they wait from when they were admitted.
  const decoded = ms(followed.decoded ?? followed.submitted);
  const decode = Math.min(decoded, 1000 * (followed.decode ?? 0));
  const started = ms(batch.started);
  const finished = ms(batch.finished);
  const compute = Math.min(finished - started, batch.compute * 1000);
  const answered = ms(followed.answered);
  return {
    total: took,
    server: answered,
    parts: [
      ["read", "and checked", 0, decoded - decode],
      ["decode", "resized and cropped", decoded - decode, decoded],
      ["wait", "for its batch", decoded, started, "waiting"],
      ["batch", "handed over and back", started, finished - compute],
      ["compute", "the backend's call", finished - compute, finished, "compute"],
      ["answer", "written", finished, answered],
      ["network", "and browser, both ways", answered, Math.max(answered, took), "waiting"],
    ],
    note: `${plural(batch.rows, "row")} in a batch for ${batch.bucket}, on ${laneName(batch.lane)}; it left as ${batch.reason}: ${meaningOf(batch.reason)}.`,
  };
}

/** Return the same by the timing that the answer carries, which tells less. */
export function accountOfTiming({ took, timing }) {
  const decoded = timing.preprocess_ms ?? 0;
  const waited = decoded + (timing.queue_ms ?? 0);
  const computed = waited + (timing.compute_ms ?? 0);
  return {
    total: took,
    server: null,
    parts: [
      ["decode", "resized and cropped", 0, decoded],
      ["wait", "for its batch", decoded, waited, "waiting"],
      ["compute", "its batch", waited, computed, "compute"],
      ["network", "and answer, browser", computed, Math.max(computed, took), "waiting"],
    ],
    note: `${plural(timing.batch_rows ?? 1, "row")} in its batch. By the answer's own timing: the server's events of it didn't come.`,
  };
}

/** Return what shows an account: one bar for each part, on one axis of time, and its ms as text. */
export function waterfallTable({ total, server, parts, note }) {
  const end = Math.max(total, ...parts.map(([, , , finish]) => finish));
  const row = ([name, what, from, to, kind]) => [
    h("span", name, h("span.muted.what", ` ${what}`)),
    track(Math.max(0, from) / end, Math.max(0, from, to) / end, kind),
    milliseconds(Math.max(0, to - from)),
  ];
  const inServer = server === null ? "" : `, ${milliseconds(server)} of it in the server`;
  return [
    h("h4", `${milliseconds(total)} from sending to answer${inServer}`),
    table("Where the time of this request went", ["Part", null, "Time#"], parts.map(row), {
      isQuiet: true,
      isHeadless: true,
      widths: ["named", "bars", "figure"],
    }),
    h("p.muted", note),
  ];
}
