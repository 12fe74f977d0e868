/**
 * What is known of the last minute's requests, by sample, count and refusal. Nothing here grows.
 */

import { modelKey } from "./versions.js";

export const MINUTE_SECONDS = 60;
export const RATE_SECONDS = 10;
const MOST_CHUNKS = 1800;
const MOST_PROCESSES = 64;
const MOST_REFUSALS = 2000;

/** Bins of the histogram for each power of ten. */
const BINS_PER_DECADE = 10;

/** Return an empty minute: `add…` take events of the feed and the seconds now, on any clock; the others tell of a model. */
export function emptyMinute() {
  let chunks = [];
  let processes = new Map();
  let refused = [];

  return {
    /** Keep requests that are a sample of `seen`: each stands for seen / number. */
    addRequests({ requests, seen }, now) {
      if (requests.length > 0) chunks.push({ at: now, weight: Math.max(1, seen / requests.length), requests });
      if (chunks.length > MOST_CHUNKS) chunks.shift();
    },

    /** Keep a process's counts. One that is smaller than before means that it began anew. */
    addTotals({ process, totals }, now) {
      const counts = new Map(totals.map((total) => [[total.method, modelKey(total), total.code].join("\n"), total]));
      const before = processes.get(process) ?? [];
      const fell = [...(before.at(-1)?.counts ?? [])].some(([key, { count }]) => (counts.get(key)?.count ?? 0) < count);
      const told = fell ? [] : before;
      told.push({ at: now, counts });
      while (told.length > 2 && now - told[1].at >= RATE_SECONDS) told.shift();
      processes.delete(process);
      processes.set(process, told.slice(-3 * RATE_SECONDS));
      if (processes.size > MOST_PROCESSES) processes.delete(processes.keys().next().value);
    },

    /** Keep refusals, which are counts of like ones. */
    addRefusals({ refusals }, now) {
      refused = [...refused, ...refusals.map((refusal) => ({ ...refusal, at: now }))].slice(-MOST_REFUSALS);
    },

    clear() {
      [chunks, processes, refused] = [[], new Map(), []];
    },

    /** The requests of the last minute, [{seconds, code, deadline, weight, age}]. */
    requests(model, now) {
      chunks = chunks.filter(({ at }) => now - at < MINUTE_SECONDS);
      return chunks.flatMap(({ at, weight, requests }) =>
        requests
          .filter((request) => isFor(request, model))
          .map((request) => ({ ...request, weight, age: now - at })),
      );
    },

    /** Requests a second of late by method and code, [{method, code, rate}], most first. Exact: from counts. */
    rates(model, now) {
      const rates = new Map();
      for (const told of processes.values()) {
        const [first, last] = [told[0], told.at(-1)];
        if (last.at <= first.at || now - last.at > RATE_SECONDS) continue;
        for (const [key, total] of last.counts) {
          const number = total.count - (first.counts.get(key)?.count ?? 0);
          if (number === 0 || !isFor(total, model)) continue;
          const name = `${total.method}\n${total.code}`;
          const entry = rates.get(name) ?? { method: total.method, code: total.code, rate: 0 };
          entry.rate += number / (last.at - first.at);
          rates.set(name, entry);
        }
      }
      return [...rates.values()].sort((one, other) => other.rate - one.rate);
    },

    /** Refusals of the last minute, [{code, error, method, message, count}] with the latest message, most first. */
    refusals(model, now) {
      refused = refused.filter(({ at }) => now - at < MINUTE_SECONDS);
      const alike = new Map();
      for (const refusal of refused.filter((one) => !one.model || one.model === model?.name)) {
        const key = [refusal.method, refusal.code, refusal.error].join("\n");
        const { count, message } = alike.get(key) ?? { count: 0 };
        alike.set(key, { ...refusal, count: count + refusal.count, message: refusal.message || message });
      }
      return [...alike.values()].sort((one, other) => other.count - one.count);
    },
  };
}

/** Whether a request or a count is of that model, or of one that isn't served: such a request is nowhere else. */
function isFor(one, model) {
  return !one.model || modelKey(one) === modelKey(model);
}

/**
 * Return what the requests of `span` s come to: p50 and p99 of the OK ones in s (null: none), goodput in requests/s, and
 * the time by which they should be answered: `target` in s, or, for null, the commonest deadline. Goodput is of those that
 * keep the target, or, for null, each its own deadline.
 */
export function summaryOf(requests, target, span) {
  const answered = requests.filter(({ code }) => code === "OK").sort((one, other) => one.seconds - other.seconds);
  const seconds = Math.max(1, Math.min(span, RATE_SECONDS));
  const kept = answered.filter((one) => one.age < seconds && one.seconds <= (target ?? one.deadline ?? Infinity));
  const deadline = target === null ? commonest(requests.filter((one) => one.deadline !== null)) : null;
  return {
    answered,
    number: weightOf(answered),
    all: weightOf(requests),
    p50: quantile(answered, 0.5),
    p99: quantile(answered, 0.99),
    goodput: weightOf(kept) / seconds,
    limit: target ?? deadline,
    limitName: target !== null ? "target" : "deadline",
  };
}

/** Return [{from, to, number}] of requests in order of their seconds, bins of equal width by logarithm, without gaps. */
export function binsOf(answered) {
  if (answered.length === 0) return [];
  const binOf = ({ seconds }) => Math.floor(BINS_PER_DECADE * Math.log10(Math.max(seconds, 1e-6)) + 1e-9);
  const first = binOf(answered[0]);
  const numbers = new Array(binOf(answered.at(-1)) - first + 1).fill(0);
  for (const one of answered) numbers[binOf(one) - first] += one.weight;
  const edge = (bin) => 10 ** (bin / BINS_PER_DECADE);
  return numbers.map((number, place) => ({ from: edge(first + place), to: edge(first + place + 1), number }));
}

function weightOf(requests) {
  return requests.reduce((sum, { weight }) => sum + weight, 0);
}

/** The least seconds that at least `share` of the weight doesn't pass; null for none. */
function quantile(sorted, share) {
  const enough = share * weightOf(sorted) - 1e-9;
  let sum = 0;
  for (const { seconds, weight } of sorted) {
    sum += weight;
    if (sum >= enough) return seconds;
  }
  return null;
}

/** The deadline that most requests gave, to a hundredth of itself; null for none. */
function commonest(requests) {
  const numbers = new Map();
  for (const { deadline, weight } of requests) {
    const rounded = Number(deadline.toPrecision(2));
    numbers.set(rounded, (numbers.get(rounded) ?? 0) + weight);
  }
  return [...numbers].reduce((best, entry) => (entry[1] > best[1] ? entry : best), [null, 0])[0];
}
