/**
 * Section "Models": what is served, by what and why, what was proven of it, and what it costs; loads and unloads.
 */

import { button, bytes, count, h, milliseconds, percent, plural, replace, scrolling, table, tell, track } from "./dom.js";
import { modelKey, versionPath } from "./versions.js";

/** With more models than this, each begins folded. */
const OPEN_AT_MOST = 2;

/** Fill `section`; `context` is that of main.js. */
export function mountModels(section, context) {
  const { feed } = context;
  const memory = h("p.muted");
  const aliases = h("p.muted");
  const cards = h("div.cards");
  const none = h("p.muted", "No model is served.");
  const repository = mountRepository(context);
  section.append(memory, aliases, cards, repository);

  /** @type {Map<string, {card: HTMLDetailsElement, told: string, measured: HTMLElement}>} by model and version. */
  let known = new Map();

  feed.on("server", (server) => {
    const next = new Map();
    for (const model of server.models) {
      const key = modelKey(model);
      // What a bucket takes is measured on and on; the rest of a card stays as it is, under the eyes of who reads it.
      const told = JSON.stringify({ ...model, buckets: null });
      let entry = known.get(key);
      if (entry?.told !== told) {
        const measured = h("div");
        const card = cardOf(model, measured, context);
        card.open = entry ? entry.card.open : server.models.length <= OPEN_AT_MOST;
        entry = { card, told, measured };
      }
      replace(entry.measured, buckets(model));
      next.set(key, entry);
    }
    const wanted = next.size ? [...next.values()].map(({ card }) => card) : [none];
    const isShown = wanted.length === cards.children.length && wanted.every((card, i) => card === cards.children[i]);
    if (!isShown) replace(cards, wanted);
    known = next;
    aliases.textContent = server.aliases.length ? `Aliases: ${server.aliases.join(", ")}` : "";
  });

  const residents = new Map();
  feed.on("hello", () => residents.clear());
  feed.on("totals", ({ process, resident_bytes: resident }) => {
    if (resident === null) return;
    residents.set(process, resident);
    const sum = [...residents.values()].reduce((all, one) => all + one, 0);
    const where = residents.size > 1 ? ` in ${residents.size} processes` : "";
    tell(memory, `The server holds ${bytes(sum)} of memory${where}.`);
  });
}

function cardOf(model, measured, context) {
  const { verification } = model;
  const passed = verification.filter((row) => row.passed).length;
  const isProven = passed === verification.length;
  const proven = `${isProven ? "✓" : "✗"} ${passed} of ${verification.length} proven`;
  return h(
    "details.card",
    h(
      "summary",
      h("h3.name", model.name),
      h("span", `version ${model.version}`),
      model.is_default && h("span.badge", "default"),
      h("span.muted", `${model.architecture} · ${model.backend}, ${model.precision}`),
      verification.length > 0 && h("span", { class: isProven ? "good" : "bad" }, proven),
    ),
    h("div.card-body", facts(model), measured, proof(model), folds(model), assumptions(model), report(model, context)),
  );
}

function facts(model) {
  const pixels = model.takes_pixels ? "pixels" : "normalised";
  const task = model.task === "multi-label" ? "any number at once (multi-label)" : "one of them (single-label)";
  const { artifact, half_share: half } = model;
  const share = half === null ? "" : `; ${percent(half)} of the arithmetic in half precision`;
  const rows = [
    ["Input", `${model.height} × ${model.width} × ${model.channels}; tensor ${model.input_name}, ${model.datatype}, ${pixels}`],
    ["Classes", `${count(model.classes)}, ${task}`],
    ["Backend", `${model.backend} on ${model.device}`],
    ["Why", model.backend_reason],
    ["Precision", `${model.precision}${share}`],
    ["Artifact", artifact && `${artifact.path}, ${artifact.precision}, ${bytes(artifact.bytes)}`],
    ["Lanes", lanesText(model.lanes)],
    ["Latency target", model.latency_target_ms !== null && milliseconds(model.latency_target_ms)],
    ["Largest request", plural(model.max_images_per_request, "image")],
  ];
  return h("dl.facts", rows.map(([name, text]) => text && [h("dt", name), h("dd", text)]));
}

