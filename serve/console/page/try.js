/**
 * Section "Try": pictures of the visitor, or the package's reference images, are classified, and each answer is shown
 * with where its time went and, for reference images, beside PyTorch's.
 */

import { mountCopy } from "./copy.js";
import { add, button, count, h, percent, plural, replace, roughly, tell } from "./dom.js";
import { filesBelow, isReadable, nameOf, picturesOf } from "./pictures.js";
import { comparison, predictionsTable, SHOWN } from "./predictions.js";
import { mountReference, picture } from "./reference.js";
import { servedModel, versionPath } from "./versions.js";
import { accountOf, accountOfTiming, waterfallTable } from "./waterfall.js";

const AT_ONCE = 8;
const KEPT_RESULTS = 50;
const KEPT_BATCHES = 500;
/** Classes asked for of a reference image: more than are shown, so that PyTorch's five are likely among them. */
const ASKED_OF_REFERENCE = 10;
/** How long the server's account of a request is waited for before the answer's own timing is shown instead. */
const ACCOUNT_MS = 2_000;
const RENDER_MS = 100;
/** A run ends when this many pictures in a row find no server. */
const UNANSWERED = 8;

/** Fill `section`; `context` is that of main.js. */
export function mountTry(section, context) {
  const { api, feed } = context;

  /** Newest first; each has its row of the list. */
  const results = [];
  /** Results by the id of their request, for what the feed tells of it. */
  const byRequest = new Map();
  /** The last batches that had requests of this page, by key. */
  const batchByKey = new Map();
  let selected = null;
  let wasPicked = false;

  const input = (attributes) =>
    h("input", { type: "file", multiple: true, hidden: true, onchange: chosen, ...attributes });
  const fileInput = input({ accept: "image/*" });
  const folderInput = input({ webkitdirectory: true });
  const dropZone = h(
    "button.drop.main",
    { type: "button", onclick: () => fileInput.click() },
    h("strong", "Drop, paste or choose pictures"),
    h("span.muted", "JPEG, PNG or WebP; several at once, or a folder"),
  );
  const progress = h("span", { role: "status" });
  const stopButton = button("Stop", stop, { class: "main", hidden: true });
  const announcement = h("p.visually-hidden", { role: "status" });
  const reference = mountReference(context, tryReference);
  const list = h("ol.results", { "aria-label": "Last answers, newest first" });
  const listHeading = h("h3", { hidden: true }, "Last answers");
  const answer = h("div.answer", { role: "region", "aria-label": "Answer" });
  const copyOf = mountCopy(context);

  const choices = h(
    "div.row",
    button("Choose files", () => fileInput.click(), { class: "main" }),
    button("Choose a folder", () => folderInput.click(), { class: "main" }),
    stopButton,
    progress,
  );
  const given = h("div.try-input", dropZone, choices, fileInput, folderInput, announcement, reference.element);
  section.append(h("div.try-grid", given, answer, h("div.try-list", listHeading, list)));

  function chosen({ target }) {
    const files = [...target.files];
    target.value = "";
    send(target === folderInput ? picturesOf(files) : { files });
  }

  // Anywhere on the page: a picture dropped beside the zone would replace the page otherwise.
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    dropZone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dropZone.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    dropZone.classList.remove("over");
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    // The list of what was dropped is empty after this turn.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const files = [...event.dataTransfer.files];
    if (!entries.some((entry) => entry.isDirectory)) return send({ files });
    const found = [];
    for (const entry of entries) await filesBelow(entry, found, say);
    send(picturesOf(found));
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    send({ files });
  });

  const queue = [];
  let run = null;

  /** What was given before the server told what it serves. */
  const early = [];

  feed.on("model", () => {
    early.splice(0).forEach(send);
  });

  /** Send `files` in their order, or let them follow those that are being sent. */
  function send({ files, passedOver = 0 }) {
    const model = servedModel(context);
    if (!files.length) return say(passedOver ? `No picture among ${plural(passedOver, "file")}` : "No file was given");
    if (!context.server) {
      early.push({ files, passedOver });
      return say("Waiting for the server to tell what it serves");
    }
    if (!model) return say("No model to classify with yet");
    for (const file of files) queue.push({ name: nameOf(file), file, body: file, model, topK: SHOWN });
    wasPicked = false;
    if (run) {
      run.total += files.length;
      run.passedOver += passedOver;
      return;
    }
    const counts = { total: files.length, passedOver, done: 0, refused: 0, unanswered: 0 };
    run = { ...counts, began: performance.now(), abort: new AbortController(), why: "" };
    stopButton.hidden = false;
    carryOut(run);
  }

  async function carryOut(mine) {
    // More may come while the last ones are on their way.
    while (queue.length && !mine.why) await Promise.all(Array.from({ length: AT_ONCE }, () => sendQueued(mine)));
    run = null;
    const hadFocus = document.activeElement === stopButton;
    stopButton.hidden = true;
    if (hadFocus) dropZone.focus();
    render();
    say(mine.total === 1 ? mine.why : progressOf(mine, mine.why || "Done"));
    if (mine.total === 1 && mine.last) announce(mine.last);
  }

  async function sendQueued(mine) {
    while (queue.length && !mine.abort.signal.aborted) {
      const result = await classified({ ...queue.shift(), signal: mine.abort.signal });
      if (!result) return;
      mine.done += 1;
      mine.refused += result.error ? 1 : 0;
      mine.unanswered = result.error && result.status === 0 ? mine.unanswered + 1 : 0;
      const isHopeless = result.status === 401 || result.status === 403 || mine.unanswered >= UNANSWERED;
      if (isHopeless && mine.total > 1) stop(`Stopped: ${result.error}`);
      mine.last = result;
      keep(result);
      renderSoon();
    }
  }

  function stop(why) {
    if (!run) return;
    run.why = typeof why === "string" ? why : "Stopped";
    queue.length = 0;
    run.abort.abort();
  }

  function progressOf(mine, prefix = "") {
    const seconds = (performance.now() - mine.began) / 1000;
    const parts = [`${prefix ? `${prefix}: ` : ""}${count(mine.done)} of ${plural(mine.total, "picture")}`];
    if (mine.refused) parts.push(`${count(mine.refused)} refused`);
    if (mine.passedOver) parts.push(`${plural(mine.passedOver, "other file")} passed over`);
    if (seconds > 1) parts.push(`${roughly(mine.done / seconds)}/s`);
    return parts.join(", ");
  }

  async function tryReference(of) {
    const model = servedModel(context);
    if (!model) return;
    wasPicked = false;
    const name = `reference image ${of.index}`;
    const result = await classified({ name, reference: of, body: of.pixels, model, topK: ASKED_OF_REFERENCE });
    keep(result);
    render();
    announce(result);
  }

  /** Return the result of one request, an error's too; null where it was stopped. */
  async function classified({ name, file, reference: of, body, model, topK, signal }) {
    const id = requestId();
    const result = { id, name, file, reference: of, model };
    byRequest.set(id, result);
    const path = `${versionPath("/v1", model)}/classify?top_k=${Math.min(topK, model.classes)}${of ? "&raw=true" : ""}`;
    const began = performance.now();
    try {
      const json = await api.post(path, body, { signal, headers: { "x-request-id": `console-${id}` } });
      result.took = performance.now() - began;
      result.predictions = json.results[0].predictions;
      result.timing = json.timing;
    } catch (error) {
      byRequest.delete(id);
      if (error.name === "AbortError") return null;
      result.error = error.message;
      result.status = error.status;
      // A file that was moved or changed since it was chosen can't be read.
      if (error.status === 0 && file && !(await isReadable(file))) {
        result.status = null;
        result.error = `${name} can't be read any more: it was changed, moved or removed since it was chosen`;
      }
    }
    result.settled = performance.now();
    return result;
  }

  function keep(result) {
    // An answer that someone is in stays, as one that was picked.
    wasPicked ||= answer.contains(document.activeElement) && run?.total > 1;
    results.unshift(result);
    result.row = rowOf(result);
    list.prepend(result.row);
    listHeading.hidden = false;
    for (const old of results.splice(KEPT_RESULTS)) {
      byRequest.delete(old.id);
      old.row.remove();
    }
    if (!wasPicked || !results.includes(selected)) selected = result;
  }

  feed.on("followed", (detail) => {
    const result = byRequest.get(detail.id.replace(/^console-/, ""));
    if (!result) return;
    result.followed = detail;
    if (result === selected) {
      light();
      showWaterfall();
    }
  });

  feed.on("batches", (detail) => {
    for (const batch of detail.batches) {
      for (const key of batch.keys ?? []) {
        batchByKey.set(key, batch);
        if (batchByKey.size > KEPT_BATCHES) batchByKey.delete(batchByKey.keys().next().value);
        if (selected?.followed?.key === key) showWaterfall();
      }
    }
  });

  function light() {
    const key = selected?.followed?.key;
    feed.dispatch("highlight", { keys: key ? [key] : [] });
  }

  let renderTimer = null;
  function renderSoon() {
    renderTimer ??= setTimeout(render, RENDER_MS);
  }

  let shown = null;

  function render() {
    clearTimeout(renderTimer);
    renderTimer = null;
    if (run && run.total > 1) say(progressOf(run));
    list.querySelector("[aria-current]")?.removeAttribute("aria-current");
    selected?.row.firstChild.setAttribute("aria-current", "true");
    if (shown !== selected) showAnswer();
  }

  function rowOf(result) {
    const [best] = result.predictions ?? [];
    const said = best
      ? [h("span.label", best.label), h("span.number", percent(best.probability))]
      : h("span.bad.whole", result.error);
    return h("li", add(button("", () => pick(result)), h("span.name", result.name), said));
  }

  function pick(result) {
    selected = result;
    wasPicked = true;
    render();
    if (answer.getBoundingClientRect().bottom < 100) answer.scrollIntoView();
  }

  const waterfall = h("div.waterfall");

  function showAnswer() {
    shown = selected;
    light();
    if (!selected) {
      replace(answer, h("p.empty.muted", "The answer to a picture appears here, with where its time went."));
      return;
    }
    const { name, model, predictions, error } = selected;
    const head = [
      h("h3.name", name),
      h("p.muted", `${model.name}, version ${model.version}; ${model.backend}, ${model.precision}`),
      error ? h("p.bad.whole", error) : comparison(selected),
    ];
    replace(
      answer,
      h("div.answer-head", preview(selected), h("div", head)),
      predictions && [predictionsTable(selected), waterfall],
      copyOf(selected),
    );
    showWaterfall();
  }

  function preview({ name, file, reference: of }) {
    if (of) return h("div.preview", picture(of, `Reference image ${of.index}`));
    const src = URL.createObjectURL(file);
    const onload = () => URL.revokeObjectURL(src);
    const onerror = () => {
      onload();
      replace(box, h("span.muted", "This browser can't show it"));
    };
    const box = h("div.preview", h("img", { alt: `Preview of ${name}`, src, onload, onerror }));
    return box;
  }

  function showWaterfall() {
    if (!selected?.predictions) return;
    const { followed, settled } = selected;
    const batch = followed && batchByKey.get(followed.key);
    if (batch && followed.submitted !== null) selected.account ??= accountOf(selected, batch);
    const left = settled + ACCOUNT_MS - performance.now();
    if (selected.account) replace(waterfall, waterfallTable(selected.account));
    else if (left > 0) {
      const waiting = selected;
      replace(waterfall, h("p.muted", "The server's account of this request is on its way"));
      setTimeout(() => waiting === selected && showWaterfall(), left + 1);
    } else replace(waterfall, waterfallTable(accountOfTiming(selected)));
  }

  function say(text) {
    tell(progress, text);
  }

  function announce({ name, predictions, error }) {
    // Where the page is one column, the answer to what was just asked may be out of sight.
    if (answer.getBoundingClientRect().top > innerHeight - 100) answer.scrollIntoView();
    announcement.textContent = error
      ? `${name}: ${error}`
      : `${name}: ${predictions[0].label}, ${percent(predictions[0].probability)}`;
  }

  feed.on("state", (detail) => {
    if (detail.restarted) reference.forget();
  });

  showAnswer();
}

/** Return 32 hexadecimal digits that no other request has. */
function requestId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
