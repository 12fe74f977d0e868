/**
 * The elements around the strip, before anything is shown.
 */

import { h, scrolling, symbol } from "./dom.js";
import { REASONS, signsOf } from "./reasons.js";

const PAUSE = "M1 0H4V10H1ZM6 0H9V10H6Z";
export const TABLE_ROWS = 20;

const INTRO =
  "Each bar is one batch: pictures of several requests, computed together. Wide: it took long. High: it has many rows, " +
  "a picture each. The newest is at the right.";

/** Return those that change by name, and `all` that stand in the section. */
export function elementsOf() {
  const canvas = h("canvas", {
    tabindex: "0",
    role: "application",
    "aria-roledescription": "strip of batches",
    "aria-label": "Batches by time. Left and right walk along time, up and down between lanes, Home and End to the ends; Space pauses.",
    "aria-describedby": "batches-summary",
  });
  const pauseButton = h("button.pause", { type: "button", "aria-pressed": "false" }, symbol(10, PAUSE), h("span", "Pause"));
  const [rest, activity] = [h("div"), h("span")];
  const sampling = h("span.sampling", { hidden: true });
  const scroller = h("div.scroller", { hidden: true }, canvas, rest);
  const empty = h(
    "div.no-batch",
    h("p", "No batch yet. Each one that the server computes stands here as a bar, as soon as it is done."),
    h("p.muted", "Drop a picture above to see the batch that it rides in, or press Load below to see many form."),
  );
  const stripBox = h("div.strip", empty, scroller);
  const readout = h("div.readout");
  const spoken = h("p.visually-hidden", { "aria-live": "polite" });
  const summary = h("p.visually-hidden", { id: "batches-summary" });
  const latest = scrolling("The latest batches");
  const details = h("details", h("summary", `The latest ${TABLE_ROWS} batches as a table`), latest);
  const bar = h("div.row.batches-bar", pauseButton, activity, sampling);
  const all = [h("p.muted", INTRO), bar, stripBox, summary, spoken, readout, legendElement(), details];
  return { all, canvas, rest, latest, pauseButton, activity, sampling, scroller, empty, stripBox, readout, spoken, summary, details };
}

function legendElement() {
  const item = (signs, name, meaning) => h("li", h("span.swatch", signs), h("span", h("strong", name), ` ${meaning}`));
  const kind = (name, meaning) => item(h(`span.batch-${name}`), name, meaning);
  return h(
    "ul.legend",
    { "aria-label": "Legend" },
    REASONS.map((reason) => item(signsOf(reason), reason.name, reason.meaning)),
    kind("padding", "rows without a picture, up to a size that is computed"),
    kind("yours", "it has a picture of this page, ▼ above it"),
    kind("failed", "its computation raised an error"),
  );
}