function lanesText({ lanes, reason, images_per_s: rates }) {
  const measured = Object.entries(rates ?? {}).map(
    ([number, rate]) => `${plural(Number(number), "lane")}: ${count(Math.round(rate))} images/s`,
  );
  const why = reason ? `: ${reason}` : "";
  return `${lanes}${why}${measured.length ? `. Measured: ${measured.join("; ")}` : ""}`;
}

function buckets({ buckets: all }) {
  if (!all.length) return null;
  const fastest = Math.max(...all.map(({ rows, ms }) => (ms ? rows / ms : 0)));
  const row = ({ rows, ms }) => [
    String(rows),
    ms ? milliseconds(ms) : "not measured",
    ms ? count(Math.round((1000 * rows) / ms)) : "–",
    ms ? track(0, rows / ms / fastest) : null,
  ];
  return table("Buckets: batches as they are computed", ["Rows#", "Time#", "Images/s#", null], all.map(row), {
    widths: ["figure", "figure", "figure", "bars"],
  });
}

function proof({ verification }) {
  if (!verification.length) return h("p.muted", "The package tells of no verification.");
  const row = (one) => [
    [
      h("span", { class: one.passed ? "good" : "bad" }, one.passed ? "✓ " : "✗ missed: "),
      `${one.artifact}, ${one.backend}${one.precision ? `, ${one.precision}` : ""}`,
    ],
    percent(one.agreement, 2),
    one.max_abs_difference === null ? "–" : `${small(one.max_abs_difference)} of ${small(one.logit_range)}`,
    one.bar,
    one.image_source ?? plural(one.images, "image"),
    one.accuracy === null ? "–" : `${percent(one.accuracy)} (${percent(one.eager_accuracy)})`,
  ];
  const on = [...new Set(verification.map((one) => one.agreement_on).filter(Boolean))];
  const agreement = `Agreement${on.length === 1 ? `, ${on[0]}` : ""}#`;
  const difference = "Largest logit difference, of the range#";
  return scrollingTable(
    "What was proven at the export, against PyTorch in FP32",
    ["Artifact", agreement, difference, "Bar", "Images", "Accuracy (PyTorch's)#"],
    verification.map(row),
  );
}

function folds({ folds: all }) {
  if (!all) return null;
  const { folded, kept, largest_difference: largest, share: shares } = all;
  const folding = `${plural(folded, "BatchNorm")} folded into convolutions, ${kept} kept as scale and shift`;
  const halves = Object.entries(shares).filter(([, share]) => share.fp16_layers);
  return h(
    "div",
    h("h4", "Folds"),
    h("p", `${folding}; largest difference of a layer's output ${small(largest)}.`),
    halves.map(([path, { fp16_layers: half, layers, fp16_weights: weights, weights: allWeights }]) =>
      h("p", `${path}: ${half} of ${plural(layers, "layer")} in FP16, ${percent(weights / allWeights)} of the weights.`),
    ),
  );
}

function assumptions({ assumptions: all }) {
  const open = all.filter((one) => one.is_open);
  if (!open.length) return null;
  const rows = open.map((one) => [`${one.key} = ${one.value}`, one.meaning, h("code", one.flag)]);
  return h(
    "details",
    h("summary", `${plural(open.length, "open assumption")}: nothing in the checkpoint told, and no images settled`),
    scrollingTable("Open assumptions", ["Assumed", "Meaning", "Settled by"], rows),
  );
}

function scrollingTable(caption, ...rest) {
  return scrolling(caption, table(caption, ...rest));
}

/** Text of a number in two digits: "0.000012", "21". */
function small(value) {
  return String(Number(value.toPrecision(2)));
}

/** Return the button that shows a package's report in place; see report.js for why it is framed twice. */
function report(model, { api }) {
  if (!model.has_report) return null;
  const place = h("div.report", { hidden: true });
  const message = h("p.bad", { role: "alert" });
  const toggler = button("", toggle, { class: "main" });
  shown(false);

  async function toggle() {
    message.textContent = "";
    if (!place.hidden) return shown(false);
    toggler.disabled = true;
    try {
      const text = await api.getText(`${versionPath("/console", model)}/report`);
      const title = `Report of ${model.name}, version ${model.version}`;
      const frame = h("iframe", { src: "/console/report.html", title });
      frame.addEventListener("load", () => frame.contentWindow.postMessage({ report: text }, location.origin));
      replace(place, frame);
      shown(true);
    } catch (error) {
      message.textContent = error.message;
    } finally {
      toggler.disabled = false;
    }
  }

  function shown(isShown) {
    if (!isShown) replace(place);
    place.hidden = !isShown;
    toggler.setAttribute("aria-expanded", String(isShown));
    toggler.textContent = isShown ? "Hide the report" : "Show the export's report";
  }

  return h("div", toggler, message, place);
}

