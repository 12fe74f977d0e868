/**
 * The batches and queue depths that the page keeps. Nothing here grows: what is kept is bounded by the constants below.
 */

/** Batches kept of all models together, and of each model. */
export const KEPT_BATCHES = 400;
const KEPT_MODELS = 32;
const KEPT_DEPTHS = 1200;
const KEPT_LANES = 128;
const RATE_SECONDS = 5;

/** Name of a model's version as a key. */
export function modelKey({ model, name, version }) {
  return `${model ?? name}\n${version}`;
}

/**
 * Return an empty record: `add` and `addDepths` take events of the feed, the other functions tell what is kept of a model,
 * or of all (null).
 */
export function emptyRecord() {
  let all = [];
  let byModel = new Map();
  let depths = [];
  let lanes = new Map();
  let arrivals = [];

  return {
    /** Keep the batches of an event of which `batches` are a sample of `seen`. Those that are kept already are left out. */
    add({ batches, seen, now }) {
      const weight = batches.length > 0 ? Math.max(1, seen / batches.length) : 1;
      for (const batch of batches) {
        const finished = Math.max(batch.finished, batch.started + batch.compute);
        const kept = { ...batch, finished, sampled: weight > 1.01, weight };
        const key = modelKey(kept);
        const own = byModel.get(key) ?? [];
        if (own.some(({ n, process }) => n === kept.n && process === kept.process)) continue;
        byModel.delete(key); // the model that was heard of last stands last, so that the first one can go
        byModel.set(key, own);
        insert(own, kept);
        insert(all, kept);
        const lane = `${key}\n${kept.lane}`;
        lanes.delete(lane);
        lanes.set(lane, { model: kept.model, version: kept.version, lane: kept.lane });
      }
      while (byModel.size > KEPT_MODELS) byModel.delete(byModel.keys().next().value);
      while (lanes.size > KEPT_LANES) lanes.delete(lanes.keys().next().value);
      arrivals = arrivals.filter((arrival) => now - arrival.now < RATE_SECONDS);
      arrivals.push({ now, seen, shown: batches.length });
    },

    /** Keep how many rows wait now. */
    addDepths({ now, queued }) {
      depths.push({ now, queued: queued.filter(({ rows }) => rows > 0) });
      if (depths.length > KEPT_DEPTHS) depths.splice(0, depths.length - KEPT_DEPTHS);
    },

    /** Forget all, as when another server answers, whose clock and numbers are others. */
    clear() {
      [all, byModel, depths, lanes, arrivals] = [[], new Map(), [], new Map(), []];
    },

    /** The batches kept, by their start. A copy, which stays as it is. */
    batches: (model) => [...(model ? (byModel.get(modelKey(model)) ?? []) : all)],

    /** Whether a batch is kept still. */
    holds: (batch) => all.includes(batch) || (byModel.get(modelKey(batch))?.includes(batch) ?? false),

    /** The lanes that have worked, in no order. */
    lanes: (model) => [...lanes.values()].filter((lane) => !model || modelKey(lane) === modelKey(model)),

    /** The rows that waited, [{now, rows}] by time. */
    depths: (model) =>
      depths.map(({ now, queued }) => ({
        now,
        rows: queued.reduce((sum, one) => sum + (!model || modelKey(one) === modelKey(model) ? one.rows : 0), 0),
      })),

    /** How many batches came for each that is shown, of late. */
    sampling() {
      const sum = (field) => arrivals.reduce((total, arrival) => total + arrival[field], 0);
      return sum("shown") > 0 ? sum("seen") / sum("shown") : 1;
    },
  };
}

/** What tells a batch from all others of a server. */
export function identity({ process, model, version, n }) {
  return `${process}\n${model}\n${version}\n${n}`;
}

/** Put a batch where its start belongs, and drop the oldest above the bound. */
function insert(list, batch) {
  let place = list.length;
  while (place > 0 && list[place - 1].started > batch.started) place -= 1;
  list.splice(place, 0, batch);
  if (list.length > KEPT_BATCHES) list.shift();
}
