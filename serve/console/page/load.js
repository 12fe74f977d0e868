/**
 * A load that the server puts on itself for some seconds, so that one sees batches form.
 */

import { button, count, h, milliseconds, replace } from "./dom.js";
import { servedModel } from "./versions.js";

const SECONDS = 5;
const FIRST_RATE = 200;
/** Share of what a model can compute at which its first load comes: batches form, and hardly any request is refused. */
const FIRST_SHARE = 0.7;
const STEPS = [1, 2, 3, 5, 7];

/** Return the elements of the control. It loads the model that is chosen in the header. */
export function loadControl(context) {
  let rates = [FIRST_RATE];
  let running = null;
  let chosen = false; // by the visitor
  const oninput = () => {
    chosen = true;
    showRate();
  };
  const slider = h("input", { type: "range", id: "load-rate", min: 0, step: 1, oninput });
  const shown = h("output", { for: "load-rate" });
  const starter = button("", () => (running ? running.abort() : run()), { class: "primary", "aria-describedby": "load-why" });
  const progress = h("progress", { "aria-label": "Progress of the load", hidden: true });
  const answer = h("p.load-answer", { role: "status" });
  const why = h("p.muted", { id: "load-why" });
  const label = h("label", { for: "load-rate" }, "Rate");
  const control = h("div.load-control", h("div.row", label, slider, shown, starter, progress), why, answer);

  const model = () => servedModel(context);
  const seconds = () => Math.min(SECONDS, context.server?.load.max_seconds ?? SECONDS);
  const rate = () => rates[Number(slider.value)];

  function showRate() {
    const words = `${count(rate())} requests/s`;
    shown.textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }

  /** Show what the server allows; it may have changed with a token, or with another server. */
  function show() {
    const load = context.server?.load;
    const before = chosen ? rate() : firstRateOf(model());
    rates = ratesUpTo(load?.max_rate ?? FIRST_RATE);
    slider.max = rates.length - 1;
    slider.value = Math.max(0, rates.findLastIndex((one) => one <= before));
    showRate();
    let reason = model() ? "" : "No load: no model is served.";
    if (!load) reason = "The server has not told yet what it allows.";
    else if (!load.allowed) reason = `No load from here: ${load.why_not}.`;
    starter.disabled = reason !== "" && running === null;
    slider.disabled = starter.disabled;
    starter.textContent = running ? "Stop" : `Load for ${seconds()} s`;
    const { name, version } = model() ?? {};
    const sends = `The server sends itself reference images of ${name} ${version}`;
    why.textContent = reason || `${sends}, one in each request, at random times, and checks the answers.`;
  }

  async function run() {
    const { name, version } = model();
    const [asked, length] = [rate(), seconds()];
    running = new AbortController();
    const began = performance.now();
    progress.max = length;
    progress.value = 0;
    progress.hidden = false;
    const timer = setInterval(() => (progress.value = (performance.now() - began) / 1000), 100);
    replace(answer, `${count(asked)} requests/s …`);
    show();
    try {
      const body = { model: name, version: String(version), rate: asked, seconds: length };
      const json = await context.api.post("/console/load", body, { signal: running.signal });
      replace(answer, wordsOf(json));
    } catch (error) {
      if (running.signal.aborted) replace(answer, `Stopped after ${((performance.now() - began) / 1000).toFixed(1)} s.`);
      else replace(answer, h("span.bad", `The load failed: ${error.message}`));
    } finally {
      clearInterval(timer);
      progress.hidden = true;
      running = null;
      show();
    }
  }

  for (const type of ["server", "model"]) context.feed.on(type, show);
  show();
  return control;
}

/** Rate at which the first load of a model comes. */
function firstRateOf(model) {
  const measured = [...Object.values(model?.lanes.images_per_s ?? {}), ...(model?.buckets ?? []).map(({ rows, ms }) => (1000 * rows) / ms)];
  const most = Math.max(0, ...measured.filter(Number.isFinite));
  return most > 0 ? FIRST_SHARE * most : FIRST_RATE;
}

/** Rates that are about as far from each other by logarithm, up to `most`. */
function ratesUpTo(most) {
  const rates = [];
  for (let power = 1; power <= most; power *= 10) rates.push(...STEPS.map((step) => step * power));
  return [...rates.filter((rate) => rate < most), most];
}

function wordsOf({ sent, answered, by_code: byCode, wrong, p50_ms: p50, p99_ms: p99 }) {
  const refused = Object.entries(byCode).filter(([code]) => code !== "OK");
  const refusals = refused.map(([code, number]) => `${count(number)} ${code}`).join(", ");
  return [
    `${count(sent)} sent, ${count(answered)} answered, `,
    refusals && `refused: ${refusals}, `,
    wrong === 0 ? "none wrong" : h("strong.bad", `${count(wrong)} wrong`),
    `, p50 ${milliseconds(p50)}, p99 ${milliseconds(p99)}`,
  ];
}
