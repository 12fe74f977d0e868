/**
 * Why batches leave: their names, meanings, colours and, since colour alone tells nothing to many, symbols.
 */

import { colour, svg } from "./dom.js";

/** Each reason with its meaning and the path of its symbol in a box of 8 x 8. */
export const REASONS = [
  { name: "full", meaning: "it has all the rows that a batch may have now", path: "M1 1H7V7H1Z" },
  { name: "idle", meaning: "its lane had nothing to do, and took what came", path: "M4 1A3 3 0 1 0 4 7A3 3 0 1 0 4 1Z" },
  { name: "next", meaning: "its lane took what had come while it computed the batch before", path: "M1.5 .5L7.5 4L1.5 7.5Z" },
  { name: "deadline", meaning: "it left for the deadline of a request in it", path: "M4 0L8 4L4 8L0 4Z" },
  { name: "delay", meaning: "it waited as long as --max-delay-ms allows", path: "M.5 .5H7.5L.5 7.5H7.5Z" },
  { name: "drain", meaning: "the server ends", path: "M.5 1H7.5L4 7.5Z" },
];

const BY_NAME = new Map(REASONS.map((reason) => [reason.name, reason]));

/** The words for a reason's name; those of a reason that this page doesn't know say so. */
export function meaningOf(name) {
  return BY_NAME.get(name)?.meaning ?? "a reason that this page doesn't know";
}

/** Path2D of each reason's symbol, in a box of 8 x 8. */
export function symbolPaths() {
  return new Map(REASONS.map((reason) => [reason.name, new Path2D(reason.path)]));
}

/** Colour of each reason in the scheme of now. */
export function reasonColours() {
  return new Map(REASONS.map((reason) => [reason.name, colour(`--reason-${reason.name}`)]));
}

/** An SVG element with a reason's symbol in its colour. */
export function symbolElement(reason) {
  const path = svg("path", { d: reason.path, class: `fill-${reason.name}` });
  return svg("svg", { viewBox: "0 0 8 8", width: 10, height: 10, "aria-hidden": "true" }, path);
}
