/**
 * "Copy as": the request whose answer is shown, as text that runs as it is in a terminal or a Python program.
 */

import { button, h, replace } from "./dom.js";
import { versionPath } from "./versions.js";

const TOP_K = 5;
const COPIED_MS = 4_000;
/** What a terminal would act on, or a reader not see: control characters, and those that turn the direction of text. */
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

/** Return what makes the element that offers the texts of a result; it keeps the kind that was chosen. */
export function mountCopy(context) {
  let chosenKind = "curl";
  const outputNames = new Map();

  return function copyOf(result) {
    const code = h("code");
    const pre = h("pre", { id: "copy-text", role: "tabpanel", tabindex: "0" }, code);
    const said = h("span.muted", { role: "status" });
    const tabs = KINDS.map(([kind, title]) => {
      const attributes = { role: "tab", id: `copy-${kind}`, "aria-controls": "copy-text", onkeydown: move };
      return button(title, () => show(kind), attributes);
    });
    const copyButton = button("Copy", copied, { class: "primary" });
    let timer;

    function show(kind) {
      chosenKind = kind;
      for (const tab of tabs) {
        const isChosen = tab.id === `copy-${kind}`;
        tab.setAttribute("aria-selected", String(isChosen));
        tab.tabIndex = isChosen ? 0 : -1;
      }
      pre.setAttribute("aria-labelledby", `copy-${kind}`);
      said.textContent = "";
      code.textContent = "";
      textOf(kind).then((text) => {
        if (chosenKind === kind) code.textContent = text;
      });
    }

    async function textOf(kind) {
      const asked = askedBy(result, context.server);
      if (kind === "triton") {
        const path = versionPath("/v2", result.model);
        if (!outputNames.has(path)) {
          const metadata = await context.api.get(path).catch(() => null);
          outputNames.set(path, metadata?.outputs[0].name);
        }
        asked.outputName = outputNames.get(path);
        if (!asked.outputName) {
          outputNames.delete(path);
          return `# ${path} doesn't tell the model's output; is version ${result.model.version} still served?`;
        }
      }
      return KINDS.find(([name]) => name === kind)[2](asked);
    }

    function move(event) {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    }

    async function copied() {
      clearTimeout(timer);
      try {
        await navigator.clipboard.writeText(code.textContent);
        said.textContent = "Copied";
      } catch {
        // Without TLS a page of another machine may not write to the clipboard.
        getSelection().selectAllChildren(code);
        said.textContent = "Selected: press Ctrl+C, or ⌘C";
      }
      timer = setTimeout(() => replace(said), COPIED_MS);
    }

    show(chosenKind);
    const kinds = h("div.row", { role: "tablist", "aria-label": "Copy as" }, tabs);
    return h("div.copy", h("div.row", h("h4", "Copy as"), kinds, copyButton, said), pre);
  };
}

const TRUST = "# Where this machine does not trust the server's certificate: ";
const TOKEN = 'f"Bearer {os.environ[\'FUSELINE_TOKEN\']}"';

const KINDS = [
  ["curl", "curl", curlText],
  ["python", "Python", pythonText],
  ["triton", "tritonclient", tritonText],
];

/** Return what the texts say of a request: the model, the picture, the addresses, and what is needed to call them. */
function askedBy({ model, name, reference }, server) {
  const topK = Math.min(TOP_K, model.classes);
  return {
    model,
    topK,
    // A file named "-" would be standard input.
    file: name.startsWith("-") ? `./${name}` : name,
    reference: reference ? `${location.origin}${versionPath("/console", model)}/reference/${reference.index}` : null,
    shape: reference && `${reference.height}, ${reference.width}, ${reference.channels}`,
    classify: `${location.origin}${versionPath("/v1", model)}/classify?top_k=${topK}`,
    grpc: grpcAddress(server),
    tls: server?.tls ?? location.protocol === "https:",
    tokens: server?.tokens ?? false,
    inClear: Boolean(server?.tokens) && !server.tls && !isLoopback(location.hostname),
  };
}

/** Return the address of gRPC as this browser's machine reaches it; null where it can't. */
function grpcAddress(server) {
  const addresses = server?.grpc ?? [];
  const address = addresses.find((one) => !one.startsWith("unix:")) ?? addresses[0];
  const [, host, port] = address?.match(/^(.*):(\d+)$/) ?? [];
  const isHere = isLoopback(location.hostname);
  if (!port) return (isHere && address) || null;
  if (/^(0\.0\.0\.0|\[::\]|::|\*|)$/.test(host)) return `${location.hostname}:${port}`;
  return isLoopback(host) && !isHere ? null : address;
}

function isLoopback(host) {
  return /^(localhost|127(\.\d+){3}|\[?::1\]?)$/i.test(host);
}

