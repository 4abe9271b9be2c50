/* The page of `skyrl-modal ui` and of exported files.
 *
 * One classic script without build step: data layer, live events, charts, views, router. Text of runs reaches the page
 * only through text nodes (`el`) and is cleaned of control characters (`clean`); no HTML is built from strings.
 */
(() => {
"use strict";

// --- Text --------------------------------------------------------------------------------------------------------

const ANSI = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\-_])/g;
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const INVISIBLE = /[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

/** Return text without escape sequences and control characters; characters that change the reading order are named. */
function clean(value) {
  return String(value).replace(ANSI, "").replace(CONTROLS, "")
    .replace(INVISIBLE, (c) => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

/** Create an element. `on…` properties are listeners; null children are left out; everything else becomes text. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "text") node.textContent = clean(value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") node[name] = value;
    else node.setAttribute(name, value === true ? "" : clean(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : clean(child));
  }
}

function setText(node, text) {
  const cleaned = clean(text);
  if (node.textContent !== cleaned) node.textContent = cleaned;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e7 || size < 1e-3) return value.toExponential(3);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

function formatDuration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return seconds > 0 && seconds < 10 ? `${seconds.toFixed(1)} s` : `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function formatDate(value) {
  if (value === null || value === undefined || value === "") return "–";
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  if (Number.isNaN(date.getTime())) return String(value);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

function formatCost(value) {
  if (value === null || value === undefined) return "–";
  return value > 0 && value < 0.01 ? "< $0.01" : `$${value.toFixed(2)}`;
}

function formatBytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let size = value, unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${unit === 0 ? size : size.toFixed(1)} ${units[unit]}`;
}

const STATES = {
  pending: ["pending", "warn"], preparing: ["preparing", "warn"], running: ["running", "info"], succeeded: ["succeeded", "good"],
  failed: ["failed", "bad"], timed_out: ["timed out", "bad"], cancelled: ["cancelled", ""], lost: ["lost", "bad"],
  over_budget: ["over budget", "warn"], unknown: ["unknown", ""],
};
const OPEN_STATES = new Set(["pending", "preparing", "running", "unknown"]);

function stateBadge(state) {
  const [text, kind] = STATES[state] || [state, ""];
  return el("span", { class: `badge ${kind}`, "data-state": state }, text);
}

function plural(count, one, many = `${one}s`) { return `${count.toLocaleString("en-US")} ${count === 1 ? one : many}`; }

// --- Settings of this browser ------------------------------------------------------------------------------------

const settings = { theme: "system", smoothing: 0, log: false, x: "step" };
try { Object.assign(settings, JSON.parse(localStorage.getItem("skyrl-modal") || "{}")); } catch { /* No storage. */ }

function saveSettings() {
  try { localStorage.setItem("skyrl-modal", JSON.stringify(settings)); } catch { /* No storage. */ }
}

// --- Data --------------------------------------------------------------------------------------------------------

class RequestError extends Error {
  constructor(status, message, remedy) { super(message); this.status = status; this.remedy = remedy; }
}

const embedded = (() => {
  const node = document.getElementById("data");
  return node ? JSON.parse(node.textContent) : null;
})();

function queryOf(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") query.append(name, item);
    }
  }
  query.sort();
  return query;
}

/** Return the answer of the API; of an exported file, the answer that it contains. */
async function get(path, values = {}, signal) {
  if (embedded) return fromExport(path, values);
  const query = queryOf(values).toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, { signal, headers: { Accept: "application/json" }, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(0, "The server does not answer.", "Start `skyrl-modal ui` again and open the address that it prints.");
  }
  if (response.ok) return response.json();
  throw await errorOf(response);
}

async function errorOf(response) {
  if (response.status === 401) {
    return new RequestError(401, "This page needs the address with its token.", "Open the address that `skyrl-modal ui` printed; it contains `?token=`.");
  }
  let error = {};
  try { error = (await response.json()).error || {}; } catch { /* No JSON. */ }
  return new RequestError(response.status, error.message || `The server answered with status ${response.status}.`, error.remedy || null);
}

function fromExport(path, values) {
  const answer = embedded[path];
  if (answer === undefined) throw new RequestError(404, "This file does not contain that.", "Export the run again, or open `skyrl-modal ui`.");
  const list = (value) => (Array.isArray(value) ? value : [value]);
  if (path === "/api/series") {
    const runs = new Set(list(values.run)), keys = new Set(list(values.key)), by = values.x || "step";
    return { series: answer.series.filter((s) => runs.has(s.run) && keys.has(s.key) && (s.by || "step") === by) };
  }
  if (path.endsWith("/rollouts")) return exportedRollouts(answer, values);
  if (path.endsWith("/log") && values.search) {
    const text = values.search.toLowerCase();
    const lines = answer.lines.filter((line) => line.text.toLowerCase().includes(text));
    return { ...answer, lines: lines.slice(-2000), matches: lines.length };
  }
  return answer;
}

function exportedRollouts(answer, values) {
  let found = answer.rollouts.filter((r) => (!values.step || r.step === Number(values.step)) && (!values.source || r.source === values.source));
  if (values.order) {
    const groups = groupRollouts(found), sign = values.order === "reward_desc" ? -1 : 1;
    const rank = (group) => Math.min(...group.map((r) => (r.reward === null ? Infinity : sign * r.reward)));
    found = groups.sort((a, b) => rank(a) - rank(b)).flat();
  }
  const offset = Number(values.offset || 0), limit = Number(values.limit || 20);
  return { ...answer, total: found.length, rollouts: found.slice(offset, offset + limit) };
}

function groupRollouts(rollouts) {
  const groups = [];
  for (const rollout of rollouts) {
    const last = groups.at(-1);
    const same = last && rollout.group !== null && rollout.group !== undefined && last[0].group === rollout.group
      && last[0].step === rollout.step && last[0].source === rollout.source;
    if (same) last.push(rollout); else groups.push([rollout]);
  }
  return groups;
}

const apiRun = (id, part = "") => `/api/runs/${encodeURIComponent(id)}${part ? `/${part}` : ""}`;

// --- Live events -------------------------------------------------------------------------------------------------

const live = {
  source: null, timer: 0, failures: 0, runs: [], handlers: {}, lost: false,

  /** Receive the events of these runs (none: of the list) from now on, in place of the earlier ones. */
  start(runs, handlers) {
    this.stop();
    this.runs = runs;
    this.handlers = handlers;
    if (embedded) { showConnection("off", "Saved copy"); return; }
    this.open();
  },

  open() {
    if (!this.lost) showConnection("off", "Connecting…");
    const query = queryOf({ run: this.runs }).toString();
    const source = new EventSource(query ? `/api/events?${query}` : "/api/events");
    this.source = source;
    source.onopen = () => {
      this.failures = 0;
      showConnection("live", "Live");
      if (this.lost) { this.lost = false; this.handlers.again?.(); }
    };
    source.onerror = () => this.retry();
    for (const name of ["run", "runs", "metrics", "log"]) {
      source.addEventListener(name, (event) => {
        let data;
        try { data = JSON.parse(event.data); } catch { return; }
        this.handlers[name]?.(data);
      });
    }
  },

  retry() {
    this.source?.close();
    this.source = null;
    this.lost = true;
    this.failures += 1;
    showConnection("lost", "Disconnected. Connecting again…");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), Math.min(10000, 500 * 2 ** Math.min(this.failures - 1, 5)));
  },

  stop() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    this.lost = false;
    this.handlers = {};
  },
};

function showConnection(state, text) {
  const node = document.getElementById("connection");
  node.dataset.state = state;
  setText(node, text);
}

// --- Charts ------------------------------------------------------------------------------------------------------

const charts = new Set();
const COLORS = 10;

