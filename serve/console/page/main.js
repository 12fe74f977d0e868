/**
 * Entry of the page: connects, tells the header's part, and mounts the four sections.
 */

import { Api, ApiError } from "./api.js";
import { mountBatches } from "./batches.js";
import { h, replace, tell } from "./dom.js";
import { Feed } from "./feed.js";
import { mountLatency } from "./latency.js";
import { mountModels } from "./models.js";
import { briefly } from "./readout.js";
import { mountTry } from "./try.js";
import { modelKey } from "./versions.js";

const SERVER_EVERY_MS = 5_000;
const MODEL_KEY = "fuseline-model";

const element = (id) => document.getElementById(id);
const api = new Api();
const feed = new Feed(api);

/**
 * What every section gets; `server` and `model` are those of now, and change with the events of the same names;
 * `readServer` asks for them at once.
 */
const context = { api, feed, server: null, model: null, readServer };

// The sections first: none may miss an event.
mountTry(element("try"), context);
mountBatches(element("batches"), context);
mountLatency(element("latency"), context);
mountModels(element("models"), context);

let reading = false;
let serverTimer;

async function readServer() {
  clearTimeout(serverTimer);
  if (reading) return;
  reading = true;
  try {
    const server = await api.get("/console/server");
    context.server = server;
    showServer(server);
    chooseModel(server);
    feed.dispatch("server", server);
  } catch (error) {
    // The feed's state says what is wrong: it asks the same server.
    if (!(error instanceof ApiError)) console.error(error);
  } finally {
    reading = false;
    if (!document.hidden) serverTimer = setTimeout(readServer, SERVER_EVERY_MS);
  }
}

feed.on("hello", readServer);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(serverTimer);
  else if (context.server) readServer();
});

function showServer({ workers, uptime_s: uptime, version }) {
  const processes = workers > 1 ? `, ${workers} workers` : "";
  const up = briefly(Math.ceil(uptime)).replace(".0", "");
  element("server-facts").textContent = `${version} at ${location.host}, up ${up}${processes}`;
  document.title = `Fuseline at ${location.host}`;
}

const select = element("model");
let offered = "";

/** Offer the models of now, and keep the choice while its model is served. */
function chooseModel({ models }) {
  const options = models.map((model) => [
    modelKey(model),
    `${model.name}, version ${model.version}${model.is_default ? "" : " (not the default)"}`,
  ]);
  if (JSON.stringify(options) !== offered) {
    offered = JSON.stringify(options);
    const wanted = select.value || sessionStorage.getItem(MODEL_KEY);
    replace(
      select,
      options.map(([value, text]) => h("option", { value }, text)),
    );
    const isWanted = (model) => modelKey(model) === wanted;
    const chosen = models.find(isWanted) ?? models.find((model) => model.is_default) ?? models[0];
    if (chosen) select.value = modelKey(chosen);
    element("model-choice").hidden = !chosen;
  }
  takeModel();
}

function takeModel() {
  const model = context.server.models.find((one) => modelKey(one) === select.value) ?? null;
  if (modelKey(model) === modelKey(context.model)) return;
  context.model = model && { name: model.name, version: model.version };
  feed.dispatch("model", context.model);
}

select.addEventListener("change", () => {
  sessionStorage.setItem(MODEL_KEY, select.value);
  takeModel();
});

const connection = element("connection");
const tokenForm = element("token-form");
const tokenError = element("token-error");

feed.on("state", (detail) => {
  const text = detail.state === "waiting" ? `${detail.message}. Trying again` : detail.message;
  connection.dataset.state = detail.state;
  tell(connection, text);
  // Without a token 403 is of something else, such as the name that the page was opened by.
  if (detail.status === 401 || (detail.status === 403 && api.token)) askForToken(detail);
  else if (detail.state === "connected") tokenForm.hidden = true;
});

function askForToken({ message }) {
  const wasWrong = Boolean(api.token);
  tokenError.textContent = wasWrong ? message : "";
  connection.textContent = wasWrong ? "The server refuses this token" : "This server asks for a token";
  api.token = "";
  tokenForm.hidden = false;
  element("token").focus();
}

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const input = element("token");
  const token = input.value.trim();
  // A header can't hold what no token has; the server would never see it.
  if (!/^[\x21-\x7e]+$/.test(token)) {
    tokenError.textContent = "A token has letters, digits and signs of ASCII, and no spaces";
    return;
  }
  api.token = token;
  input.value = "";
  tokenError.textContent = "";
  feed.retry();
});

feed.start();
