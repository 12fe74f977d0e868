/**
 * The last minute: how long answers took, how many kept their time, what was refused, and a load to see it change.
 */

import { add, count, h, milliseconds, percent, replace, scrolling, svg, table } from "./dom.js";
import { drawHistogram } from "./histogram.js";
import { loadControl } from "./load.js";
import { binsOf, emptyMinute, MINUTE_SECONDS, RATE_SECONDS, summaryOf } from "./minute.js";
import { servedModel } from "./versions.js";

const MOST_ROWS = 12;

/** Show the last minute in `section`, and follow the feed of `context`. */
export function mountLatency(section, context) {
  const minute = emptyMinute();
  const empty = h("p.no-request", "No requests in the last minute.");
  const facts = h("dl.figures");
  const figure = svg("svg.histogram", { role: "img" });
  const chart = h("div.chart", figure);
  const bins = h("div");
  const details = h("details", { ontoggle: draw }, h("summary", "The histogram as a table"), bins);
  const shown = h("div", { hidden: true }, facts, chart, details);
  const rates = scrolling(RATES);
  const refusals = scrolling(REFUSALS);
  add(section, loadControl(context), empty, shown, h("div.tables", rates, refusals));

  const seconds = () => performance.now() / 1000;
  let boot = null;
  let since = seconds();
  let visible = false;

  function draw() {
    if (!visible || document.hidden) return;
    const now = seconds();
    const { model } = context;
    const target = servedModel(context)?.latency_target_ms / 1000 || null;
    const requests = minute.requests(model, now);
    const summary = summaryOf(requests, target, Math.min(MINUTE_SECONDS, now - since));
    const found = binsOf(summary.answered);
    empty.hidden = requests.length > 0;
    shown.hidden = requests.length === 0;
    showFacts(facts, summary);
    figure.classList.toggle("none", found.length === 0);
    if (found.length > 0) {
      drawHistogram(figure, { bins: found, ...summary }, Math.max(240, chart.clientWidth));
      figure.setAttribute("aria-label", describe(summary));
    }
    if (details.open) replace(bins, binTable(found));
    replace(rates, rateTable(minute.rates(model, now)));
    replace(refusals, refusalTable(minute.refusals(model, now)));
  }

  context.feed.on("hello", (detail) => {
    if (boot !== null && boot !== detail.boot) {
      minute.clear();
      since = seconds();
    }
    boot = detail.boot;
  });
  context.feed.on("requests", (detail) => minute.addRequests(detail, seconds()));
  context.feed.on("totals", (detail) => minute.addTotals(detail, seconds()));
  context.feed.on("refusals", (detail) => minute.addRefusals(detail, seconds()));
  context.feed.on("model", draw);
  document.addEventListener("visibilitychange", draw);
  new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    draw();
  }).observe(section);
  setInterval(draw, 1000);
}

function showFacts(element, { all, number, p50, p99, goodput, limit, limitName }) {
  const kept = limit === null ? "OK answers/s" : `OK answers/s within the ${limitName}`;
  const facts = [
    ["p50", time(p50), "half of the answers came sooner"],
    ["p99", time(p99), "99 in 100 came sooner"],
    ["Goodput", rate(goodput), `${kept}, last ${RATE_SECONDS} s`],
    ["Answered OK", percent(all > 0 ? number / all : null), `of ${count(Math.round(all))} requests in the last minute`],
  ];
  replace(element, facts.map(([name, value, note]) => h("div", h("dt", name), h("dd", value), h("dd.note", note))));
}

function describe({ number, p50, p99, limit, limitName }) {
  const line = limit === null ? "" : `, ${limitName} ${time(limit)}`;
  return `Times to ${count(Math.round(number))} answers of the last minute: p50 ${time(p50)}, p99 ${time(p99)}${line}. A table follows.`;
}

function binTable(bins) {
  const row = ({ from, to, number }) => [`${time(from)} to ${time(to)}`, count(Math.round(number))];
  return table(null, ["Time to the answer", "Requests#"], bins.map(row));
}

const RATES = `Requests a second, last ${RATE_SECONDS} s`;

function rateTable(rates) {
  const row = (one) => [one.method, h("span", { class: one.code === "OK" ? "good" : "bad" }, one.code), rate(one.rate)];
  const rows = rates.slice(0, MOST_ROWS).map(row);
  const rest = rates.slice(MOST_ROWS).reduce((sum, one) => sum + one.rate, 0);
  if (rest > 0) rows.push(["others", "", rate(rest)]);
  return table(RATES, ["Method", "Code", "Requests#"], rows, { none: `No request in the last ${RATE_SECONDS} s.` });
}

const REFUSALS = "Refused in the last minute";

function refusalTable(refusals) {
  const rows = refusals.slice(0, MOST_ROWS).map((one) => [
    count(one.count),
    [h("span.bad", one.code), h("div.muted", one.error)],
    one.method,
    h("div.message", one.message),
  ]);
  const heads = ["Number#", "Code and error", "Method", "Latest message"];
  return table(REFUSALS, heads, rows, { none: "None in the last minute." });
}

/** Text of a time in s, null for none. */
function time(seconds) {
  return milliseconds(seconds === null ? null : 1000 * seconds);
}

function rate(value) {
  return `${value < 9.95 ? value.toFixed(1) : count(Math.round(value))}/s`;
}