function cssColor(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

let palette = null;
function colors() {
  palette ??= { text: cssColor("--muted"), grid: cssColor("--grid"), series: Array.from({ length: COLORS }, (_, i) => cssColor(`--s${i}`)) };
  return palette;
}

/** Return values smoothed by an exponential moving average whose weight follows the distance in x. */
function smooth(xs, ys, weight) {
  const result = new Array(ys.length);
  const range = xs.length > 1 ? (xs.at(-1) - xs[0]) / Math.min(1000, xs.length) || 1 : 1;
  let mean = 0, norm = 0, before = null;
  for (let i = 0; i < ys.length; i += 1) {
    const y = ys[i];
    if (y === null || y === undefined) { result[i] = null; continue; }
    const keep = before === null ? weight : weight ** ((xs[i] - before) / range);
    before = xs[i];
    mean = mean * keep + y * (1 - keep);
    norm = norm * keep + (1 - keep);
    result[i] = mean / norm;
  }
  return result;
}

/** Return the index of the first value that is not below `value`. */
function lowerBound(xs, value) {
  let low = 0, high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

/** Distances of the marks on an axis of steps. */
const WHOLE_STEPS = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** A line chart. uPlot draws axes, grid, cursor and selection; the curves have their own x values, so each is drawn by a path of its own. */
class LineChart {
  constructor(host, options) {
    this.host = host;
    this.big = Boolean(options.big);
    this.onCursor = options.onCursor;
    this.onRange = options.onRange;
    this.curves = [];
    this.range = null;
    this.plot = null;
    this.message = el("p", { class: "nothing" });
    this.message.hidden = true;
    host.append(this.message);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(host);
    charts.add(this);
    if (this.big) this.listen();
  }

  destroy() {
    charts.delete(this);
    this.observer.disconnect();
    this.plot?.destroy();
    this.plot = null;
  }

  /** Draw these curves: `{run, key, color, x, low, high, y, detail, hidden}`. */
  set(curves, options) {
    const recreate = !this.plot || curves.length !== this.curves.length || options.log !== this.log || options.time !== this.time || options.smoothing > 0 !== this.smoothing > 0;
    if (options.time !== this.time) this.range = null;
    this.curves = curves;
    this.log = options.log;
    this.time = options.time;
    this.smoothing = options.smoothing;
    this.prepare();
    if (recreate) this.create(); else this.draw();
  }

  /** Return the width of a line. Canvas draws lines of one device pixel about 40 times faster than wider ones. */
  lineWidth(part) {
    if (!this.dense) return part.pale ? 1 : 1.5;
    return part.smoothed && this.curves.length <= 4 ? 1.5 : 1 / devicePixelRatio;
  }

  /** Keep, for each curve, the arrays to draw: those of the whole range, or those that were requested for a zoom. */
  prepare() {
    let first = Infinity, last = -Infinity, points = 0;
    for (const curve of this.curves) {
      points += curve.x.length;
      if (curve.x.length) { first = Math.min(first, curve.x[0]); last = Math.max(last, curve.x.at(-1)); }
      const detail = curve.detail;
      const inside = detail && this.range && detail.from <= this.range[0] && detail.to >= this.range[1];
      curve.shown = inside ? detail : curve;
      if (this.smoothing > 0) {
        if (curve.shown.smoothedBy !== this.smoothing) {
          curve.shown.smoothed = smooth(curve.shown.x, curve.shown.y, this.smoothing);
          curve.shown.smoothedBy = this.smoothing;
        }
      }
    }
    this.whole = first <= last ? [first, last] : null;
    const dense = points > 1000;
    if (this.plot && dense !== this.dense) { this.plot.destroy(); this.plot = null; }
    this.dense = dense;
  }

  xRange() {
    if (this.range) return this.range;
    if (!this.whole) return [0, 1];
    const [first, last] = this.whole;
    return first === last ? [first - 1, last + 1] : [first, last];
  }

  yRange() {
    const [from, to] = this.xRange();
    let low = Infinity, high = -Infinity;
    for (const curve of this.curves) {
      if (curve.hidden) continue;
      const { x, y } = curve.shown, lows = curve.shown.low || y, highs = curve.shown.high || y;
      const start = lowerBound(x, from);
      for (let i = start; i < x.length && x[i] <= to; i += 1) {
        const a = lows[i], b = highs[i];
        if (a === null || a === undefined) continue;
        if (this.log) {
          if (a > 0 && a < low) low = a; else if (a <= 0 && b > 0 && y[i] > 0 && y[i] < low) low = y[i];
        } else if (a < low) low = a;
        if (b > high) high = b;
      }
    }
    if (low > high) return this.log ? [1, 10] : [0, 1];
    if (this.log) return high > 0 ? uPlot.rangeLog(low, high, 10, false) : [1, 10];
    if (low === high) { const pad = Math.abs(low) * 0.1 || 1; return [low - pad, high + pad]; }
    return uPlot.rangeNum(low, high, 0.08, true);
  }

  size() { return { width: Math.max(80, Math.floor(this.host.clientWidth)), height: this.big ? Math.max(260, Math.min(520, Math.floor(innerHeight * 0.5))) : 130 }; }

  create() {
    this.plot?.destroy();
    this.plot = null;
    this.showMessage();
    if (!this.whole) return;
    const axis = (side) => ({
      scale: side, stroke: () => colors().text, font: "11px system-ui, sans-serif", gap: 4,
      grid: { stroke: () => colors().grid, width: 1 }, ticks: { show: false },
      ...(side === "x" ? { size: 24, space: this.time ? 90 : this.big ? 70 : 60 } : { size: 54, space: this.big ? 36 : 28 }),
      ...(side === "x" && !this.time ? { incrs: WHOLE_STEPS } : {}),
      values: side === "x" && this.time ? (_, splits, index, space, distance) => timeMarks(splits, distance) : (_, splits) => splits.map((v) => (v === null ? "" : shortNumber(v))),
    });
    const series = [{}];
    for (const part of this.parts()) {
      series.push({ scale: "y", stroke: () => this.color(part), width: this.lineWidth(part), points: { show: false }, auto: true, paths: (u, index) => this.path(u, index), dash: this.curves[part.curve].color >= COLORS ? [6, 4] : undefined });
    }
    this.plot = new uPlot({
      ...this.size(), padding: [8, this.time ? 30 : 10, 0, 0], legend: { show: false }, series, axes: [axis("x"), axis("y")],
      scales: { x: { time: this.time, range: () => this.xRange() }, y: { distr: this.log ? 3 : 1, range: () => this.yRange() } },
      cursor: { show: this.big, points: { show: false }, drag: { x: true, y: false, setScale: false }, focus: { prox: -1 } },
      hooks: {
        setCursor: [(u) => { if (this.big) this.cursorMoved(u); }],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          this.setRange(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
      },
    }, this.dummy(), this.host);
  }

  /** Return one entry for each drawn line: with smoothing, the values themselves (pale) and the smoothed ones. */
  parts() {
    const plain = this.curves.map((_, curve) => ({ curve, smoothed: false, pale: this.smoothing > 0 }));
    if (!(this.smoothing > 0)) return (this.lines = plain);
    return (this.lines = [...plain, ...this.curves.map((_, curve) => ({ curve, smoothed: true, pale: false }))]);
  }

  color(part) {
    const color = colors().series[this.curves[part.curve].color % COLORS];
    return part.pale ? `${color}55` : color;
  }

  dummy() { const [a, b] = this.xRange(); return [[a, b], ...this.lines.map(() => [1, 1])]; }

  path(u, index) {
    const part = this.lines[index - 1], curve = this.curves[part.curve], path = new Path2D();
    if (!curve.hidden) this.trace(u, path, curve, part);
    return { stroke: path, fill: null, clip: null, band: null, gaps: null, flags: 1 };
  }

  trace(u, path, curve, part) {
    const { x, low, high } = curve.shown, y = part.smoothed ? curve.shown.smoothed : curve.shown.y;
    const { left, top, width, height } = u.bbox, sx = u.scales.x, sy = u.scales.y, log = this.log;
    const y0 = log ? Math.log10(sy.min) : sy.min, y1 = log ? Math.log10(sy.max) : sy.max;
    const kx = width / (sx.max - sx.min), ky = height / (y1 - y0), bottom = top + height;
    const py = (v) => (log ? (v > 0 ? bottom - (Math.log10(v) - y0) * ky : bottom + height) : bottom - (v - y0) * ky);
    const start = Math.max(0, lowerBound(x, sx.min) - 1), end = Math.min(x.length, lowerBound(x, sx.max) + 1);
    const dot = 1.5 * devicePixelRatio;
    let pen = false;
    for (let i = start; i < end; i += 1) {
      const value = y[i];
      if (value === null || value === undefined) { pen = false; }
      const px = left + (x[i] - sx.min) * kx;
      if (!part.smoothed && low && low[i] !== null && low[i] !== undefined && low[i] < high[i]) {
        path.moveTo(px, py(high[i]));
        path.lineTo(px, py(low[i]));
        if (pen) { path.moveTo(left + (x[i - 1] - sx.min) * kx, py(y[i - 1])); }
      }
      if (value === null || value === undefined) continue;
      const next = y[i + 1];
      if (pen) path.lineTo(px, py(value));
      else {
        path.moveTo(px, py(value));
        if (next === null || next === undefined) { path.moveTo(px - dot, py(value)); path.lineTo(px + dot, py(value)); }
      }
      pen = true;
    }
  }

  draw() {
    this.showMessage();
    if (!this.whole || !this.plot) { this.create(); return; }
    this.plot.setData(this.dummy());
  }

  showMessage() {
    this.message.hidden = Boolean(this.whole);
    setText(this.message, "No values yet");
  }

  resize() { if (this.plot && this.host.clientWidth && Math.abs(this.plot.width - this.size().width) > 1) this.plot.setSize(this.size()); }

  recolor() { this.plot?.redraw(); }

  setRange(from, to) {
    if (!this.whole) return;
    const [first, last] = this.whole;
    const span = Math.min(Math.max(to - from, (last - first) * 1e-7 || 1e-9), last - first || 1);
    const start = Math.max(first, Math.min(from, last - span));
    this.range = start <= first && start + span >= last ? null : [start, start + span];
    this.prepare();
    this.draw();
    this.onRange?.(this.range);
  }

  zoom(factor, at = 0.5) {
    const [from, to] = this.xRange(), span = (to - from) * factor, center = from + (to - from) * at;
    this.setRange(center - span * at, center + span * (1 - at));
  }

  move(part) {
    const [from, to] = this.xRange(), by = (to - from) * part;
    this.setRange(from + by, to + by);
  }

  reset() { this.range = null; this.prepare(); this.draw(); this.onRange?.(null); }

  cursorMoved(u) {
    if (!this.onCursor) return;
    const left = u.cursor.left;
    this.onCursor(left === null || left === undefined || left < 0 ? null : u.posToVal(left, "x"));
  }

  /** Move with the shift key or the middle button, zoom with the wheel and ctrl, reset by a double click. */
  listen() {
    let grip = null;
    this.host.addEventListener("pointerdown", (event) => {
      if (!this.plot || !(event.button === 1 || (event.button === 0 && event.shiftKey))) return;
      event.preventDefault();
      event.stopPropagation();
      grip = { x: event.clientX, range: this.xRange() };
      this.host.setPointerCapture(event.pointerId);
    }, true);
    this.host.addEventListener("mousedown", (event) => { if (event.shiftKey || event.button === 1) event.stopPropagation(); }, true);
    this.host.addEventListener("pointermove", (event) => {
      if (!grip) return;
      const [from, to] = grip.range, by = ((grip.x - event.clientX) / this.plot.over.clientWidth) * (to - from);
      this.setRange(from + by, to + by);
    });
    this.host.addEventListener("pointerup", () => { grip = null; });
    this.host.addEventListener("pointercancel", () => { grip = null; });
    this.host.addEventListener("dblclick", (event) => { event.stopPropagation(); this.reset(); }, true);
    this.host.addEventListener("wheel", (event) => {
      if (!this.plot || !(event.ctrlKey || event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY))) return;
      event.preventDefault();
      const box = this.plot.over.getBoundingClientRect();
      if (event.ctrlKey) this.zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width);
      else this.move((event.deltaX || event.deltaY) / box.width);
    }, { passive: false });
  }
}

/** Return the texts of marks on an axis of time: the time, and the date where a day begins. */
function timeMarks(splits, distance) {
  let day = "";
  return splits.map((seconds) => {
    const [date, time] = formatDate(seconds).split(" "), isNew = date !== day;
    day = date;
    if (distance >= 86400) return date.slice(5);
    const exact = distance < 60 ? `${time}:${String(Math.floor(seconds % 60)).padStart(2, "0")}` : time;
    return isNew ? `${date.slice(5)} ${exact}` : exact;
  });
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e9 || size < 1e-3) return value.toExponential(0).replace("e+", "e");
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  return String(Number(value.toPrecision(6)));
}

// --- Parts of views ----------------------------------------------------------------------------------------------

/** What a view needs: a signal that aborts its requests when it is left, and functions to run then. */
class Context {
  constructor() { this.controller = new AbortController(); this.signal = this.controller.signal; this.ends = []; }
  child() { const context = new Context(); this.atEnd(() => context.end()); return context; }
  atEnd(run) { this.ends.push(run); }
  end() { this.controller.abort(); for (const run of this.ends.splice(0)) run(); }
}

function loading(text = "Loading…") { return el("p", { class: "state", role: "status" }, text); }

/** Return the parts of a text of this page or of the server; those between backticks are code. */
function prose(text) { return String(text).split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part)); }

function empty(text) { return el("p", { class: "state" }, prose(text)); }

