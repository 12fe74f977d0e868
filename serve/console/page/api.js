/**
 * Calls of the server that gave this page, with the visitor's token where one is known.
 */

const TOKEN_KEY = "fuseline-token";

/** What the server answered instead of what was asked for, in its own words; status 0: nothing answered. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
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

  /** Return the response of a call that succeeded, its body unread; throws AbortError where `options.signal` ended it. */
  async open(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.#token) headers.set("authorization", `Bearer ${this.#token}`);
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, `no answer from the server at ${location.origin} (${error.message})`);
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  /** Return the JSON at `path`. */
  get(path) {
    return this.#read(path, {}, "json");
  }

  /** Return the text at `path`. */
  getText(path) {
    return this.#read(path, {}, "text");
  }

  /** Return the bytes at `path`. */
  async getBytes(path) {
    return new Uint8Array(await this.#read(path, {}, "arrayBuffer"));
  }

  /** Send `body`, as JSON if it is neither file nor bytes, and return the answer's JSON, null where it has none. */
  async post(path, body, { headers, signal } = {}) {
    const isBytes = body instanceof Blob || ArrayBuffer.isView(body);
    const type = isBytes ? "application/octet-stream" : "application/json";
    const options = { method: "POST", body: isBytes ? body : JSON.stringify(body), signal };
    const text = await this.#read(path, { ...options, headers: { "content-type": type, ...headers } }, "text");
    return text ? JSON.parse(text) : null;
  }

  async #read(path, options, how) {
    const response = await this.open(path, options);
    try {
      return await response[how]();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, `the server's answer to ${path} broke off (${error.message})`);
    }
  }
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let message = text.trim().slice(0, 500);
  try {
    message = JSON.parse(text).error;
  } catch {
    // Not this server's own words: something in between answered.
  }
  return new ApiError(response.status, message || `HTTP ${response.status} ${response.statusText}`.trim());
}
