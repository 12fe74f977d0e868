/**
 * What a picture is, as the server says, and PyTorch's answer beside it where one is known.
 */

import { h, percent, table, track } from "./dom.js";

/** Most probable classes that are shown. */
export const SHOWN = 5;

/** Return the table of an answer's most probable classes; PyTorch's probabilities are those of `reference`. */
export function predictionsTable({ predictions, reference, model }) {
  const ofTorch = new Map(reference?.predictions.map((prediction) => [prediction.index, prediction]));
  const isMultiLabel = model.task === "multi-label";
  const columns = reference ? 4 : 3;
  const row = ({ index, label, probability }) => {
    const torch = ofTorch.get(index);
    const bar = track(0, probability);
    // A line on the served one's bar.
    if (torch) bar.append(track(0, torch.probability, "mark").firstChild);
    const name = h("span.label.clamped", { title: `class ${index}: ${label}` }, label);
    return [name, bar, percent(probability, 2), percent(torch?.probability, 2)].slice(0, columns);
  };
  const caption = isMultiLabel
    ? "Each label's probability is its own, whatever the others': from 50 % on, it is customarily taken to hold."
    : "Most probable classes";
  const heads = ["Class", null, "Served#", "PyTorch#"].slice(0, columns);
  const widths = ["named", "bars", "figure", "figure"].slice(0, columns);
  return table(caption, heads, predictions.slice(0, SHOWN).map(row), { isQuiet: !isMultiLabel, widths });
}

/** Return how far the served answer is from PyTorch's, over the classes that both have; null without a reference. */
export function comparison({ predictions, reference }) {
  if (!reference) return null;
  const served = new Map(predictions.map(({ index, probability }) => [index, probability]));
  const common = reference.predictions.filter(({ index }) => served.has(index));
  const largest = Math.max(...common.map(({ index, probability }) => Math.abs(served.get(index) - probability)));
  const best = reference.predictions[0];
  const isSame = best.index === predictions[0].index;
  const [all, missing] = [reference.predictions.length, reference.predictions.length - common.length];
  const verdict = isSame ? "✓ PyTorch's answer" : `✗ PyTorch says ${best.label}`;
  return h(
    "p",
    h("strong", { class: isSame ? "good" : "bad" }, verdict),
    common.length > 0 && `; largest difference of a probability ${points(largest)}`,
    missing > 0 && `; ${missing} of PyTorch's first ${all} are not among the first ${predictions.length} served`,
  );
}

/** Text of a difference of probabilities, which is often tiny: "0.000012 percentage points". */
function points(difference) {
  if (difference === 0) return "0";
  const value = difference * 100;
  return `${value < 1e-6 ? "below 0.000001" : Number(value.toPrecision(2))} percentage points`;
}
