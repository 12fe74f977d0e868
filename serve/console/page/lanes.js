/**
 * Which batches ran on which lane.
 */

import { modelKey } from "./versions.js";

/** Rows that the height of a lane has at least, so that a batch of one looks small. */
const LEAST_ROWS = 4;

/** Name of a lane: the one numbered -1 has all cores, while no other works. */
export function laneName(lane) {
  return lane === -1 ? "all cores" : `lane ${lane}`;
}

/** Return the lanes of batches by model, in the server's order, each with its batches by time. */
export function groupsOf(batches, { server, model: chosen }) {
  const models = server?.models ?? [];
  const groups = new Map();
  for (const batch of batches) {
    const key = modelKey(batch);
    if (!groups.has(key)) {
      const place = models.findIndex((model) => modelKey(model) === key);
      const { lanes } = models[place] ?? {};
      const group = { model: batch.model, version: batch.version, place, largest: LEAST_ROWS, lanes: new Map() };
      // The lanes of the only model stand still, whether or not they work.
      if (chosen) for (let lane = 0; lane < (lanes?.lanes ?? 0); lane += 1) group.lanes.set(lane, []);
      groups.set(key, group);
    }
    const group = groups.get(key);
    group.largest = Math.max(group.largest, batch.bucket, batch.rows);
    if (!group.lanes.has(batch.lane)) group.lanes.set(batch.lane, []);
    group.lanes.get(batch.lane).push(batch);
  }
  const sorted = [...groups.values()].sort((one, other) => one.place - other.place);
  return sorted.map((group) => {
    const lanes = [...group.lanes].sort(([one], [other]) => one - other);
    return { ...group, lanes: lanes.map(([lane, own]) => ({ lane, batches: own })) };
  });
}

/** The batch that began next to a time. */
export function nearest(batches, time) {
  const distance = ({ started }) => Math.abs(started - time);
  return batches.reduce((best, batch) => (distance(batch) < distance(best) ? batch : best));
}