function errorBox(error, again) {
  return el("div", { class: "notice error", role: "alert" },
    el("p", {}, el("span", { class: "kind" }, "Error: "), prose(error.message || error)),
    error.remedy ? el("p", {}, prose(error.remedy)) : null,
    again ? el("p", {}, el("button", { type: "button", onclick: again }, "Try again")) : null);
}

/** Show what `load` returns in `host`: first a text, then the content, or the error with a button to try again. */
async function fill(host, context, load) {
  host.replaceChildren(loading());
  host.setAttribute("aria-busy", "true");
  try {
    const content = await load();
    if (context.signal.aborted) return;
    host.replaceChildren(...[content].flat().filter(Boolean));
  } catch (error) {
    if (context.signal.aborted || error.name === "AbortError") return;
    const heading = host.id === "main" ? el("h1", {}, error.status === 404 ? "Not found" : "This cannot be shown") : null;
    host.replaceChildren(...[heading, errorBox(error, () => fill(host, context, load))].filter(Boolean));
    if (!(error instanceof RequestError)) console.error(error);
  } finally {
    host.removeAttribute("aria-busy");
  }
}

let fields = 0;

function field(label, control, kind = "") {
  control.id = `field-${fields += 1}`;
  return el("div", { class: `field ${kind}` }, el("label", { for: control.id }, label), control);
}

function select(options, value, onchange) {
  const node = el("select", { onchange: () => onchange(node.value) });
  setOptions(node, options, value);
  return node;
}

function setOptions(node, options, value) {
  node.replaceChildren(...options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value ?? "") }, text)));
}

function delayed(run, milliseconds) {
  let timer = 0;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => run(...values), milliseconds); };
}

/** Call `run` before the next frame, once for any number of calls. */
function framed(run) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; run(); });
  };
}

function openDialog(properties, title, ...content) {
  const id = `dialog-${Math.random().toString(36).slice(2)}`;
  const close = el("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  const dialog = el("dialog", { ...properties, "aria-labelledby": id },
    el("div", { class: "title" }, el("h2", { id, class: "data" }, title), close), ...content);
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// --- List of runs ------------------------------------------------------------------------------------------------

const picked = new Set();
const MOST_CURVES = 20;
const COLUMNS = [["name", "Run"], ["state", "State"], [null, "Script"], [null, "Step"], ["duration", "Duration"], ["cost", "Cost"], ["created", "Created"], [null, "GPU"]];

function updateCompareLink() {
  const link = document.getElementById("nav-compare");
  link.href = picked.size ? `#/compare?${queryOf({ run: [...picked] })}` : "#/compare";
  setText(link, picked.size ? `Compare (${picked.size})` : "Compare");
}

function runsView(main, context, query) {
  document.title = "Runs · skyrl-modal";
  const filter = { search: "", state: "", tag: "", script: "", since: "", until: "", sort: "created", order: "desc", ...Object.fromEntries(query) };
  const body = el("tbody"), more = el("div", { class: "more" }), count = el("p", { class: "muted", role: "status" });
  const notices = el("div"), heads = {}, problem = el("div");
  const compareButton = el("button", { type: "button", class: "primary", onclick: () => { location.hash = document.getElementById("nav-compare").hash; } });
  let shown = [], total = 0, latest = 0;

  const changed = () => {
    const given = Object.entries(filter).filter(([k, v]) => v && !(k === "sort" && v === "created") && !(k === "order" && v === "desc"));
    const text = queryOf(Object.fromEntries(given)).toString();
    history.replaceState(null, "", text ? `#/?${text}` : "#/");
    load(false);
  };
  const typed = delayed(changed, 150);
  const search = el("input", { type: "search", value: filter.search, placeholder: "Name, id, command or tag", "data-search": "", oninput: () => { filter.search = search.value; typed(); } });
  const choice = (name, all) => select([["", all]], "", (value) => { filter[name] = value; changed(); });
  const choices = { state: choice("state", "All states"), script: choice("script", "All scripts"), tag: choice("tag", "All tags") };
  const date = (name) => { const node = el("input", { type: "date", value: filter[name], onchange: () => { filter[name] = node.value; changed(); } }); return node; };

  const sortBy = (column) => {
    if (filter.sort === column) filter.order = filter.order === "desc" ? "asc" : "desc";
    else { filter.sort = column; filter.order = column === "name" || column === "state" ? "asc" : "desc"; }
    changed();
  };
  const head = el("tr", {}, el("th", { scope: "col", class: "pick" }, el("span", { class: "hidden-label" }, "Compare")));
  for (const [key, title] of COLUMNS) {
    const number = ["Step", "Duration", "Cost"].includes(title) ? "number" : "";
    const cell = el("th", { scope: "col", class: number }, key ? el("button", { type: "button", onclick: () => sortBy(key) }, title) : title);
    if (key) heads[key] = cell;
    head.append(cell);
  }
  const table = el("div", { class: "panel" },
    el("table", { class: "runs cards" }, el("caption", { class: "hidden-label" }, "Runs; the arrow keys or j and k move between them"), el("thead", {}, head), body), problem, more);
  main.replaceChildren(
    el("div", { class: "run-head" }, el("h1", {}, "Runs"), count, el("span", { class: "spacer" }), compareButton),
    el("form", { class: "toolbar", role: "search", "aria-label": "Runs", onsubmit: (event) => event.preventDefault() },
      field("Search", search, "grow"), field("State", choices.state), field("Script", choices.script), field("Tag", choices.tag, "whole"),
      field("Created from", date("since")), field("to", date("until"))),
    notices, table);

  const showPicked = () => {
    updateCompareLink();
    setText(compareButton, picked.size ? `Compare ${plural(picked.size, "run")}` : "Compare");
    compareButton.disabled = picked.size === 0;
  };

  const row = (run) => {
    const title = run.name || run.run_id;
    const box = el("input", {
      type: "checkbox", checked: picked.has(run.run_id), "aria-label": `Compare ${title}`,
      onchange: () => {
        if (box.checked && picked.size >= MOST_CURVES) { box.checked = false; setText(count, `At most ${MOST_CURVES} runs can be compared.`); return; }
        if (box.checked) picked.add(run.run_id); else picked.delete(run.run_id);
        showPicked();
      },
    });
    const cell = (label, content, kind = "") => el("td", { "data-label": label, class: kind + (content === "–" || content === "" ? " none" : "") }, content);
    return el("tr", { "data-run": run.run_id },
      el("td", { class: "pick", "data-label": "Compare" }, box),
      el("th", { scope: "row" }, el("div", {},
        el("a", { class: "name data", href: `#/run/${encodeURIComponent(run.run_id)}/metrics` }, title),
        run.name ? el("span", { class: "id" }, run.run_id) : null,
        run.tags.map((tag) => el("span", { class: "tag data" }, tag)))),
      el("td", { "data-label": "State" }, stateBadge(run.state)),
      cell("Script", run.script ? el("code", { class: "data", title: run.command }, run.script.split("/").at(-1)) : "–"),
      cell("Step", run.step === null || run.step === undefined ? "–" : formatNumber(run.step), "number"),
      cell("Duration", formatDuration(run.duration), "number"),
      cell("Cost", formatCost(run.cost), "number"),
      cell("Created", formatDate(run.created_at)),
      cell("GPU", run.gpu.length ? `${run.nodes > 1 ? `${run.nodes} × ` : ""}${run.gpu.join(", ")}` : "–"));
  };

  async function load(add) {
    const turn = latest += 1;
    for (const [key, cell] of Object.entries(heads)) cell.setAttribute("aria-sort", key === filter.sort ? (filter.order === "asc" ? "ascending" : "descending") : "none");
    if (!shown.length) problem.replaceChildren(loading());
    try {
      const limit = add ? 100 : Math.max(100, Math.min(1000, shown.length));
      const answer = await get("/api/runs", { ...filter, limit, offset: add ? shown.length : 0 }, context.signal);
      if (turn !== latest || context.signal.aborted) return;
      total = answer.total;
      const focused = document.activeElement?.closest?.("tr[data-run]")?.dataset.run, onBox = document.activeElement?.type === "checkbox";
      if (add) body.append(...answer.runs.map(row)); else body.replaceChildren(...answer.runs.map(row));
      shown = add ? [...shown, ...answer.runs] : answer.runs;
      if (focused && document.activeElement === document.body) {
        const again = [...body.rows].find((line) => line.dataset.run === focused);
        again?.querySelector(onBox ? "input" : "a.name").focus();
      }
      setText(count, total > shown.length ? `${shown.length.toLocaleString("en-US")} of ${plural(total, "run")}` : plural(total, "run"));
      setOptions(choices.state, [["", "All states"], ...answer.states.map((s) => [s, (STATES[s] || [s])[0]])], filter.state);
      setOptions(choices.script, [["", "All scripts"], ...answer.scripts.map((s) => [s, s.split("/").at(-1)])], filter.script);
      setOptions(choices.tag, [["", "All tags"], ...answer.tags.map((t) => [t, t])], filter.tag);
      notices.replaceChildren(...(answer.unavailable || []).map((u) => el("div", { class: "notice warning" },
        el("p", {}, el("span", { class: "kind" }, `Runs of ${u.backend} are not up to date: `), u.reason))));
      const filtered = ["search", "state", "tag", "script", "since", "until"].some((name) => filter[name]);
      problem.replaceChildren(...(total ? [] : [empty(filtered ? "No run matches these filters." : "No runs yet. Start one with `skyrl-modal run`; it appears here.")]));
      more.replaceChildren(...(total > shown.length ? [el("button", { type: "button", onclick: () => load(true) }, `Show ${Math.min(100, total - shown.length)} more`)] : []));
      more.hidden = total <= shown.length;
    } catch (error) {
      if (error.name === "AbortError" || context.signal.aborted) return;
      body.replaceChildren();
      shown = [];
      more.replaceChildren();
      problem.replaceChildren(errorBox(error, () => load(false)));
    }
  }

  body.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.type === "checkbox") event.target.closest("tr").querySelector("a.name").click(); });
  const moveFocus = (event) => {
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const names = [...body.querySelectorAll("a.name")];
    if (!names.length) return;
    const at = names.findIndex((name) => name.closest("tr").contains(document.activeElement));
    names[at < 0 ? (step > 0 ? 0 : names.length - 1) : Math.max(0, Math.min(names.length - 1, at + step))].focus();
    event.preventDefault();
  };
  document.addEventListener("keydown", moveFocus);
  context.atEnd(() => document.removeEventListener("keydown", moveFocus));
  showPicked();
  load(false);
  const refresh = delayed(() => load(false), 100);
  live.start([], { runs: refresh, again: refresh });
}

function isTyping(node) { return node.matches?.("textarea, select, input:not([type='checkbox'])"); }

// --- Metrics -----------------------------------------------------------------------------------------------------

