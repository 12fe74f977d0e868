/**
 * The live strip: one bar for each of the last batches, and what tells of them.
 */

import { add, plural, replace, roughly } from "./dom.js";
import { activityOf, batchTable, sentenceOf, showNumbers } from "./readout.js";
import { REASONS } from "./reasons.js";
import { batchKey, emptyRecord, KEPT_BATCHES } from "./record.js";
import { layoutOf, plotOf, scrollTo, stripOn } from "./strip.js";
import { elementsOf, TABLE_ROWS } from "./surroundings.js";
import { median, steadyScale, timelineOf } from "./timeline.js";
import { servedModel } from "./versions.js";

const SUMMARY_MS = 5000;
const TYPICAL_OF = 60;
const ACTIVITY_SECONDS = 2;
const MOST_LIT = 64;
const HOLD_MS = 4000;
const BUSY_BATCHES = 30; // in a second

/** Show the strip in `section`, and follow the feed of `context`. */
export function mountBatches(section, context) {
  const record = emptyRecord();
  const parts = elementsOf();
  const { canvas, scroller, pauseButton, readout, details } = parts;
  add(section, parts.all);
  const strip = stripOn(canvas);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  let clock = { now: 0, wall: 0, at: 0, boot: null };
  let lit = new Set();
  let frozen = null; // what stood still when the view was paused
  let view = null; // made of the record or `frozen`; null: to be made again
  let scale = null;
  let walked = null; // x of the timeline at the right edge; null: its end
  let selected = null;
  let selectedByPage = false;
  let latestOwn = null;
  let visible = false;
  let frame = 0;
  let calmTimer = 0;
  let holdTimer = 0;
  let drawnAt = 0;
  let summarisedAt = -Infinity;
  let tabled = null;

  const batchesNow = () => record.batches(context.model);
  const serverNow = () => clock.now + (performance.now() - clock.at) / 1000;
  const isLit = (batch) => batch.keys?.some((key) => lit.has(key)) ?? false;
  const wallTime = (time) => {
    const date = new Date(1000 * (clock.wall + time - clock.now));
    return `${date.toLocaleTimeString("en-GB")}.${String(date.getMilliseconds()).padStart(3, "0")}`;
  };

  /** Draw what came; for who wants little motion, once a second at most. */
  function changed() {
    view = null;
    if (!calm.matches || frozen) return schedule();
    const wait = 1000 - (performance.now() - drawnAt);
    calmTimer ||= setTimeout(() => {
      calmTimer = 0;
      schedule();
    }, wait);
  }

  function schedule() {
    if (!visible || document.hidden) return;
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  }

  function draw() {
    drawnAt = performance.now();
    view ??= viewOf();
    const any = view.batches.length > 0;
    parts.empty.hidden = any;
    scroller.hidden = !any;
    if (!any) return;
    const { layout } = view;
    scroller.style.height = `${layout.canvasHeight}px`;
    parts.rest.style.height = `${Math.max(0, layout.contentHeight - layout.canvasHeight)}px`;
    const width = scroller.clientWidth;
    view.right = rightEdge(width);
    strip.draw({ ...view, selected, isLit, wallTime }, width, scroller.scrollTop);
  }

  function viewOf() {
    const { batches, depths } = frozen ?? contentOf();
    scale = steadyScale(scale, median(batches.slice(-TYPICAL_OF).map(({ compute }) => compute)));
    const kept = new Set(batches.map(batchKey));
    // What its bar shows: a batch may be told of long after its lane is free.
    const intervals = batches.map((batch) => ({
      started: batch.started,
      finished: batch.started + batch.compute,
      follows: kept.has(batchKey({ ...batch, n: batch.n - 1 })),
    }));
    const layout = layoutOf(batches, servedModel(context));
    return { batches, layout, timeline: timelineOf(intervals, scale), depths, pixelsPerSecond: scale };
  }

  function contentOf() {
    return { batches: batchesNow(), depths: record.depths(context.model) };
  }

  /** The right edge, at most the timeline's end, at least a strip's width. */
  function rightEdge(width) {
    const end = view.timeline.width;
    if (walked === null) return end;
    return Math.min(end, Math.max(Math.min(end, plotOf(width).width), walked));
  }

  function select(batch, { speak = false, byPage = false } = {}) {
    if (batch === selected && !speak) return;
    selected = batch;
    selectedByPage = byPage;
    showNumbers(readout, batch, wallTime);
    if (speak) parts.spoken.textContent = batch ? sentenceOf(batch, isLit(batch), wallTime) : "Nothing is chosen.";
    schedule();
  }

  /** Let the view stand still until the visitor lets it go on, or go on. */
  function pause(paused) {
    clearTimeout(holdTimer);
    holdTimer = 0;
    if (paused === Boolean(frozen)) return;
    frozen = paused ? contentOf() : null;
    walked = null;
    pauseButton.setAttribute("aria-pressed", String(paused));
    pauseButton.lastChild.textContent = paused ? "Resume" : "Pause";
    scroller.classList.toggle("paused", paused);
    tell();
    changed();
  }

  /** Select the batch beside the selected one in time, in the lane above or below, or at an end. */
  function walk(key) {
    pause(true);
    view ??= viewOf();
    const rows = view.layout.rows.filter((row) => row.batches.length > 0);
    if (rows.length === 0) return;
    let row = rows.find(({ batches }) => batches.includes(selected));
    let target = view.batches.at(-1);
    if (row) {
      const place = row.batches.indexOf(selected);
      const moves = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: row.batches.length - 1 };
      if (key in moves) target = row.batches[Math.min(row.batches.length - 1, Math.max(0, moves[key]))];
      else {
        row = rows[Math.min(rows.length - 1, Math.max(0, rows.indexOf(row) + (key === "ArrowDown" ? 1 : -1)))];
        const distance = ({ started }) => Math.abs(started - selected.started);
        target = row.batches.reduce((best, batch) => (distance(batch) < distance(best) ? batch : best));
      }
    }
    reveal(target);
    select(target, { speak: true });
  }

  /** Move the paused view to where a batch is seen. */
  function reveal(batch) {
    view ??= viewOf();
    const row = view.layout.rows.find(({ batches }) => batches.includes(batch));
    if (!row) return;
    scroller.scrollTop = scrollTo(row, scroller.scrollTop, view.layout);
    const { width } = plotOf(scroller.clientWidth);
    const [from, to] = [batch.started, batch.started + batch.compute].map(view.timeline.xOf);
    const right = rightEdge(scroller.clientWidth);
    if (to > right - 30) walked = to + 60;
    if (from < right - width + 30) walked = from - 60 + width;
  }

  /** Show the visitor's latest batch, if it is new; on a busy server, where it would be gone at once, for HOLD_MS. */
  function showOwn() {
    const batches = batchesNow();
    const own = batches.findLast(isLit);
    if (!own || own === latestOwn) return;
    latestOwn = own;
    if (selected === null || selectedByPage) select(own, { byPage: true });
    if (frozen && !holdTimer) return;
    pause(false);
    if (batches.filter(({ finished }) => finished > own.finished - 1).length < BUSY_BATCHES) return;
    pause(true);
    reveal(own);
    holdTimer = setTimeout(() => pause(false), HOLD_MS);
  }

  /** What happens now, as text: once a second, and for who listens more rarely. */
  function tell() {
    if (!visible || document.hidden) return;
    const batches = batchesNow();
    const activity = activityOf(batches, serverNow(), ACTIVITY_SECONDS);
    const newer = frozen ? batches.filter(({ started }) => started > (frozen.batches.at(-1)?.started ?? 0)).length : 0;
    const paused = `paused; ${newer}${newer < KEPT_BATCHES ? "" : " or more"} newer batches · now `;
    parts.activity.textContent = (frozen ? paused : "") + activity;
    const sampling = record.sampling();
    parts.sampling.hidden = sampling < 1.05;
    parts.sampling.textContent = `1 in ${roughly(sampling)} shown, ••• where others ran`;
    if (details.open) showTable();
    if (performance.now() - summarisedAt < SUMMARY_MS || batches.length === 0) return;
    summarisedAt = performance.now();
    const numbers = REASONS.map(({ name }) => [batches.filter(({ reason }) => reason === name).length, name]);
    const reasons = numbers.filter(([number]) => number > 0).map((pair) => pair.join(" "));
    parts.summary.textContent = `The last ${plural(batches.length, "batch", "batches")}: ${reasons.join(", ")}. ${activity}.`;
  }

  function showTable() {
    const latest = (frozen ?? contentOf()).batches.slice(-TABLE_ROWS);
    const state = latest.map((batch) => `${batchKey(batch)} ${isLit(batch)}`).join();
    if (state !== tabled) replace(parts.latest, batchTable(latest, isLit, wallTime));
    tabled = state;
  }

  context.feed.on("hello", (detail) => {
    if (clock.boot !== null && clock.boot !== detail.boot) {
      record.clear();
      pause(false);
      select(null);
      scale = null;
      changed();
    }
    clock = { ...detail, at: performance.now() };
  });
  context.feed.on("batches", (detail) => {
    record.add(detail);
    clock = { ...clock, wall: clock.wall + detail.now - clock.now, now: detail.now, at: performance.now() };
    if (!frozen && selected && !record.holds(selected)) select(null);
    if (!frozen) changed();
    showOwn();
  });
  // What waits shows beside the batches that come after it.
  context.feed.on("queued", (detail) => record.addDepths(detail));
  context.feed.on("highlight", (detail) => {
    lit = new Set(detail.keys.slice(-MOST_LIT));
    changed();
    showOwn();
  });
  context.feed.on("server", changed);
  context.feed.on("model", () => {
    if (frozen) frozen = contentOf();
    walked = null;
    scale = null;
    tabled = null;
    summarisedAt = -Infinity;
    select(null);
    tell();
    changed();
  });

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    select(strip.batchAt(event.offsetX, event.offsetY) ?? selected);
    if (!frozen) return;
    pause(true); // also if it stood still for a while only
    drag = { x: event.clientX, right: rightEdge(scroller.clientWidth) };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      walked = drag.right - (event.clientX - drag.x);
      schedule();
    } else if (event.pointerType === "mouse") {
      const batch = strip.batchAt(event.offsetX, event.offsetY);
      if (batch) select(batch);
    }
  });
  canvas.addEventListener("lostpointercapture", () => (drag = null));
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible") && selected === null && view) select(view.batches.at(-1) ?? null);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) walk(event.key);
    else if (event.key === " " || event.key === "Enter") pause(!frozen);
    else if (event.key === "Escape") select(null, { speak: true });
    else return;
    event.preventDefault();
  });
  pauseButton.addEventListener("click", () => pause(!frozen));
  scroller.addEventListener("scroll", schedule, { passive: true });
  details.addEventListener("toggle", showTable);
  document.addEventListener("visibilitychange", schedule);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    strip.recolour();
    schedule();
  });

  new ResizeObserver(schedule).observe(parts.stripBox);
  new IntersectionObserver(([entry]) => {
    visible = entry.isIntersecting;
    tell();
    schedule();
  }).observe(section);
  setInterval(tell, 1000);
  showNumbers(readout, null, wallTime);
}
