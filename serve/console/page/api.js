/**
 * Calls of the server that gave this page, with the visitor's token where one is known.
 */

const TOKEN_KEY = "fuseline-token";

/** What the server answered instead of what was asked for, in its own words; status 0: nothing answered. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status
   * @param {string} message the server's own
   * @param {string} [name] class of the error, as the header `fuseline-error` names it
   * @param {Headers} [headers]
   */
  constructor(status, message, name, headers) {
    super(message);
    this.status = status;
    this.name = name || "ApiError";
    this.headers = headers ?? new Headers();
  }
}

export class Api {
  #token = sessionStorage.getItem(TOKEN_KEY) ?? "";

  /** The token that goes with each call; "" for none. It lives as long as this tab. */
  get token() {
    return this.#token;
  }

  set token(token) {
    this.#token = token;
    if (token) sessionStorage.setItem(TOKEN_KEY, token);
    else sessionStorage.removeItem(TOKEN_KEY);
  }

  /**
   * Return the response of a call that succeeded, its body unread.
   *
   * @param {string} path
   * @param {RequestInit} [options]
   * @returns {Promise<Response>}
   * @throws {ApiError} the server refused, or doesn't answer
   * @throws {DOMException} AbortError: `options.signal` ended the call
   */
  async open(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.#token) headers.set("authorization", `Bearer ${this.#token}`);
    let response;
    try {
      response = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, `no answer from the server at ${location.origin} (${error.message})`, "NoAnswer");
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /** Return the JSON at `path`. */
  async get(path, options) {
    return (await this.#read(path, options, "json")).body;
  }

  /** Return the text at `path`. */
  async getText(path, options) {
    return (await this.#read(path, options, "text")).body;
  }

  /** Return the bytes at `path`. */
  async getBytes(path, options) {
    return new Uint8Array((await this.#read(path, options, "arrayBuffer")).body);
  }

  /**
   * Send `body` and return the answer; its `json` is null where it has no body.
   *
   * @param {string} path
   * @param {BodyInit|object|null} body an object that is no Blob, buffer or text is sent as JSON
   * @param {{headers?: HeadersInit, signal?: AbortSignal}} [options]
   * @returns {Promise<{status: number, json: any, headers: Headers}>}
   */
  async post(path, body, { headers, signal } = {}) {
    const sent = new Headers(headers);
    const isJson =
      body !== null &&
      typeof body === "object" &&
      !(body instanceof Blob || body instanceof ArrayBuffer || ArrayBuffer.isView(body));
    if (isJson) sent.set("content-type", "application/json");
    else if (!sent.has("content-type")) sent.set("content-type", "application/octet-stream");
    const { response, body: text } = await this.#read(
      path,
      { method: "POST", body: isJson ? JSON.stringify(body) : body, headers: sent, signal },
      "text",
    );
    return { status: response.status, json: text ? JSON.parse(text) : null, headers: response.headers };
  }

  async #read(path, options, how) {
    const response = await this.open(path, options);
    try {
      return { response, body: await response[how]() };
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, `the server's answer to ${path} broke off (${error.message})`, "NoAnswer");
    }
  }
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    message = JSON.parse(text).error;
  } catch {
    message = text.trim().slice(0, 500);
  }
  return new ApiError(
    response.status,
    typeof message === "string" && message ? message : `HTTP ${response.status} ${response.statusText}`.trim(),
    response.headers.get("fuseline-error"),
    response.headers,
  );
}