const PREFIXES = ["reward", "eval", "loss", "policy", "critic", "generate", "timing", "trainer", "async", "environment", "other", "vllm", "ray"];
const FOLDED = new Set(["vllm", "ray"]);

function prefixOf(key) { const at = key.indexOf("/"); return at > 0 ? key.slice(0, at) : "other"; }

function compareKeys(a, b) {
  const place = (key) => { const index = PREFIXES.indexOf(prefixOf(key)); return index < 0 ? PREFIXES.indexOf("other") - 0.5 : index; };
  const first = (key) => (key === "reward/avg_raw_reward" || key === "eval/all/avg_score" || key === "timing/step" ? 0 : 1);
  return place(a) - place(b) || prefixOf(a).localeCompare(prefixOf(b)) || first(a) - first(b) || a.localeCompare(b, "en", { numeric: true });
}

/** Curves of one or several runs: all keys as small charts by prefix; one of them enlarged in a dialog. */
class Metrics {
  /** @param runs `{id, name, color}`; `page.key()` and `page.openKey(key)` read and write the enlarged key of the address. */
  constructor(host, context, runs, page) {
    Object.assign(this, { host, context, runs, page });
    this.cards = new Map();
    this.hidden = new Set();
    this.queue = new Set();
    this.filterText = "";
    this.dirty = new Set();
    this.request = delayed(() => this.loadQueue(), 0);
    this.reloadSoon = delayed(() => this.reload(), 500);
    this.redraw = framed(() => { for (const card of this.dirty) this.drawCard(card); this.dirty.clear(); if (this.dialog && this.dialogDirty) { this.dialogDirty = false; this.drawDialog(); } });
    this.watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const card = this.cards.get(entry.target.dataset.key);
        if (!card) continue;
        card.visible = entry.isIntersecting;
        if (card.visible && !card.loaded) { this.queue.add(card.key); this.request(); } else if (card.visible && card.stale) this.changedCard(card);
      }
    }, { rootMargin: "200px" });
    context.atEnd(() => { this.watcher.disconnect(); for (const card of this.cards.values()) card.chart?.destroy(); this.dialog?.close(); });
  }

  async load() {
    const answers = await Promise.all(this.runs.map((run) => get(apiRun(run.id, "keys"), {}, this.context.signal)));
    this.last = new Map();
    for (const [i, answer] of answers.entries()) {
      for (const key of answer.keys) {
        if (!this.last.has(key)) this.last.set(key, new Map());
        this.last.get(key).set(this.runs[i].id, answer.last[key]);
      }
    }
    this.groups = el("div");
    const content = [this.toolbar(), this.groups];
    this.renderGroups();
    queueMicrotask(() => this.showKey());
    return content;
  }

  toolbar() {
    const search = el("input", { type: "search", placeholder: "For example reward", "data-search": "", oninput: () => { this.filterText = search.value.trim().toLowerCase(); this.renderGroups(); } });
    return el("div", { class: "toolbar" }, field("Filter keys", search, "grow"), ...this.controls(() => this.changedAll()));
  }

  /** Return the controls that both the small charts and the enlarged one have. */
  controls(changed) {
    const value = el("output", {}, settings.smoothing.toFixed(2));
    const slider = el("input", {
      type: "range", min: 0, max: 0.99, step: 0.01, value: settings.smoothing,
      oninput: () => { settings.smoothing = Number(slider.value); setText(value, settings.smoothing.toFixed(2)); saveSettings(); changed(); },
    });
    const log = el("input", { type: "checkbox", checked: settings.log, onchange: () => { settings.log = log.checked; saveSettings(); changed(); } });
    const x = select([["step", "Step"], ["time", "Time"]], settings.x, (by) => { settings.x = by; saveSettings(); this.reload(); });
    return [
      el("div", { class: "field" }, el("label", { class: "smoothing" }, el("span", {}, "Smoothing ", value), slider)),
      field("Horizontal axis", x), el("label", { class: "field row" }, log, "Log scale"),
    ];
  }

  renderGroups() {
    const keys = [...this.last.keys()].filter((key) => key.toLowerCase().includes(this.filterText)).sort(compareKeys);
    if (!keys.length) {
      this.groups.replaceChildren(empty(this.last.size ? "No key matches." : "No metrics yet. They appear here as soon as the run logs a step."));
      return;
    }
    const open = new Map([...this.groups.querySelectorAll("details")].map((node) => [node.dataset.prefix, node.open]));
    const byPrefix = new Map();
    for (const key of keys) {
      if (!byPrefix.has(prefixOf(key))) byPrefix.set(prefixOf(key), []);
      byPrefix.get(prefixOf(key)).push(key);
    }
    const fold = this.last.size > 40;
    this.groups.replaceChildren(...[...byPrefix].map(([prefix, names]) => el("details", {
      class: "group", "data-prefix": prefix, open: open.get(prefix) ?? (Boolean(this.filterText) || !(fold && FOLDED.has(prefix))),
    }, el("summary", {}, el("h2", { class: "data" }, prefix), el("span", { class: "muted" }, ` ${names.length}`)),
    el("div", { class: "charts" }, names.map((key) => this.card(key).node)))));
  }

  card(key) {
    let card = this.cards.get(key);
    if (card) return card;
    const plot = el("div", { class: "plot" }), last = el("span", { class: "last" }), short = key.includes("/") ? key.slice(key.indexOf("/") + 1) : key;
    const open = el("button", { type: "button", class: "open data", "aria-label": `Enlarge ${key}`, title: key, onclick: () => this.page.openKey(key) }, short);
    card = { key, plot, last, curves: [], loaded: false, visible: false, stale: false, chart: null, node: el("figure", { class: "chart", "data-key": key }, el("div", { class: "head" }, open, last), plot) };
    card.chart = new LineChart(plot, { big: false });
    this.cards.set(key, card);
    this.watcher.observe(card.node);
    this.showLast(card);
    return card;
  }

  showLast(card) {
    const values = this.last.get(card.key);
    setText(card.last, this.runs.length === 1 ? formatNumber(values?.get(this.runs[0].id)) : "");
  }

  async loadQueue() {
    const keys = [...this.queue];
    this.queue.clear();
    const most = this.runs.length > 4 ? 8 : 30;
    for (let i = 0; i < keys.length; i += most) await this.loadKeys(keys.slice(i, i + most));
  }

  async loadKeys(keys) {
    for (const key of keys) this.cards.get(key).loaded = true;
    try {
      const curves = await this.fetchCurves(keys, 300);
      for (const key of keys) { const card = this.cards.get(key); card.curves = curves.get(key); this.drawCard(card); }
    } catch (error) {
      if (error.name === "AbortError" || this.context.signal.aborted) return;
      for (const key of keys) { const card = this.cards.get(key); card.loaded = false; card.chart.message.hidden = false; setText(card.chart.message, error.message); }
    }
  }

  async fetchCurves(keys, points, range = {}) {
    const by = settings.x;
    const answer = await get("/api/series", { run: this.runs.map((r) => r.id), key: keys, x: by, points, ...range }, this.context.signal);
    const found = new Map(answer.series.map((s) => [`${s.run}\n${s.key}`, s]));
    return new Map(keys.map((key) => [key, this.runs.map((run) => {
      const series = found.get(`${run.id}\n${key}`) || { x: [], y: [], low: null, high: null, count: 0 };
      return { run, color: run.color, hidden: this.hidden.has(run.id), x: series.x, y: series.y, low: series.low, high: series.high, count: series.count };
    })]));
  }

  options() { return { log: settings.log, time: settings.x === "time", smoothing: settings.smoothing }; }

  drawCard(card) {
    if (!card.loaded) return;
    card.stale = false;
    for (const curve of card.curves) curve.hidden = this.hidden.has(curve.run.id);
    card.chart.set(card.curves, this.options());
  }

  changedCard(card) { if (!card.visible) { card.stale = true; return; } this.dirty.add(card); this.redraw(); }

  changedAll() { for (const card of this.cards.values()) this.changedCard(card); this.dialogDirty = true; this.redraw(); }

  /** Request all series again, for another horizontal axis or after an interruption. */
  reload() {
    for (const card of this.cards.values()) { card.loaded = false; if (card.visible) this.queue.add(card.key); }
    this.request();
    if (this.dialog) { this.big.range = null; this.loadDialog(); }
  }

  hide(id, hidden) { if (hidden) this.hidden.add(id); else this.hidden.delete(id); this.changedAll(); }

  /** Add the rows of an event to the curves that are loaded. */
  add(event) {
    const run = this.runs.find((r) => r.id === event.run);
    if (!run || !this.last) return;
    if (event.skipped) this.reloadSoon();
    let newKeys = false;
    for (const row of event.rows) {
      for (const [key, value] of Object.entries(row.values)) {
        if (!this.last.has(key)) { this.last.set(key, new Map()); newKeys = true; }
        this.last.get(key).set(run.id, value);
        const card = this.cards.get(key);
        if (card) { this.showLast(card); if (card.loaded) { this.addPoint(card.curves, run, row, value, 900); this.changedCard(card); } }
        if (this.dialog && this.dialogKey === key && this.dialogCurves) { this.addPoint(this.dialogCurves, run, row, value, 6000); this.dialogDirty = true; }
      }
    }
    if (newKeys) this.renderGroups();
    this.redraw();
  }

  addPoint(curves, run, row, value, most) {
    const curve = curves.find((c) => c.run.id === run.id);
    if (!curve) return;
    const x = settings.x === "time" ? row.time : row.step;
    if (typeof x !== "number") return;
    const y = typeof value === "number" ? value : null, last = curve.x.length - 1;
    curve.smoothedBy = undefined;
    if (last >= 0 && x < curve.x[last]) return;
    if (last >= 0 && x === curve.x[last]) { curve.y[last] = y; if (curve.low) { curve.low[last] = y; curve.high[last] = y; } return; }
    curve.x.push(x); curve.y.push(y); curve.low?.push(y); curve.high?.push(y); curve.count += 1;
    if (curve.x.length > most) halve(curve);
  }

  // The enlarged chart.

  showKey() {
    const key = this.page.key();
    if (key && this.last?.has(key)) { if (this.dialogKey !== key || !this.dialog) this.openDialog(key); } else this.dialog?.close();
  }

  openDialog(key) {
    this.dialog?.close();
    const plot = el("div", { class: "plot big", tabindex: 0, role: "group", "data-big": "", "aria-label": `Chart of ${key}. Arrow keys move, plus and minus zoom, 0 shows everything.` });
    this.values = el("tbody");
    const at = el("th", { scope: "col", class: "number" }, "At cursor");
    const button = (text, label, run) => el("button", { type: "button", "aria-label": label, title: label, onclick: run }, text);
    const dialog = openDialog({ class: "wide" }, key,
      el("div", { class: "toolbar" }, ...this.controls(() => this.changedAll()), el("span", { class: "spacer" }),
        el("div", { class: "buttons", role: "group", "aria-label": "Range" },
          button("←", "Move left", () => this.big.move(-0.25)), button("→", "Move right", () => this.big.move(0.25)),
          button("+", "Zoom in", () => this.big.zoom(0.5)), button("−", "Zoom out", () => this.big.zoom(2)), button("All", "Show everything", () => this.big.reset()))),
      plot, this.problem = el("div"),
      el("p", { class: "muted" }, "Drag to zoom, drag with Shift to move, double-click to show everything."),
      el("table", { class: "cards" }, el("caption", { class: "hidden-label" }, `Values of ${key}`),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Run"), at, ...["Last", "Lowest", "Highest", "Values"].map((t) => el("th", { scope: "col", class: "number" }, t)))), this.values));
    this.dialog = dialog;
    this.dialogKey = key;
    this.dialogCurves = null;
    const big = this.big = new LineChart(plot, { big: true, onCursor: (x) => this.showCursor(x), onRange: delayed((range) => this.loadDetail(range), 120) });
    plot.addEventListener("keydown", (event) => {
      const act = { ArrowLeft: () => big.move(-0.1), ArrowRight: () => big.move(0.1), "+": () => big.zoom(0.5), "=": () => big.zoom(0.5), "-": () => big.zoom(2), 0: () => big.reset() }[event.key];
      if (act) { act(); event.preventDefault(); }
    });
    dialog.addEventListener("close", () => {
      big.destroy();
      if (this.dialog !== dialog) return;
      this.dialog = null;
      if (!this.context.signal.aborted && this.page.key() === key) this.page.openKey(null);
      this.cards.get(key)?.node.querySelector(".open").focus();
    });
    plot.focus();
    this.loadDialog();
  }

  async loadDialog() {
    const key = this.dialogKey;
    try {
      const curves = (await this.fetchCurves([key], 1500)).get(key);
      if (this.dialogKey !== key || !this.dialog) return;
      this.dialogCurves = curves;
      this.problem.replaceChildren();
      this.drawDialog();
    } catch (error) {
      if (error.name !== "AbortError") this.problem.replaceChildren(errorBox(error, () => this.loadDialog()));
    }
  }

  /** Request the values of a zoomed range, with half a range more on each side so that a small move needs no request. */
  async loadDetail(range) {
    const key = this.dialogKey, curves = this.dialogCurves;
    if (!range || !curves || !this.dialog || embedded) return;
    if (curves.every((c) => c.detail && c.detail.from <= range[0] && c.detail.to >= range[1] && c.detail.to - c.detail.from < 4 * (range[1] - range[0]))) return;
    if (curves.every((c) => c.count <= c.x.length)) return;
    const span = range[1] - range[0], from = range[0] - span / 2, to = range[1] + span / 2;
    const turn = this.turn = (this.turn || 0) + 1;
    try {
      const found = (await this.fetchCurves([key], 2000, { from, to })).get(key);
      if (turn !== this.turn || this.dialogCurves !== curves || !this.dialog) return;
      for (const [i, curve] of curves.entries()) curve.detail = { from, to, x: found[i].x, y: found[i].y, low: found[i].low, high: found[i].high };
      this.drawDialog();
    } catch { /* The values of the whole range stay. */ }
  }

  drawDialog() {
    const curves = this.dialogCurves;
    if (!curves) return;
    const start = performance.now();
    for (const curve of curves) curve.hidden = this.hidden.has(curve.run.id);
    this.big.set(curves, this.options());
    const labels = ["Last", "Lowest", "Highest", "Values"];
    this.values.replaceChildren(...curves.map((curve) => {
      let low = Infinity, high = -Infinity, last = null;
      for (let i = 0; i < curve.x.length; i += 1) {
        const a = (curve.low || curve.y)[i], b = (curve.high || curve.y)[i];
        if (a !== null && a < low) low = a;
        if (b !== null && b > high) high = b;
        if (curve.y[i] !== null) last = curve.y[i];
      }
      const cells = [last, low > high ? null : low, low > high ? null : high, curve.count];
      curve.cell = el("td", { class: "number", "data-label": "At cursor" });
      return el("tr", {}, el("th", { scope: "row" }, el("span", {}, swatch(curve.color), el("span", { class: "data" }, curve.run.name))), curve.cell,
        cells.map((value, i) => el("td", { class: "number", "data-label": labels[i] }, formatNumber(value))));
    }));
    this.big.host.dataset.drawn = (performance.now() - start).toFixed(1);
  }

  showCursor(x) {
    for (const curve of this.dialogCurves || []) {
      if (!curve.cell) continue;
      if (x === null || !curve.shown?.x.length) { setText(curve.cell, ""); continue; }
      const xs = curve.shown.x;
      let i = Math.min(xs.length - 1, lowerBound(xs, x));
      if (i > 0 && x - xs[i - 1] < xs[i] - x) i -= 1;
      const at = settings.x === "time" ? formatDate(xs[i]) : formatNumber(xs[i]);
      setText(curve.cell, `${formatNumber(curve.shown.y[i])} (${at})`);
    }
  }
}

/** Join pairs of points, and keep their extremes. */
function halve(curve) {
  const { x, y } = curve, low = curve.low || y, high = curve.high || y, result = { x: [], y: [], low: [], high: [] };
  for (let i = 0; i < x.length; i += 2) {
    const j = Math.min(i + 1, x.length - 1), lows = [low[i], low[j]].filter((v) => v !== null), highs = [high[i], high[j]].filter((v) => v !== null);
    result.x.push(x[j]); result.y.push(y[j]);
    result.low.push(lows.length ? Math.min(...lows) : null); result.high.push(highs.length ? Math.max(...highs) : null);
  }
  Object.assign(curve, result);
}

function swatch(color, block = false) {
  return el("span", { class: `swatch ${block ? "block" : ""} c${color % COLORS} ${color >= COLORS ? "dashed" : ""}`, "aria-hidden": "true" });
}

// --- Phases ------------------------------------------------------------------------------------------------------

/** Phases of SkyRL that contain others: they are left out of the stack until they are chosen. */
const OUTER_PHASES = new Set(["timing/step", "timing/train_critic_and_policy/total", "timing/policy_train", "timing/critic_train"]);

/** Bars of stacked phases, one for each step or for the mean of some neighbouring steps. */
class PhaseChart {
  constructor(host, onCursor) {
    this.host = host;
    this.onCursor = onCursor;
    this.plot = null;
    this.observer = new ResizeObserver(() => { if (this.plot && Math.abs(this.plot.width - host.clientWidth) > 1) this.draw(); });
    this.observer.observe(host);
    charts.add(this);
  }

  destroy() { charts.delete(this); this.observer.disconnect(); this.plot?.destroy(); this.plot = null; }

  recolor() { this.plot?.redraw(); }

  set(steps, phases) { this.steps = steps; this.phases = phases; this.draw(); }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    const width = Math.max(120, Math.floor(this.host.clientWidth)), most = Math.max(20, Math.floor((width - 60) / 4));
    const size = Math.ceil(this.steps.length / most) || 1, x = [], tops = this.phases.map(() => []), base = [];
    for (let i = 0; i < this.steps.length; i += size) {
      const end = Math.min(i + size, this.steps.length);
      x.push(this.steps[end - 1]);
      let top = 0;
      for (const [p, phase] of this.phases.entries()) {
        let sum = 0, count = 0;
        for (let j = i; j < end; j += 1) if (phase.values[j] !== null && phase.values[j] !== undefined) { sum += phase.values[j]; count += 1; }
        top += count ? sum / count : 0;
        tops[p].push(top);
      }
      base.push(top);
    }
    this.x = x;
    const highest = Math.max(...base, 0) || 1, gap = x.length > 1 ? x[1] - x[0] : 1;
    const axis = (extra) => ({ stroke: () => colors().text, font: "11px system-ui, sans-serif", grid: { stroke: () => colors().grid, width: 1 }, ticks: { show: false }, gap: 4, ...extra });
    const bars = (p) => (u) => {
      const fill = new Path2D(), half = Math.max(1, ((u.valToPos(gap, "x", true) - u.valToPos(0, "x", true)) * 0.86) / 2);
      for (let i = 0; i < x.length; i += 1) {
        const center = u.valToPos(x[i], "x", true), top = u.valToPos(tops[p][i], "y", true), bottom = u.valToPos(p ? tops[p - 1][i] : 0, "y", true);
        if (bottom > top) fill.rect(center - half, top, 2 * half, bottom - top);
      }
      return { stroke: null, fill, clip: null, band: null, gaps: null, flags: 1 };
    };
    if (!x.length || !this.phases.length) return;
    this.plot = new uPlot({
      width, height: 320, padding: [8, 10, 0, 0], legend: { show: false },
      scales: { x: { time: false, range: () => [x[0] - gap / 2, x.at(-1) + gap / 2] }, y: { range: () => [0, highest * 1.04] } },
      axes: [axis({ size: 24, incrs: WHOLE_STEPS, values: (_, splits) => splits.map((v) => (Number.isInteger(v) ? shortNumber(v) : "")) }), axis({ size: 54, values: (_, splits) => splits.map((v) => `${shortNumber(v)} s`) })],
      series: [{}, ...this.phases.map((phase, p) => ({ scale: "y", width: 0, fill: () => colors().series[phase.color % COLORS] + (phase.color >= COLORS ? "99" : ""), points: { show: false }, paths: bars(p) }))],
      cursor: { points: { show: false }, drag: { x: false, y: false }, y: false },
      hooks: { setCursor: [(u) => this.onCursor(u.cursor.idx ?? null, this.phases.map((_, p) => { const i = u.cursor.idx; return i === null || i === undefined ? null : tops[p][i] - (p ? tops[p - 1][i] : 0); }))] },
    }, [x, ...tops], this.host);
  }
}

