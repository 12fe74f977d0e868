/**
 * What the server is doing, as it does it: reads GET /console/events, and dispatches what comes as events of its own.
 *
 * It reads by fetch, as an EventSource can't send a token. A connection that is lost is made again, after pauses that
 * grow; one on which nothing comes for SILENCE_MS counts as lost, since the server sends something each second.
 */

import { ApiError } from "./api.js";

const SILENCE_MS = 10_000;
const FIRST_PAUSE_MS = 500;
const LAST_PAUSE_MS = 5_000;

/** What rows of a chunk hold; those of batches and requests are told by the server. */
const FIELDS = {
  refusals: ["method", "model", "code", "error", "count", "message"],
  queued: ["model", "version", "rows"],
  totals: ["method", "model", "version", "code", "count"],
};

export class Feed extends EventTarget {
  #api;
  #wake;
  #boot = null;
  #fields = FIELDS;
  #lastState = "";

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
      await new Promise((resolve) => {
        this.#wake = resolve;
        if (!isFinal) setTimeout(resolve, pause * (0.8 + 0.4 * Math.random()));
      });
      pause = Math.min(LAST_PAUSE_MS, pause * 2);
    }
  }

  /** Connect now, if there is no connection. */
  retry() {
    this.#wake?.();
  }

  /** Call `listener` with the detail of each event of that type. */
  on(type, listener) {
    this.addEventListener(type, ({ detail }) => listener(detail));
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
      const response = await this.#api.open("/console/events", { signal: abort.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        listen();
        // However the text is cut: a line of the event's type and one of its data, then an empty one.
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const lines of events) {
          heard = true;
          const { event, data } = Object.fromEntries(lines.split("\n").map((line) => line.split(/: (.*)/s)));
          const told = JSON.parse(data);
          if (event === "end") ended = told.reason;
          else if (event === "hello") this.#hello(told);
          else if (event === "chunk") this.#chunk(told);
        }
      }
      const message = ended ? `The server ended the connection: ${ended}` : "The connection to the server was lost";
      return { heard, message };
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

  #hello({ boot, fields, ...clock }) {
    const again = this.#boot !== null;
    const restarted = again && this.#boot !== boot;
    this.#boot = boot;
    this.#fields = { ...FIELDS, ...fields };
    this.dispatch("hello", { boot, ...clock });
    const message = `Connected${again ? " again" : ""}${restarted ? ": the server was started anew" : ""}`;
    this.#say("connected", message, { restarted });
  }

  #chunk({ process, now, followed, resident_bytes = null, ...chunk }) {
    for (const [type, fields] of Object.entries(this.#fields)) {
      const named = (row) => Object.fromEntries(row.map((value, place) => [fields[place], value]));
      const rows = chunk[type]?.map((row) => ({ process, ...named(row) }));
      if (!rows) continue;
      const seen = chunk[`${type}_seen`] ?? rows.length;
      this.dispatch(type, { process, now, seen, [type]: rows, resident_bytes });
    }
    for (const one of followed ?? []) this.dispatch("followed", one);
  }

  #say(state, message, more) {
    this.#lastState = state;
    this.dispatch("state", { state, message, ...more });
  }
}
