/**
 * What the server is doing, as it does it: reads GET /console/events, and dispatches what comes as events of its own.
 *
 * It reads by fetch, as an EventSource can't send a token. A connection that is lost is made again, after pauses that
 * grow; one on which nothing comes for SILENCE_MS counts as lost, since the server sends something each second.
 */

import { ApiError } from "/console/api.js";

const SILENCE_MS = 10_000;
const FIRST_PAUSE_MS = 500;
const LAST_PAUSE_MS = 5_000;

/** Splits text into server-sent events, wherever the text is cut. */
export class EventParser {
  #rest = "";
  #type = "";
  #data = [];

  /**
   * Return the events that `text` completes.
   *
   * @param {string} text
   * @returns {Array<{type: string, data: string}>}
   */
  push(text) {
    const events = [];
    const all = this.#rest + text;
    let start = 0;
    for (;;) {
      let end = start;
      while (end < all.length && all[end] !== "\n" && all[end] !== "\r") end += 1;
      // A \r at the very end may be half of \r\n.
      if (end >= all.length - (all[end] === "\r" ? 1 : 0)) break;
      this.#line(all.slice(start, end), events);
      start = end + (all[end] === "\r" && all[end + 1] === "\n" ? 2 : 1);
    }
    this.#rest = all.slice(start);
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length) events.push({ type: this.#type || "message", data: this.#data.join("\n") });
      this.#type = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "event") this.#type = value;
    else if (field === "data") this.#data.push(value);
  }
}

export class Feed extends EventTarget {
  #api;
  #wake = null;
  #boot = null;
  #fields = { batches: [], requests: [] };
  #wasConnected = false;
  #lastState = "";

  /** @param {import("/console/api.js").Api} api */
  constructor(api) {
    super();
    this.#api = api;
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => {
      // Someone looks again. A refusal stands until there is another token.
      if (!document.hidden && this.#lastState === "waiting") this.retry();
    });
  }

  /** Read as long as the page lives. */
  async start() {
    let pause = FIRST_PAUSE_MS;
    for (;;) {
      const outcome = await this.#read();
      if (outcome.heard) pause = FIRST_PAUSE_MS;
      this.#say(outcome.refused ? "refused" : "waiting", outcome.message, { status: outcome.status });
      const isFinal = outcome.status === 401 || outcome.status === 403;
      await this.#sleep(isFinal ? Infinity : pause * (0.8 + 0.4 * Math.random()));
      pause = Math.min(LAST_PAUSE_MS, pause * 2);
    }
  }

  /** Connect now, if there is no connection. */
  retry() {
    this.#wake?.();
  }

  dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Return why the connection ended, which it has done. */
  async #read() {
    const abort = new AbortController();
    let silence;
    let heard = false;
    let ended = null;
    const listen = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    try {
      listen();
      const response = await this.#api.open("/console/events", {
        signal: abort.signal,
        headers: { accept: "text/event-stream" },
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parser = new EventParser();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        listen();
        for (const event of parser.push(value)) {
          heard = true;
          if (event.type === "end") ended = JSON.parse(event.data).reason;
          else this.#take(event);
        }
      }
      return {
        heard,
        message: ended ? `The server ended the connection: ${ended}` : "The connection to the server was lost",
      };
    } catch (error) {
      if (error.name === "AbortError") return { heard, message: `The server was silent for ${SILENCE_MS / 1000} s` };
      if (error instanceof ApiError && error.status !== 0) {
        // What passes by itself is waited for; what the server refuses is told as it says it.
        const passes = error.status === 429 || error.status >= 500;
        return { heard, refused: !passes, status: error.status, message: error.message };
      }
      if (!(error instanceof ApiError || error instanceof TypeError || error.name === "NetworkError"))
        console.error(error);
      return { heard, message: "No connection to the server" };
    } finally {
      clearTimeout(silence);
      abort.abort();
    }
  }

  #take({ type, data }) {
    if (type === "hello") this.#hello(JSON.parse(data));
    else if (type === "chunk") this.#chunk(JSON.parse(data));
  }

  #hello({ boot, version, now, wall, fields }) {
    const again = this.#wasConnected;
    const restarted = again && this.#boot !== boot;
    this.#boot = boot;
    this.#fields = fields;
    this.#wasConnected = true;
    this.dispatch("hello", { boot, version, now, wall });
    const message = !again
      ? "Connected"
      : restarted
        ? "Connected again: the server was started anew"
        : "Connected again";
    this.#say("connected", message, { again, restarted });
  }

  #chunk(chunk) {
    const { process, now } = chunk;
    if (chunk.batches) {
      const batches = chunk.batches.map((row) => ({ process, keys: [], ...named(this.#fields.batches, row) }));
      this.dispatch("batches", { batches, seen: chunk.batches_seen ?? batches.length, now });
    }
    if (chunk.requests) {
      const requests = chunk.requests.map((row) => named(this.#fields.requests, row));
      this.dispatch("requests", { requests, seen: chunk.requests_seen ?? requests.length, now });
    }
    if (chunk.refusals) {
      this.dispatch("refusals", {
        refusals: chunk.refusals.map((row) => named(["method", "model", "code", "error", "count", "message"], row)),
      });
    }
    if (chunk.queued)
      this.dispatch("queued", { now, queued: chunk.queued.map((row) => named(["model", "version", "rows"], row)) });
    for (const followed of chunk.followed ?? []) this.dispatch("followed", followed);
    if (chunk.totals) {
      const totals = chunk.totals.map((row) => named(["method", "model", "version", "code", "count"], row));
      this.dispatch("totals", { process, now, totals, resident_bytes: chunk.resident_bytes ?? null });
    }
  }

  #say(state, message, more) {
    this.#lastState = state;
    this.dispatch("state", { state, message, again: false, restarted: false, ...more });
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = Number.isFinite(ms) ? setTimeout(resolve, ms) : null;
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).finally(() => {
      this.#wake = null;
    });
  }
}

function named(names, row) {
  const object = {};
  for (let i = 0; i < row.length; i += 1) object[names[i]] = row[i];
  return object;
}
