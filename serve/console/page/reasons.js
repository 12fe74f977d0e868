/**
 * Why batches leave: names, meanings, and symbols, as colour alone tells nothing to many.
 */

import { h, symbol } from "./dom.js";

/** Each reason with its meaning and the path of its symbol in a box of 8 x 8. */
export const REASONS = [
  { name: "full", meaning: "it has all the rows that a batch may have now", path: "M1 1H7V7H1Z" },
  { name: "idle", meaning: "its lane had nothing to do, and took what came", path: "M4 1A3 3 0 1 0 4 7A3 3 0 1 0 4 1Z" },
  { name: "next", meaning: "its lane took what had come while it computed the batch before", path: "M1.5 .5L7.5 4L1.5 7.5Z" },
  { name: "deadline", meaning: "it would have waited or been larger but for a request's deadline", path: "M4 0L8 4L4 8L0 4Z" },
  { name: "delay", meaning: "it waited as long as --max-delay-ms allows", path: "M.5 .5H7.5L.5 7.5H7.5Z" },
  { name: "drain", meaning: "the server ends", path: "M.5 1H7.5L4 7.5Z" },
];

/** The words for a reason's name. */
export function meaningOf(name) {
  return REASONS.find((reason) => reason.name === name)?.meaning ?? "a reason that this page doesn't know";
}

/** What a legend shows of a reason: its colour and its symbol. */
export function signsOf({ name, path }) {
  const sign = symbol(8, path);
  const bar = h("span");
  bar.style.background = sign.style.fill = `var(--reason-${name})`;
  return [bar, sign];
}
