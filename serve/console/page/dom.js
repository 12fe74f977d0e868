/**
 * Elements and numbers as text. Nothing here reads markup: whatever a string holds, it is shown as text.
 */

/**
 * Return a new element.
 *
 * @param {string} name its tag, and classes: "p.muted"
 * @param {Object<string, any>} [attributes] functions such as `onclick` listen; true sets one without a value; false, null
 *   and undefined leave it out
 * @param {...(Node|string|number|null|undefined|false|Array)} children lists are flattened; null, undefined and false left out
 */
export function h(name, ...parts) {
  return element("http://www.w3.org/1999/xhtml", name, parts);
}

/** Return a new SVG element; arguments as those of `h`. */
export function svg(name, ...parts) {
  return element("http://www.w3.org/2000/svg", name, parts);
}

function element(namespace, name, parts) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElementNS(namespace, tag);
  const [attributes, ...children] = parts[0]?.constructor === Object ? parts : [{}, ...parts];
  made.classList.add(...classes);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (typeof value === "function") made.addEventListener(key.replace(/^on/, ""), value);
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  return add(made, children);
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

/** Show `text` in `element`; the same words again would be read aloud again. */
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Return a button that calls `onclick`; further attributes as those of `h`. */
export function button(text, onclick, attributes) {
  return h("button", { type: "button", onclick, ...attributes }, text);
}

/**
 * Return a table.
 *
 * @param {string|null} caption
 * @param {Array<string|null>} heads of the columns; "Time#" is one of numbers, null of no words
 * @param {Array<Array<Node|string|null>>} rows cells of each; the first that is no number says what the row is of
 * @param {{isQuiet?: boolean, isHeadless?: boolean, widths?: Array<string>, none?: string}} [more] isQuiet: the caption is
 *   for screen readers alone; widths: classes of the columns, whatever is in them; none: stands there for no rows
 */
export function table(caption, heads, rows, { isQuiet = false, isHeadless = false, widths = [], none } = {}) {
  const isNumber = heads.map((text) => text?.endsWith("#") ?? false);
  const classes = isNumber.map((is) => (is ? "number" : null));
  const named = heads.findIndex((text, column) => text && !isNumber[column]);
  const head = (text, column) =>
    text === null ? h("td") : h("th", { scope: "col", class: classes[column] }, text.replace(/#$/, ""));
  const cell = (content, column) =>
    h(column === named ? "th" : "td", { scope: column === named && "row", class: classes[column] }, content);
  const empty = none && h("tr", h("td.muted", { colspan: heads.length }, none));
  return h(
    widths.length ? "table.fixed" : "table",
    caption && h(isQuiet ? "caption.visually-hidden" : "caption", caption),
    h("colgroup", widths.map((name) => h(`col.${name}`))),
    !isHeadless && h("thead", h("tr", heads.map(head))),
    h("tbody", rows.length ? rows.map((cells) => h("tr", cells.map(cell))) : empty),
  );
}

/** Return a box that scrolls by itself where a table in it is wider than the page. */
export function scrolling(label, ...children) {
  return h("div.scrolls", { role: "region", tabindex: "0", "aria-label": label }, children);
}

/** Return a small symbol of one path in a square of that size. */
export function symbol(size, d) {
  const box = { viewBox: `0 0 ${size} ${size}`, width: 10, height: 10, "aria-hidden": "true" };
  return svg("svg", box, svg("path", { d }));
}

/** Return a track with a bar from one share of its length to another; its row says the same in words. */
export function track(from, to, kind = "") {
  const bar = h("span", { class: `bar ${kind}` });
  bar.style.left = `${from * 100}%`;
  bar.style.width = `${(to - from) * 100}%`;
  return h("span.track", { "aria-hidden": "true" }, bar);
}

/** Text of a time: "0.42 ms", "12.3 ms", "1.20 s"; "–" for none. */
export function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2)} ms`;
}

/** Text of a number of bytes: "812 B", "1.4 MB". */
export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
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
  if (!Number.isFinite(share)) return "–";
  const text = (share * 100).toFixed(digits);
  return `${share < 1 && Number(text) === 100 ? `> ${(100 - 10 ** -digits).toFixed(digits)}` : text} %`;
}

/** Text of a count, with thin groups of thousands. */
export function count(value) {
  if (!Number.isFinite(value)) return "–";
  return value.toLocaleString("en").replaceAll(",", "\u202f");
}

/** Text of a number in as many digits as are of interest: "0.4", "3", "27". */
export function roughly(value) {
  return count(Number(value.toFixed(value < 9.95 ? 1 : 0)));
}

/** Text of "1 batch", "2 batches". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** The computed value of a colour variable, such as `--accent`, in the scheme of now; for canvases. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