function curlText({ classify, file, reference, tls, tokens }) {
  const trust = tls ? `${TRUST}--cacert ca.pem\n` : "";
  const token = tokens ? ' -H "authorization: Bearer $FUSELINE_TOKEN"' : "";
  const curl = `curl -sS --fail-with-body${token}`;
  if (reference)
    return `${trust}${curl} ${shellQuoted(reference)} |\n  ${curl} --data-binary @- ${shellQuoted(`${classify}&raw=true`)}`;
  return `${trust}${curl} --data-binary ${shellQuoted(`@${file}`)} \\\n  ${shellQuoted(classify)}`;
}

function pythonText(asked) {
  const { model, file, reference, grpc, tls, tokens, inClear, topK } = asked;
  const address = grpc ?? location.origin;
  const extra = `${tls && grpc && !grpc.startsWith("unix:") ? ", tls=True" : ""}${inClear ? ", token_in_clear=True" : ""}`;
  return lines(
    tokens && "# The token is that of the environment variable FUSELINE_TOKEN.",
    inClear && "# It leaves this machine unencrypted: the server has no TLS.",
    tls && `${TRUST}Client(..., ca="ca.pem")`,
    reference && referenceImports(asked),
    "from fuseline import Client",
    "",
    reference && referencePixels(asked),
    `with Client(${pythonQuoted(address)}${extra}) as client:`,
    `    answer = client.classify(`,
    `        ${reference ? "pixels" : pythonQuoted(file)}, model=${pythonQuoted(model.name)}, version=${pythonQuoted(model.version)}, top_k=${topK}`,
    "    )",
    "for prediction in answer.results[0].predictions:",
    '    print(f"{prediction.label}: {prediction.probability:.2%}")',
  );
}

function tritonText(asked) {
  const { model, file, reference, grpc, tls, tokens, inClear, topK, outputName } = asked;
  if (reference && !model.takes_pixels) {
    return "# This model takes normalised floats, and a reference image is pixels.\n# Choose a picture: its file is sent as it is, and the server decodes and normalises it.";
  }
  const protocol = grpc ? "grpc" : "http";
  const input = reference
    ? "inputs = pixels[None]"
    : [`with open(${pythonQuoted(file)}, "rb") as file:`, "    inputs = np.array([file.read()], dtype=np.object_)"];
  const ssl = !tls || grpc?.startsWith("unix:") ? "" : ", ssl=True";
  return lines(
    inClear && "# The token leaves this machine unencrypted: the server has no TLS.",
    tls && `${TRUST}${grpc ? 'root_certificates="ca.pem"' : 'ssl_options={"ca_certs": "ca.pem"}'}`,
    reference ? referenceImports(asked) : [tokens && ["import os", ""], "import numpy as np"],
    `from tritonclient.${protocol} import InferenceServerClient, InferInput, InferRequestedOutput`,
    "",
    reference && referencePixels(asked),
    input,
    `image = InferInput(${pythonQuoted(model.input_name)}, inputs.shape, "${reference ? "UINT8" : "BYTES"}")`,
    "image.set_data_from_numpy(inputs)",
    `best = InferRequestedOutput(${pythonQuoted(outputName)}, class_count=${topK})`,
    `with InferenceServerClient(${pythonQuoted(grpc ?? location.host)}${ssl}) as client:`,
    `    answer = client.infer(`,
    `        ${pythonQuoted(model.name)}, [image], model_version=${pythonQuoted(model.version)}, outputs=[best]${tokens ? "," : ""}`,
    tokens && `        headers={"authorization": ${TOKEN}},`,
    "    )",
    `print(answer.as_numpy(${pythonQuoted(outputName)}))  # logit:index:label`,
  );
}

function referenceImports({ tokens }) {
  return [tokens && "import os", "import urllib.request", "", "import numpy as np"];
}

function referencePixels({ reference, shape, tokens }) {
  const request = tokens
    ? [
        `request = urllib.request.Request(${pythonQuoted(reference)})`,
        `request.add_header("authorization", ${TOKEN})`,
      ]
    : [`request = ${pythonQuoted(reference)}`];
  return [
    ...request,
    "with urllib.request.urlopen(request) as response:",
    `    pixels = np.frombuffer(response.read(), np.uint8).reshape(${shape})`,
  ];
}

function lines(...parts) {
  return parts
    .flat(Infinity)
    .filter((line) => typeof line === "string")
    .join("\n");
}

/** Return `text` as one word of a shell (POSIX's; where it holds unseen characters, of bash and zsh). */
function shellQuoted(text) {
  if (text.search(UNSEEN) < 0) return `'${text.replaceAll("'", "'\\''")}'`;
  const escaped = text.replace(/['\\]/g, "\\$&").replace(UNSEEN, (sign) => {
    // By bytes, as what \u means depends on the locale.
    return Array.from(new TextEncoder().encode(sign), (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  });
  return `$'${escaped}'`;
}

/** Return `text` as a literal of Python, whatever it holds; JSON's escapes are all Python's too. */
function pythonQuoted(text) {
  return JSON.stringify(text).replace(UNSEEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