async function phasesTab(run, context) {
  const answer = await get(apiRun(run.id, "phases"), {}, context.signal);
  if (!answer.phases.length || !answer.steps.length) return empty("No times per phase. SkyRL logs them as `timing/…`, once a step.");
  const names = [...answer.phases].sort(compareKeys), chosen = new Set(names.filter((name) => !OUTER_PHASES.has(name)));
  if (!chosen.size) names.forEach((name) => chosen.add(name));
  const plot = el("div", { class: "plot", role: "img", "aria-label": `Seconds per phase of ${plural(answer.steps.length, "step")}; the table below has the values.` });
  const cells = new Map(), caption = el("p", { class: "muted" }), body = el("tbody");
  const chart = new PhaseChart(plot, (index, values) => {
    setText(caption, index === null ? "" : `Step ${formatNumber(chart.x[index])}`);
    chart.phases.forEach((phase, p) => setText(cells.get(phase.name), values[p] === null ? "" : formatDuration(values[p])));
  });
  context.atEnd(() => chart.destroy());
  const draw = () => chart.set(answer.steps, names.map((name, color) => ({ name, color, values: answer.values[name] })).filter((phase) => chosen.has(phase.name)));
  const numbers = new Map();
  const showNumbers = () => {
    const sums = new Map(names.map((name) => [name, answer.values[name].reduce((sum, v) => sum + (v || 0), 0)]));
    const whole = names.filter((name) => chosen.has(name)).reduce((sum, name) => sum + sums.get(name), 0);
    for (const name of names) {
      const [mean, total, share] = numbers.get(name), count = answer.values[name].filter((v) => v !== null && v !== undefined).length;
      setText(mean, formatDuration(sums.get(name) / (count || 1)));
      setText(total, formatDuration(sums.get(name)));
      setText(share, chosen.has(name) && whole ? `${((100 * sums.get(name)) / whole).toFixed(1)} %` : "–");
    }
  };
  body.append(...names.map((name, color) => {
    const box = el("input", { type: "checkbox", checked: chosen.has(name), onchange: () => {
      if (box.checked) chosen.add(name); else chosen.delete(name);
      showNumbers();
      draw();
    } });
    const [at, ...others] = ["At cursor", "Mean", "Total", "Share"].map((label) => el("td", { class: "number", "data-label": label }));
    cells.set(name, at);
    numbers.set(name, others);
    return el("tr", {}, el("th", { scope: "row" }, el("label", { class: "field row" }, box, swatch(color, true), el("span", { class: "data" }, name.replace(/^timing\//, "")))), at, others);
  }));
  const changed = framed(() => { showNumbers(); draw(); });
  run.addPhases = (event) => {
    for (const row of event.rows) {
      if (!(row.step > answer.steps.at(-1)) || !names.some((name) => name in row.values)) continue;
      answer.steps.push(row.step);
      for (const name of names) answer.values[name].push(row.values[name] ?? null);
      changed();
    }
  };
  context.atEnd(() => { run.addPhases = null; });
  showNumbers();
  requestAnimationFrame(draw);
  return [el("div", { class: "panel section" }, el("h2", {}, "Seconds per phase and step"), plot, caption),
    el("div", { class: "panel" }, el("table", { class: "cards" }, el("caption", { class: "hidden-label" }, "Phases"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Phase"), ...["At cursor", "Mean", "Total", "Share"].map((t) => el("th", { scope: "col", class: "number" }, t)))), body)),
    el("p", { class: "muted" }, "A phase that contains others, such as step, is left out of the stack until it is chosen.")];
}

// --- Rollouts ----------------------------------------------------------------------------------------------------

const FOLD_AT = 900, FOLD_TO = 700, UNFOLD = 100000;

/** Show a text; of a long one the beginning, with a button for the rest. */
function longText(text) {
  const cleaned = clean(text);
  if (cleaned.length <= FOLD_AT) return el("div", { class: "text" }, cleaned);
  const shown = el("div", { class: "text" }, `${cleaned.slice(0, FOLD_TO)}…`);
  let length = FOLD_TO;
  const button = el("button", { type: "button", class: "link", "aria-expanded": "false", onclick: () => {
    length = length >= cleaned.length ? FOLD_TO : Math.min(cleaned.length, Math.max(UNFOLD, length + UNFOLD));
    shown.textContent = length < cleaned.length ? `${cleaned.slice(0, length)}…` : cleaned;
    label();
  } });
  const label = () => {
    button.setAttribute("aria-expanded", String(length > FOLD_TO));
    setText(button, length >= cleaned.length ? "Show less" : `Show ${length > FOLD_TO ? "more" : "all"} (${plural(cleaned.length, "character")})`);
  };
  label();
  return el("div", {}, shown, button);
}

function messages(list) {
  return list.map((message) => {
    const role = ["assistant", "user", "system", "tool"].includes(message.role) ? message.role : "";
    return el("div", { class: `message ${role}` }, el("div", { class: "role data" }, message.role || "text"), longText(message.content ?? ""));
  });
}

function rewardBadge(reward) {
  if (reward === null || reward === undefined) return el("span", { class: "muted" }, "no reward");
  return el("span", { class: "reward" }, `reward ${formatNumber(reward)}`);
}

function rolloutGroup(group) {
  const first = group[0], rewards = group.map((r) => r.reward).filter((r) => typeof r === "number");
  const same = group.every((r) => JSON.stringify(r.prompt) === JSON.stringify(first.prompt));
  const title = group.length > 1 ? `Step ${first.step ?? "–"}, ${group.length} responses` : `Step ${first.step ?? "–"}`;
  return el("article", { class: "panel rollout-group", "aria-label": title },
    el("header", {}, el("h2", {}, title), first.source ? el("span", { class: "tag data" }, first.source) : null,
      group.length > 1 && rewards.length ? el("span", { class: "muted" }, `mean reward ${formatNumber(rewards.reduce((a, b) => a + b, 0) / rewards.length)}`) : null),
    same ? messages(first.prompt) : null,
    el("div", { class: "members" }, group.map((rollout) => el("section", { class: "member" },
      el("header", {}, rewardBadge(rollout.reward), rollout.stop_reason ? el("span", { class: "muted data" }, `stopped by ${rollout.stop_reason}`) : null,
        rollout.truncated ? el("span", { class: "badge warn" }, "truncated") : null),
      same ? null : messages(rollout.prompt),
      rollout.response.length ? messages(rollout.response) : el("p", { class: "muted" }, "Empty response")))));
}

function rolloutsTab(run, context) {
  const filter = { step: "", source: "", order: "", limit: 20 };
  const list = el("div"), more = el("div", { class: "more" }), count = el("p", { class: "muted", role: "status" });
  const step = select([["", "All steps"]], "", (value) => { filter.step = value; load(); });
  const source = select([["", "All sources"]], "", (value) => { filter.source = value; load(); });
  const order = select([["", "As recorded"], ["reward_desc", "Highest reward first"], ["reward_asc", "Lowest reward first"]], "", (value) => { filter.order = value; load(); });
  let shown = [];
  const render = (answer) => {
    setOptions(step, [["", "All steps"], ...answer.steps.map((s) => [s, `Step ${s}`])], filter.step);
    setOptions(source, [["", "All sources"], ...answer.sources.map((s) => [s, s])], filter.source);
    setText(count, plural(answer.total, "rollout"));
    more.replaceChildren(...(shown.length < answer.total ? [el("button", { type: "button", onclick: next }, "Show more")] : []));
    more.hidden = shown.length >= answer.total;
    if (!answer.total) return empty(filter.step || filter.source ? "No rollout matches these filters." : "No rollouts. SkyRL writes those of each evaluation, and the examples that it prints.");
    return groupRollouts(shown).map(rolloutGroup);
  };
  const load = () => fill(list, context, async () => {
    const answer = await get(apiRun(run.id, "rollouts"), { ...filter, offset: 0 }, context.signal);
    shown = answer.rollouts;
    return render(answer);
  });
  const next = async () => {
    try {
      const answer = await get(apiRun(run.id, "rollouts"), { ...filter, offset: shown.length }, context.signal);
      const at = list.children.length;
      shown = [...shown, ...answer.rollouts];
      list.replaceChildren(...[render(answer)].flat());
      (list.children[at] || list.lastElementChild)?.scrollIntoView({ block: "nearest" });
    } catch (error) { if (error.name !== "AbortError") more.replaceChildren(errorBox(error, next)); }
  };
  load();
  return [el("div", { class: "toolbar" }, field("Step", step), field("Source", source), field("Order", order), embedded ? null : el("button", { type: "button", onclick: load }, "Reload"), el("span", { class: "spacer" }), count), list, more];
}

// --- Checkpoints, log, details -----------------------------------------------------------------------------------

async function checkpointsTab(run, context) {
  const { checkpoints } = await get(apiRun(run.id, "checkpoints"), {}, context.signal);
  if (!checkpoints.length) return empty("No checkpoints found. SkyRL writes them to `trainer.ckpt_path`, every `trainer.ckpt_interval` steps.");
  return el("div", { class: "panel" }, el("table", { class: "cards" }, el("caption", { class: "hidden-label" }, "Checkpoints"),
    el("thead", {}, el("tr", {}, ["Path", "Step", "State", "Size", "Format"].map((t, i) => el("th", { scope: "col", class: i === 1 || i === 3 ? "number" : "" }, t)))),
    el("tbody", {}, checkpoints.map((c) => el("tr", {},
      el("th", { scope: "row" }, el("code", { class: "data" }, c.path)),
      el("td", { class: "number", "data-label": "Step" }, formatNumber(c.step)),
      el("td", { "data-label": "State" }, el("div", {}, el("span", { class: `badge ${c.complete ? "good" : "warn"}` }, c.complete ? "complete" : "incomplete"),
        c.missing?.length ? el("div", { class: "muted data" }, `missing: ${c.missing.join(", ")}`) : null)),
      el("td", { class: "number", "data-label": "Size" }, formatBytes(c.bytes)),
      el("td", { "data-label": "Format" }, c.format || "–"))))));
}

const MOST_LINES = 5000;

/** The lines of a run's output: the last ones, earlier ones on demand, and new ones as they are written. */
class Log {
  constructor(run, context, details) {
    Object.assign(this, { run, context, details, first: 0, last: 0, pending: [], filter: { search: "", rank: "", attempt: "" } });
    this.box = el("div", { class: "log panel", tabindex: 0, role: "region", "aria-label": "Output of the run" });
    this.count = el("p", { class: "muted", role: "status" });
    this.earlier = el("button", { type: "button", onclick: () => this.loadEarlier() }, "Load earlier lines");
    this.follow = el("input", { type: "checkbox", checked: true, onchange: () => this.toEnd() });
    this.flush = framed(() => this.addPending());
    this.box.addEventListener("scroll", () => {
      const end = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40;
      if (!end && this.box.scrollTop < this.lastTop) this.follow.checked = false;
      this.lastTop = this.box.scrollTop;
    });
  }

  content() {
    const search = el("input", { type: "search", placeholder: "Lines that contain", "data-search": "", oninput: delayed(() => { this.filter.search = search.value; this.load(); }, 250) });
    const attempts = (this.details.attempts || []).map((a) => [a.attempt, `Attempt ${a.attempt}`]);
    const nodes = this.details.summary.nodes || 1;
    const parts = [field("Search", search, "grow")];
    if (attempts.length > 1) parts.push(field("Attempt", select([["", "All attempts"], ...attempts], "", (v) => { this.filter.attempt = v; this.load(); })));
    if (nodes > 1) parts.push(field("Node", select(Array.from({ length: nodes }, (_, i) => [i || "", `Node ${i}`]), "", (v) => { this.filter.rank = v; this.load(); })));
    this.load();
    return [el("div", { class: "toolbar" }, ...parts, el("label", { class: "field row" }, this.follow, "Follow"), el("span", { class: "spacer" }), this.count),
      el("p", { class: "buttons" }, this.earlier), this.box];
  }

  async load() {
    const turn = this.turn = (this.turn || 0) + 1;
    this.box.replaceChildren(loading());
    this.earlier.hidden = true;
    try {
      const answer = await get(apiRun(this.run.id, "log"), { ...this.filter, limit: 500 }, this.context.signal);
      if (turn !== this.turn || this.context.signal.aborted) return;
      this.box.replaceChildren(...answer.lines.map((line) => this.line(line)));
      this.first = answer.lines.length ? answer.lines[0].n : 0;
      this.last = answer.lines.length ? answer.lines.at(-1).n : 0;
      if (!answer.lines.length) this.box.replaceChildren(empty(this.filter.search ? "No line contains that." : "No output yet."));
      this.showCount(answer);
      this.follow.checked = true;
      this.toEnd();
    } catch (error) {
      if (error.name !== "AbortError" && !this.context.signal.aborted) this.box.replaceChildren(errorBox(error, () => this.load()));
    }
  }

  showCount(answer) {
    if (this.filter.search) setText(this.count, answer.matches === null || answer.matches === undefined ? "" : plural(answer.matches, "match", "matches"));
    else setText(this.count, answer.total === null || answer.total === undefined ? "" : plural(answer.total, "line"));
    const all = this.filter.search ? (answer.matches ?? 0) <= this.box.querySelectorAll(".line").length : this.first <= 1 || (embedded !== null);
    this.earlier.hidden = all || !answer.lines.length;
  }

  async loadEarlier() {
    this.earlier.disabled = true;
    try {
      const answer = await get(apiRun(this.run.id, "log"), { ...this.filter, limit: 500, before: this.first }, this.context.signal);
      const height = this.box.scrollHeight, top = this.box.scrollTop;
      this.follow.checked = false;
      this.box.prepend(...answer.lines.map((line) => this.line(line)));
      this.box.scrollTop = top + this.box.scrollHeight - height;
      if (answer.lines.length) this.first = answer.lines[0].n;
      this.showCount(answer);
      if (!answer.lines.length) this.earlier.hidden = true;
    } catch (error) { if (error.name !== "AbortError") setText(this.count, error.message); } finally { this.earlier.disabled = false; }
  }

  line({ n, text, cut }) {
    const content = el("span", { class: "text" }), cleaned = clean(text), wanted = this.filter.search.toLowerCase();
    let at = 0;
    if (wanted) {
      const lower = cleaned.toLowerCase();
      for (let found = lower.indexOf(wanted); found >= 0 && lower.length === cleaned.length; found = lower.indexOf(wanted, at)) {
        content.append(cleaned.slice(at, found), el("mark", {}, cleaned.slice(found, found + wanted.length)));
        at = found + wanted.length;
      }
    }
    content.append(cleaned.slice(at), cut ? "… (cut)" : "");
    return el("div", { class: "line" }, el("span", { class: "n" }, n), content);
  }

  add(event) {
    if (this.filter.rank || this.filter.attempt) return;
    this.pending.push(...event.lines.slice(-MOST_LINES));
    if (this.pending.length > MOST_LINES) this.pending.splice(0, this.pending.length - MOST_LINES);
    this.flush();
  }

  addPending() {
    const wanted = this.filter.search.toLowerCase();
    const lines = this.pending.splice(0).filter((line) => line.n > this.last && (!wanted || line.text.toLowerCase().includes(wanted)));
    if (!lines.length) return;
    if (!this.box.querySelector(".line")) { this.box.replaceChildren(); this.first = lines[0].n; }
    else if (!wanted && lines[0].n > this.last + 1) this.box.append(el("div", { class: "gap" }, `${plural(lines[0].n - this.last - 1, "line")} not shown`));
    this.box.append(...lines.map((line) => this.line(line)));
    this.last = lines.at(-1).n;
    if (!wanted) setText(this.count, plural(this.last, "line"));
    if (!this.follow.checked) return;
    while (this.box.children.length > MOST_LINES) this.box.firstElementChild.remove();
    const first = this.box.querySelector(".line .n");
    if (first && Number(first.textContent) > this.first) { this.first = Number(first.textContent); this.earlier.hidden = false; }
    this.toEnd();
  }

  toEnd() { if (this.follow.checked) { this.box.scrollTop = this.box.scrollHeight; this.lastTop = this.box.scrollTop; } }
}

function rows(list) { return el("dl", { class: "rows" }, list.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value === null || value === undefined || value === "" ? "–" : String(value))])); }

function section(title, ...content) { return el("section", { class: "panel section" }, el("h2", {}, title), ...content); }

function notice(kind, title, text, remedy) {
  return el("div", { class: `notice ${kind}` }, el("p", {}, el("span", { class: "kind data" }, title), text ? ": " : "", text ? el("span", { class: "text" }, text) : null),
    remedy ? el("p", { class: "text" }, remedy) : null);
}

function costRows(cost) {
  const total = cost.text ?? (cost.total === null || cost.total === undefined ? null : formatCost(cost.total));
  return [...(total === null ? [] : [["so far", total]]), ...(cost.rows || [])];
}

function detailsTab(details) {
  const parts = [], attempts = details.attempts || [], cost = costRows(details.cost || {}), files = details.files || {};
  if (details.findings?.length) {
    parts.push(section(plural(details.findings.length, "finding"), details.findings.map((f) => notice({ error: "error", warning: "warning" }[f.severity] || "info", f.severity, f.message, f.remedy))));
  }
  if (cost.length) parts.push(section("Cost", rows(cost)));
  if (files.log_path) {
    const unsaved = (files.unsaved || []).map((folder) => folder.path ?? String(folder));
    parts.push(section("Output", rows([["log", files.log_path], ["run folder", files.run_folder], ...(files.checkpoint_folders?.length ? [["checkpoints", files.checkpoint_folders.join("\n")]] : []),
      ...(unsaved.length ? [["not saved", unsaved.join("\n")]] : []), ...(details.detail ? [["end", details.detail]] : [])])));
  }
  parts.push(...(details.plan || []).map((group) => section(group.title, rows(group.rows))));
  const table = attempts.length ? el("div", { class: "panel" }, el("table", { class: "cards" }, el("caption", { class: "hidden-label" }, "Attempts"),
    el("thead", {}, el("tr", {}, ["Attempt", "State", "Exit code", "Cause", "Steps", "Started", "Ended"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, attempts.map((a) => el("tr", {}, el("th", { scope: "row" }, `Attempt ${a.attempt}`), el("td", { "data-label": "State" }, a.state ? stateBadge(a.state) : "–"),
      el("td", { "data-label": "Exit code" }, a.returncode ?? "–"), el("td", { "data-label": "Cause", class: "data" }, a.cause || "–"),
      el("td", { "data-label": "Steps" }, a.first_step === null || a.first_step === undefined ? "–" : `${a.first_step} to ${a.last_step}`),
      el("td", { "data-label": "Started" }, formatDate(a.started_at)), el("td", { "data-label": "Ended" }, formatDate(a.ended_at))))))) : null;
  return [table, el("div", { class: "columns" }, parts)];
}

// --- One run -----------------------------------------------------------------------------------------------------

const TABS = [["metrics", "Metrics"], ["rollouts", "Rollouts"], ["phases", "Phases"], ["checkpoints", "Checkpoints"], ["log", "Log"], ["details", "Details"]];
let info = { allow_actions: false };

class RunView {
  constructor(main, context, id) {
    Object.assign(this, { main, context, id, tab: null, metrics: null, log: null });
  }

  async load(tab, query) {
    await fill(this.main, this.context, async () => {
      this.details = await get(apiRun(this.id), {}, this.context.signal);
      this.panel = el("div", { role: "tabpanel", id: "panel", tabindex: -1 });
      this.head = el("div");
      this.tabs = el("div", { role: "tablist", "aria-label": "Parts of the run", onkeydown: (event) => this.tabKey(event) }, TABS.map(([key, text]) => el("button", {
        type: "button", role: "tab", id: `tab-${key}`, "aria-controls": "panel", onclick: () => this.go(key),
      }, text)));
      this.diagnosis = el("div");
      this.renderHead();
      return [this.head, this.diagnosis, this.tabs, this.panel];
    });
    if (!this.details || this.context.signal.aborted) return;
    this.fetched = Date.now();
    this.show(tab, query);
    if (this.details.diagnosis_pending) this.reloadDetails();
    live.start([this.id], {
      run: (summary) => this.changed(summary),
      metrics: (event) => { this.metrics?.add(event); this.run?.addPhases?.(event); },
      log: (event) => this.log?.add(event),
      again: () => this.again(),
    });
    const timer = setInterval(() => this.showTimes(), 1000);
    this.context.atEnd(() => clearInterval(timer));
  }

  renderHead() {
    const { summary, diagnosis } = this.details, title = summary.name || summary.run_id;
    document.title = `${title} · skyrl-modal`;
    const fact = (key, value, id) => el("div", {}, el("dt", {}, key), el("dd", { class: "data", ...(id ? { "data-fact": id } : {}) }, value));
    const cancel = info.allow_actions && OPEN_STATES.has(summary.state) && !embedded
      ? el("button", { type: "button", class: "danger", onclick: () => this.confirmCancel() }, "Cancel the run") : null;
    const compare = el("a", { href: `#/compare?${queryOf({ run: this.id })}`, onclick: () => { picked.add(this.id); updateCompareLink(); } }, "Compare with others");
    this.head.replaceChildren(
      el("div", { class: "run-head" }, el("h1", { class: "data" }, title), stateBadge(summary.state), summary.tags.map((tag) => el("span", { class: "tag data" }, tag)),
        el("span", { class: "spacer" }), embedded ? null : compare, cancel),
      el("dl", { class: "facts" },
        summary.name ? fact("Run", el("code", {}, summary.run_id)) : null,
        fact("Step", formatNumber(summary.step), "step"), fact("Duration", formatDuration(summary.duration), "duration"), fact("Cost", formatCost(summary.cost), "cost"),
        fact("Created", formatDate(summary.created_at)), fact("Backend", summary.backend), summary.gpu.length ? fact("GPU", `${summary.nodes > 1 ? `${summary.nodes} × ` : ""}${summary.gpu.join(", ")}`) : null,
        summary.returncode === null || summary.returncode === undefined ? null : fact("Exit code", String(summary.returncode))),
      el("code", { class: "command", tabindex: 0, role: "group", "aria-label": "Command" }, summary.command));
    this.diagnosis.replaceChildren(...[
      summary.unavailable_reason ? notice("warning", "The state is not up to date", summary.unavailable_reason) : null,
      diagnosis ? notice(summary.state === "succeeded" || summary.state === "running" ? "warning" : "error", diagnosis.cause, diagnosis.text, diagnosis.remedy) : null,
    ].filter(Boolean));
  }

  changed(summary) {
    const before = this.details.summary;
    this.details.summary = { ...before, ...summary };
    this.fetched = Date.now();
    if (before.state !== summary.state) {
      this.renderHead();
      if (!OPEN_STATES.has(summary.state)) this.reloadDetails();
    } else this.showTimes();
  }

  async reloadDetails() {
    try {
      this.details = await get(apiRun(this.id), {}, this.context.signal);
      this.fetched = Date.now();
      this.renderHead();
      if (this.tab === "details") this.panel.replaceChildren(...detailsTab(this.details).filter(Boolean));
      if (this.details.diagnosis_pending) setTimeout(() => { if (!this.context.signal.aborted) this.reloadDetails(); }, 1000);
    } catch { /* The next event brings a newer state. */ }
  }

  showTimes() {
    const { summary } = this.details;
    const put = (name, text) => { const node = this.head.querySelector(`[data-fact="${name}"]`); if (node) setText(node, text); };
    put("step", formatNumber(summary.step));
    put("cost", formatCost(summary.cost));
    if (OPEN_STATES.has(summary.state) && summary.duration !== null && !embedded && summary.state !== "unknown") put("duration", formatDuration(Math.round(summary.duration + (Date.now() - this.fetched) / 1000)));
  }

  again() { this.reloadDetails(); this.metrics?.reload(); this.log?.load(); }

  go(tab) { location.hash = `#/run/${encodeURIComponent(this.id)}/${tab}`; }

  tabKey(event) {
    const keys = TABS.map(([key]) => key), at = keys.indexOf(this.tab);
    const next = { ArrowRight: (at + 1) % keys.length, ArrowLeft: (at + keys.length - 1) % keys.length, Home: 0, End: keys.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.go(keys[next]);
    this.tabs.children[next].focus();
  }

  show(tab, query) {
    this.query = query;
    if (!this.panel) return;
    if (tab === this.tab) { this.metrics?.showKey(); return; }
    this.tab = tab;
    for (const button of this.tabs.children) {
      const own = button.id === `tab-${tab}`;
      button.setAttribute("aria-selected", String(own));
      button.tabIndex = own ? 0 : -1;
    }
    this.panel.setAttribute("aria-labelledby", `tab-${tab}`);
    this.part?.end();
    this.part = this.context.child();
    this.metrics = null;
    this.log = null;
    const run = this.run = { id: this.id, name: this.details.summary.name || this.id, color: 0 };
    if (tab === "metrics") {
      this.metrics = new Metrics(this.panel, this.part, [run], {
        key: () => this.query.get("key"),
        openKey: (key) => { location.hash = `#/run/${encodeURIComponent(this.id)}/metrics${key ? `?${queryOf({ key })}` : ""}`; },
      });
    }
    if (tab === "log") this.log = new Log(run, this.part, this.details);
    const load = {
      metrics: () => this.metrics.load(), rollouts: () => rolloutsTab(run, this.part), phases: () => phasesTab(run, this.part),
      checkpoints: () => checkpointsTab(run, this.part), log: () => this.log.content(), details: () => detailsTab(this.details),
    }[tab];
    fill(this.panel, this.part, load);
  }

  confirmCancel() {
    const problem = el("div");
    const cancel = el("button", { type: "button", class: "danger", onclick: async () => {
      cancel.disabled = true;
      try {
        const response = await fetch(apiRun(this.id, "cancel"), { method: "POST", headers: { "X-Skyrl-Modal": "1", Accept: "application/json" }, credentials: "same-origin" });
        if (!response.ok) throw await errorOf(response);
        dialog.close();
      } catch (error) { cancel.disabled = false; problem.replaceChildren(errorBox(error)); }
    } }, "Cancel the run");
    const keep = el("button", { type: "button", class: "primary", autofocus: true, onclick: () => dialog.close() }, "Keep it running");
    const dialog = openDialog({}, "Cancel this run?",
      el("p", {}, "The command of ", el("strong", { class: "data" }, this.details.summary.name || this.id), " is ended. Files that it has written stay."),
      problem, el("div", { class: "actions" }, keep, cancel));
  }
}

// --- Compare -----------------------------------------------------------------------------------------------------

function compareView(main, context, query) {
  document.title = "Compare · skyrl-modal";
  const ids = query.getAll("run").filter((id, i, all) => id && all.indexOf(id) === i).slice(0, MOST_CURVES);
  picked.clear();
  for (const id of ids) picked.add(id);
  updateCompareLink();
  const view = { query, metrics: null };
  const hash = (runs, key) => `#/compare${runs.length ? `?${queryOf({ run: runs, key })}` : ""}`;
  if (!ids.length) {
    main.replaceChildren(el("h1", {}, "Compare"), el("p", { class: "state" }, "Choose runs by their checkboxes in the ", el("a", { href: "#/" }, "list of runs"), "."));
    live.start([], {});
    return view;
  }
  const legend = el("ul", { class: "legend panel", "aria-label": "Runs" }), host = el("div");
  main.replaceChildren(el("h1", {}, `Compare ${plural(ids.length, "run")}`), legend, host);
  fill(host, context, async () => {
    const found = await Promise.all(ids.map((id) => get(apiRun(id), {}, context.signal).catch((error) => { if (error.status === 404) return null; throw error; })));
    const runs = ids.map((id, color) => ({ id, color, summary: found[color]?.summary })).filter((run) => run.summary).map((run) => ({ ...run, name: run.summary.name || run.id }));
    const names = new Map();
    for (const run of runs) names.set(run.name, (names.get(run.name) || 0) + 1);
    for (const run of runs) if (names.get(run.name) > 1) run.name = `${run.name} (${run.id})`;
    view.metrics = new Metrics(host, context, runs, { key: () => view.query.get("key"), openKey: (key) => { location.hash = hash(ids, key); } });
    legend.replaceChildren(...runs.map((run) => {
      const box = el("input", { type: "checkbox", checked: true, "aria-label": `Show ${run.name}`, onchange: () => view.metrics.hide(run.id, !box.checked) });
      return el("li", {}, el("label", {}, box, swatch(run.color)), el("a", { class: "data", href: `#/run/${encodeURIComponent(run.id)}/metrics` }, run.name), stateBadge(run.summary.state),
        el("button", { type: "button", class: "remove", "aria-label": `Remove ${run.name}`, onclick: () => { location.hash = hash(ids.filter((id) => id !== run.id), view.query.get("key")); } }, "✕"));
    }));
    const content = await view.metrics.load();
    live.start(runs.map((run) => run.id), {
      metrics: (event) => view.metrics.add(event),
      run: (summary) => { const i = runs.findIndex((r) => r.id === summary.run_id); if (i >= 0) legend.children[i].querySelector(".badge").replaceWith(stateBadge(summary.state)); },
      again: () => view.metrics.reload(),
    });
    const missing = ids.length - runs.length;
    return [missing ? notice("warning", `${plural(missing, "run")} of this address cannot be found`) : null, ...content];
  });
  return view;
}

// --- Theme, keys, router -----------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const wanted = settings.theme === "system" ? (dark.matches ? "dark" : "light") : settings.theme;
  document.documentElement.dataset.theme = wanted;
  const button = document.getElementById("theme");
  button.replaceChildren("◐ ", el("span", { class: "wide-only" }, `Theme: ${settings.theme}`));
  button.setAttribute("aria-label", `Theme: ${settings.theme}`);
  palette = null;
  for (const chart of charts) chart.recolor();
}

function showKeys() {
  const keys = [["/", "Go to the search field"], ["↑ ↓ or j k", "Move in the list of runs"], ["Space", "Choose a run for comparison, on its checkbox"], ["Enter", "Open the run or the chart"],
    ["← →", "Change the tab, or move an enlarged chart"], ["+ − 0", "Zoom an enlarged chart, show everything"], ["Esc", "Close the enlarged chart"], ["?", "Show these keys"]];
  openDialog({}, "Keys", el("dl", { class: "keys" }, keys.flatMap(([key, text]) => [el("dt", {}, key), el("dd", {}, text)])));
}

let current = { path: null, view: null, context: null };

function route() {
  let hash = location.hash.slice(1) || "/";
  if (hash === "/" && !location.hash) {
    const fromPath = /^\/runs\/([^/]+)/.exec(location.pathname);
    if (fromPath) hash = `/run/${fromPath[1]}/metrics`;
    else if (embedded) hash = `/run/${encodeURIComponent(embedded["/api/runs"].runs[0].run_id)}/metrics`;
  }
  const [path, text = ""] = hash.split("?"), query = new URLSearchParams(text);
  const run = /^\/run\/([^/]+)(?:\/(\w+))?$/.exec(path);
  let id = null;
  try { id = run ? decodeURIComponent(run[1]) : null; } catch { /* Not an address of this page. */ }
  const tab = id !== null ? (TABS.some(([key]) => key === run[2]) ? run[2] : "metrics") : null;
  const compare = path === "/compare";
  const own = id !== null ? `run ${id}` : compare ? `compare ${query.getAll("run").join(" ")}` : "runs";
  for (const [link, active] of [["nav-runs", !compare], ["nav-compare", compare]]) {
    if (active) document.getElementById(link).setAttribute("aria-current", "page"); else document.getElementById(link).removeAttribute("aria-current");
  }
  if (current.path === own) {
    if (id !== null) current.view.show(tab, query);
    else if (compare) { current.view.query = query; current.view.metrics?.showKey(); }
    return;
  }
  live.stop();
  current.context?.end();
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  const main = document.getElementById("main"), context = new Context(), first = current.path === null;
  current = { path: own, view: null, context };
  if (id !== null) { current.view = new RunView(main, context, id); current.view.load(tab, query); }
  else if (compare) current.view = compareView(main, context, query);
  else runsView(main, context, query);
  if (!first) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
  if (event.key === "/") {
    const search = document.querySelector("[data-search]");
    if (search) { search.focus(); search.select(); event.preventDefault(); }
  } else if (event.key === "?") showKeys();
});
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("main").focus(); });
document.getElementById("help").addEventListener("click", showKeys);
document.getElementById("theme").addEventListener("click", () => {
  settings.theme = { system: "light", light: "dark", dark: "system" }[settings.theme] || "system";
  saveSettings();
  applyTheme();
});
dark.addEventListener("change", applyTheme);
addEventListener("hashchange", route);
applyTheme();
if (embedded) document.querySelector(".bar nav").hidden = true;

get("/api/info").then((answer) => { info = answer; if (current.view instanceof RunView && current.view.head) current.view.renderHead(); }).catch(() => { /* The view shows the error. */ });
route();
})();
