/**
 * The last minute: how long answers took, how many kept their time, what was refused, and a load to see it change.
 */

import { count, h, milliseconds, percent, replace, svg } from "./dom.js";
import { drawHistogram } from "./histogram.js";
import { loadControl } from "./load.js";
import { binsOf, emptyMinute, MINUTE_SECONDS, RATE_SECONDS, summaryOf } from "./minute.js";
import { servedModel } from "./versions.js";

const MOST_ROWS = 12;

/**
 * Show the last minute in `section`, and follow the feed of `context`.
 *
 * @returns {function(): void} Ends it: nothing listens or draws any more.
 */
export function mountLatency(section, context) {
  const ending = new AbortController();
  const { signal } = ending;
  const minute = emptyMinute();
  const parts = elementsOf();
  const load = loadControl(context, signal);
  replace(section, section.querySelector("h2"), load, parts.empty, parts.shown, parts.tables);

  let boot = null;
  let since = seconds();
  let visible = false;

  function seconds() {
    return performance.now() / 1000;
  }

  function draw() {
    if (!visible || document.hidden) return;
    const now = seconds();
    const { model } = context;
    const requests = minute.requests(model, now);
    const summary = summaryOf(requests, servedModel(context)?.latency_target_ms / 1000 || null, Math.min(MINUTE_SECONDS, now - since));
    const bins = binsOf(summary.answered);
    parts.empty.hidden = requests.length > 0;
    parts.shown.hidden = requests.length === 0;
    showFacts(parts.facts, summary);
    parts.figure.classList.toggle("none", bins.length === 0);
    if (bins.length > 0) {
      drawHistogram(parts.figure, { bins, ...summary }, Math.max(240, parts.chart.clientWidth));
      parts.figure.setAttribute("aria-label", describe(summary));
    }
    if (parts.details.open) showBins(parts.bins, bins);
    showRates(parts.rates, minute.rates(model, now));
    showRefusals(parts.refusals, minute.refusals(model, now));
  }

  const listen = (target, type, listener) => target.addEventListener(type, listener, { signal });
  listen(context.feed, "hello", ({ detail }) => {
    if (boot !== null && boot !== detail.boot) {
      minute.clear();
      since = seconds();
    }
    boot = detail.boot;
  });
  listen(context.feed, "requests", ({ detail }) => minute.addRequests(detail, seconds()));
  listen(context.feed, "totals", ({ detail }) => minute.addTotals(detail, seconds()));
  listen(context.feed, "refusals", ({ detail }) => minute.addRefusals(detail, seconds()));
  listen(context.feed, "model", draw);
  listen(parts.details, "toggle", draw);
  listen(document, "visibilitychange", draw);
  const sight = new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    draw();
  });
  sight.observe(section);
  const timer = setInterval(draw, 1000);
  return () => {
    ending.abort();
    clearInterval(timer);
    sight.disconnect();
  };
}

function showFacts(element, { all, number, p50, p99, goodput, limit, limitName }) {
  const kept = limit === null ? "OK answers/s" : `OK answers/s within the ${limitName}`;
  const facts = [
    ["p50", p50 === null ? "–" : milliseconds(1000 * p50), "half of the answers came sooner"],
    ["p99", p99 === null ? "–" : milliseconds(1000 * p99), "99 in 100 came sooner"],
    ["Goodput", `${rate(goodput)}/s`, `${kept}, last ${RATE_SECONDS} s`],
    ["Answered OK", percent(all > 0 ? number / all : null), `of ${count(Math.round(all))} requests in the last minute`],
  ];
  const texts = ([name, value, note]) => [h("dt", { text: name }), h("dd", { text: value }), h("dd", { class: "note", text: note })];
  replace(element, facts.map((fact) => h("div", {}, texts(fact))));
}

function describe({ number, p50, p99, limit, limitName }) {
  const line = limit === null ? "" : `, ${limitName} ${milliseconds(1000 * limit)}`;
  const [half, most] = [p50, p99].map((seconds) => milliseconds(1000 * seconds));
  return `Times to ${count(Math.round(number))} answers of the last minute: p50 ${half}, p99 ${most}${line}. A table follows.`;
}

function showBins(body, bins) {
  const time = (value) => milliseconds(1000 * value);
  const cells = ({ from, to, number }) => [
    h("th", { scope: "row", text: `${time(from)} to ${time(to)}` }),
    h("td", { class: "number", text: count(Math.round(number)) }),
  ];
  replace(body, bins.map((bin) => h("tr", {}, cells(bin))));
}

function showRates(body, rates) {
  const rest = rates.slice(MOST_ROWS).reduce((sum, one) => sum + one.rate, 0);
  const rows = rates.slice(0, MOST_ROWS).map((one) => [one.method, one.code, one.rate]);
  if (rest > 0) rows.push(["others", "", rest]);
  replace(
    body,
    rows.length === 0 && h("tr", {}, h("td", { colspan: 3, class: "muted", text: `No request in the last ${RATE_SECONDS} s.` })),
    rows.map(([method, code, number]) =>
      h("tr", {}, [
        h("th", { scope: "row", text: method }),
        h("td", { class: code === "OK" ? "good" : "bad", text: code }),
        h("td", { class: "number", text: `${rate(number)}/s` }),
      ]),
    ),
  );
}

function showRefusals(body, refusals) {
  replace(
    body,
    refusals.length === 0 && h("tr", {}, h("td", { colspan: 4, class: "muted", text: "None in the last minute." })),
    refusals.slice(0, MOST_ROWS).map(({ count: number, code, error, method, message }) =>
      h("tr", {}, [
        h("td", { class: "number", text: count(number) }),
        h("th", { scope: "row" }, h("span", { class: "bad", text: code }), h("div", { class: "muted", text: error })),
        h("td", { text: method }),
        h("td", { class: "message", text: message }),
      ]),
    ),
  );
}

function rate(value) {
  return value < 9.95 ? value.toFixed(1) : count(Math.round(value));
}

function elementsOf() {
  const cell = ([name, numeric]) => h("th", { scope: "col", class: numeric && "number", text: name });
  const head = (...names) => h("thead", {}, h("tr", {}, names.map(cell)));
  const [bins, rates, refusals] = [h("tbody"), h("tbody"), h("tbody")];
  const table = (title, header, body) =>
    h("div", { class: "scrolls", role: "region", tabindex: "0", "aria-label": title }, h("table", {}, h("caption", { text: title }), header, body));
  const facts = h("dl", { class: "figures" });
  const figure = svg("svg", { role: "img", class: "histogram" });
  const chart = h("div", { class: "chart" }, figure);
  const binTable = h("table", {}, head(["Time to the answer"], ["Requests", true]), bins);
  const details = h("details", {}, h("summary", { text: "The histogram as a table" }), binTable);
  return {
    bins,
    rates,
    refusals,
    facts,
    figure,
    chart,
    details,
    empty: h("p", { class: "no-request", text: "No requests in the last minute." }),
    shown: h("div", { hidden: true }, facts, chart, details),
    tables: h(
      "div",
      { class: "tables" },
      table(`Requests a second, last ${RATE_SECONDS} s`, head(["Method"], ["Code"], ["Requests", true]), rates),
      table("Refused in the last minute", head(["Number", true], ["Code and error"], ["Method"], ["Latest message"]), refusals),
    ),
  };
}
