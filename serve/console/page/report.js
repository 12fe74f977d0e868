/**
 * Shows a package's report, which the page around this one sends as text, in a frame where no script runs.
 *
 * A package comes from elsewhere. The frame's empty `sandbox` takes scripts, forms, links to other windows and this
 * origin from its report, and this document's policy keeps it from fetching anything.
 */

addEventListener("message", ({ origin, source, data }) => {
  if (origin !== location.origin || source !== parent || typeof data?.report !== "string") return;
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "");
  frame.title = document.title;
  frame.srcdoc = data.report;
  document.body.replaceChildren(frame);
});
