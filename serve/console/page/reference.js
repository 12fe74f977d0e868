/**
 * The reference images of a model's package, with PyTorch's own answers to them.
 */

import { h, percent, replace } from "./dom.js";
import { modelKey, versionPath } from "./versions.js";

/** Return the part with the chosen model's reference images, which are fetched once it is in sight. */
export function mountReference(context, onTry) {
  const { api, feed } = context;
  const images = h("ul.reference");
  const message = h("p.muted");
  const proof = "In the package, with PyTorch's own answers to them. Each server proves itself by them before it serves.";
  const element = h("div", h("h3", "Reference images"), h("p.muted", proof), images, message);
  let wanted = "";
  let shown = "";
  let isInSight = false;
  new IntersectionObserver(([entry]) => {
    isInSight = entry.isIntersecting;
    load();
  }).observe(element);
  feed.on("model", load);

  async function load() {
    const { model } = context;
    const key = modelKey(model);
    if (!isInSight || !model || key === wanted) return;
    wanted = key;
    const path = `${versionPath("/console", model)}/reference`;
    message.textContent = "";
    try {
      const found = await api.get(path);
      // The same answers are of the same images: who is about to press one still finds it.
      const told = JSON.stringify([key, found]);
      if (wanted !== key || told === shown) return;
      shown = "";
      const { height, width, channels, images: answers } = found;
      const boxes = answers.map(([{ label, probability }], index) => {
        const chance = percent(probability);
        const title = `PyTorch: ${label}, ${chance}`;
        const name = `Try reference image ${index}. PyTorch says ${label}, ${chance}`;
        const parts = [h("canvas", { width, height }), h("span.label", label), h("span.muted", chance)];
        return h("button", { type: "button", disabled: true, title, "aria-label": name }, parts);
      });
      replace(images, boxes.map((box) => h("li", box)));
      for (const [index, button] of boxes.entries()) {
        const pixels = await api.getBytes(`${path}/${index}`);
        if (wanted !== key) return;
        const of = { index, pixels, height, width, channels, predictions: answers[index] };
        button.firstChild.replaceWith(picture(of));
        button.disabled = false;
        button.addEventListener("click", () => onTry(of));
      }
      shown = told;
    } catch (error) {
      if (wanted !== key) return;
      replace(images);
      message.textContent = error.message;
      shown = "";
      // What passes is asked for again, with the server's next answer.
      if (error.status < 400 || error.status === 401 || error.status >= 500) wanted = "";
    }
  }

  // Not before: a server that has just begun tells what it serves once it serves it.
  feed.on("server", load);
  return {
    element,
    /** Fetch the images anew once the server has told what it serves: another server may have others. */
    forget() {
      wanted = "";
    },
  };
}

/** Return a canvas with raw pixels, uint8, height x width x channels, of one or three channels. */
export function picture({ pixels, height, width, channels }, name) {
  const canvas = h("canvas", { width, height, role: name ? "img" : null, "aria-label": name ?? null });
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    for (let channel = 0; channel < 3; channel += 1)
      image.data[4 * i + channel] = pixels[i * channels + (channels >= 3 ? channel : 0)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
