/**
 * Elements and numbers as text. Nothing here reads markup: whatever a string holds, it is shown as text.
 */

/**
 * Return a new element.
 *
 * @param {string} tag
 * @param {Object<string, any>} [attributes] `text` is the element's text; a function named `onclick` and the like
 *   listens; true sets an attribute without a value; false, null and undefined leave it out; others are set as they are.
 * @param {...(Node|string|number|null|undefined|false|Array)} children Strings and numbers become text nodes; lists are
 *   flattened; null, undefined and false are left out.
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return a new SVG element; arguments as those of `h`. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else if (name === "text") element.textContent = String(value);
    else if (name === "value") element.value = value;
    else if (name === "style") throw new Error("the page's policy forbids style attributes; set element.style.x");
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

/** Append children to `element`, which are as those of `h`. */
export function add(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/** Leave `element` with these children alone. */
export function replace(element, ...children) {
  element.replaceChildren();
  return add(element, ...children);
}

/** Return a button that calls `onclick`; further attributes as those of `h`. */
export function button(text, onclick, attributes) {
  return h("button", { type: "button", text, onclick, ...attributes });
}

/**
 * Return a table.
 *
 * @param {string} caption
 * @param {Array<string|null>} heads of the columns; "Time#" is one of numbers, null of no words
 * @param {Array<Array<Node|string|null>>} rows cells of each; the first is what the row is of
 * @param {{isQuiet?: boolean, isHeadless?: boolean, widths?: Array<string>}} [more] whether the caption is for screen
 *   readers alone; whether the heads are left out; classes that give the columns their widths, whatever is in them
 */
export function table(caption, heads, rows, { isQuiet = false, isHeadless = false, widths = [] } = {}) {
  const number = (column) => (heads[column]?.endsWith("#") ? "number" : null);
  const head = (text, column) =>
    text === null ? h("td") : h("th", { scope: "col", class: number(column), text: text.replace(/#$/, "") });
  const cell = (content, column) =>
    h(column ? "td" : "th", { scope: column ? null : "row", class: number(column) }, content);
  return h(
    "table",
    { class: widths.length ? "fixed" : null },
    h("caption", { class: isQuiet ? "visually-hidden" : null, text: caption }),
    h(
      "colgroup",
      {},
      widths.map((name) => h("col", { class: name })),
    ),
    !isHeadless && h("thead", {}, h("tr", {}, heads.map(head))),
    h(
      "tbody",
      {},
      rows.map((cells) => h("tr", {}, cells.map(cell))),
    ),
  );
}

/** Return a track with a bar from one share of its length to another; its row says the same in words. */
export function track(from, to, kind = "") {
  const bar = h("span", { class: `bar ${kind}` });
  bar.style.left = `${from * 100}%`;
  bar.style.width = `${(to - from) * 100}%`;
  return h("span", { class: "track", "aria-hidden": "true" }, bar);
}

/** Text of a time: "0.42 ms", "12.3 ms", "1.20 s"; "–" for none. */
export function milliseconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)} ms`;
}

/** Text of a number of bytes: "812 B", "1.4 MB". */
export function bytes(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Text of a share of one: "99.5 %"; with as many digits as keep a share below one apart from 100 %. */
export function percent(share, digits = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return "–";
  const text = (share * 100).toFixed(digits);
  return `${share < 1 && Number(text) === 100 ? `> ${(100 - 10 ** -digits).toFixed(digits)}` : text} %`;
}

/** Text of a count, with thin groups of thousands. */
export function count(value) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en").replaceAll(",", "\u202f");
}

/** Text of "1 batch", "2 batches". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** The computed value of a colour variable, such as `--accent`, in the scheme of now; for canvases. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
