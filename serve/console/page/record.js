/**
 * The batches and queue depths that the page keeps. Nothing here grows: what is kept is bounded by these constants.
 */

import { modelKey } from "./versions.js";

export const KEPT_BATCHES = 400;
const KEPT_MODELS = 32;
const KEPT_DEPTHS = 1200;
const SAMPLING_SECONDS = 3;

/** Key of a batch among those of its model. */
export function batchKey({ process, n }) {
  return `${process} ${n}`;
}

/** Return an empty record: `add` and `addDepths` take events of the feed, the others tell of a model. */
export function emptyRecord() {
  let byModel = new Map();
  let depths = [];
  let events = [];
  const kept = (model) => byModel.get(modelKey(model)) ?? [];

  return {
    /** Keep the batches of an event, of which each stands for seen / number, but for those that are kept already. */
    add({ batches, seen, now }) {
      const weight = Math.max(1, seen / batches.length);
      for (const batch of batches) {
        const key = modelKey(batch);
        const own = byModel.get(key) ?? [];
        if (own.some((one) => batchKey(one) === batchKey(batch))) continue;
        byModel.delete(key); // the model that was heard of last stands last, so that the first one can go
        byModel.set(key, own);
        insert(own, { ...batch, finished: Math.max(batch.finished, batch.started + batch.compute), weight });
      }
      if (byModel.size > KEPT_MODELS) byModel.delete(byModel.keys().next().value);
      events = events.filter((event) => now - event.now < SAMPLING_SECONDS).slice(-KEPT_BATCHES);
      events.push({ now, seen, shown: batches.length });
    },

    /** Keep how many rows wait now. */
    addDepths({ now, queued }) {
      const waiting = queued.filter(({ rows }) => rows > 0);
      if (waiting.length === 0 && depths.at(-1)?.queued.length === 0) return;
      depths.push({ now, queued: waiting });
      if (depths.length > KEPT_DEPTHS) depths.shift();
    },

    /** Forget all, as when a server answers whose clock and numbers are others. */
    clear() {
      [byModel, depths, events] = [new Map(), [], []];
    },

    /** The batches kept by their start, as a copy. */
    batches: (model) => [...kept(model)],

    holds: (batch) => kept(batch).includes(batch),

    /** The rows that waited, [{now, rows}] by time: each number holds until the next. */
    depths: (model) =>
      depths.map(({ now, queued }) => {
        const own = queued.filter((one) => modelKey(one) === modelKey(model));
        return { now, rows: own.reduce((sum, { rows }) => sum + rows, 0) };
      }),

    /** How many batches there were of late for each that came. */
    sampling() {
      const sum = (field) => events.reduce((total, event) => total + event[field], 0);
      return sum("shown") > 0 ? sum("seen") / sum("shown") : 1;
    },
  };
}

/** Put a batch where its start belongs, and drop the oldest above the bound. */
function insert(list, batch) {
  let place = list.length;
  while (place > 0 && list[place - 1].started > batch.started) place -= 1;
  list.splice(place, 0, batch);
  if (list.length > KEPT_BATCHES) list.shift();
}