function mountRepository({ api, feed, readServer }) {
  const message = h("p.whole", { role: "status" });
  const note = h("p.muted");
  const index = h("div");
  const element = h("div.repository", { hidden: true }, h("h3", "Repository"), note, index, message);
  let mayControl = false;
  let working = "";
  let shown = "";

  feed.on("server", (server) => {
    element.hidden = server.model_control !== "explicit";
    if (element.hidden) return;
    mayControl = server.role === "admin";
    const why = `Loading and unloading need a token of the role admin; this one has ${server.role}.`;
    note.textContent = mayControl ? "" : why;
    readIndex();
  });

  async function readIndex() {
    try {
      show((await api.post("/v2/repository/index", {})) ?? []);
    } catch (error) {
      say(error.message, true);
    }
  }

  function show(models) {
    const text = JSON.stringify([models, mayControl, working]);
    if (text === shown) return;
    shown = text;
    const focused = index.contains(document.activeElement) ? document.activeElement.dataset : null;
    const names = new Set();
    const rows = models.map(({ name, version, state, reason }) => {
      // Loads and unloads are of a model, all of its versions: one pair of buttons for each.
      const isFirst = !names.has(name);
      names.add(name);
      const isServed = models.some((one) => one.name === name && one.state === "READY");
      const isBad = state === "UNAVAILABLE" && reason && reason !== "unloaded";
      const actions = [
        buttonOf("load", name, isServed ? "Load again" : "Load"),
        isServed && buttonOf("unload", name, "Unload"),
      ];
      return [
        h("span.name", name),
        version ?? "",
        h("span", { class: state === "READY" ? "good" : isBad ? "bad" : null }, state ?? ""),
        h("span.whole", reason ?? ""),
        mayControl && isFirst ? h("div.actions", actions) : null,
      ];
    });
    const heads = ["Model", "Version", "State", "Reason", null];
    replace(index, scrollingTable("Models of the repository", heads, rows, { isQuiet: true }));
    const buttons = [...index.querySelectorAll("button")];
    const same = (name) => buttons.find((one) => one.dataset[name] && one.dataset[name] === focused?.[name]);
    (same("action") ?? same("model"))?.focus();
  }

  function buttonOf(action, name, text) {
    const pressed = () => {
      if (working) return;
      if (action === "unload") ask(name);
      else act(action, name);
    };
    const one = button(text, pressed, {
      class: "main",
      // Not `disabled`, which would take the focus away.
      "aria-disabled": working ? "true" : null,
      "aria-label": `${text} ${name}`,
    });
    one.dataset.action = `${action} ${name}`;
    one.dataset.model = name;
    return one;
  }

  function ask(name) {
    const close = (text, answer, attributes) => button(text, () => dialog.close(answer), attributes);
    const dialog = h(
      "dialog",
      { "aria-labelledby": "unload-heading" },
      h("h3", { id: "unload-heading" }, `Unload ${name}?`),
      h("p", "What it has admitted is answered; requests after that are refused until it is loaded again."),
      h("div.row", close("Keep it", "", { class: "main" }), close("Unload", "unload", { class: "main primary" })),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (dialog.returnValue === "unload") act("unload", name);
    });
    document.body.append(dialog);
    dialog.showModal();
  }

  async function act(action, name) {
    working = name;
    say(`${action === "load" ? "Loading" : "Unloading"} ${name}`);
    readIndex();
    try {
      await api.post(`/v2/repository/models/${encodeURIComponent(name)}/${action}`, {});
      say(`${name} is ${action === "load" ? "loaded" : "unloaded"}`);
    } catch (error) {
      say(error.message, true);
    }
    working = "";
    readIndex();
    readServer();
  }

  function say(text, isBad = false) {
    tell(message, text);
    message.classList.toggle("bad", isBad);
  }

  return element;
}
