// Zoom, search and tooltips for the SVG this script stands in, and for no other on the page.
// Needs nothing from outside and no permission but to run: no eval, no inline handlers or styles.
(() => {
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const XHTML = "http://www.w3.org/1999/xhtml";
const LABEL_PAD = 4, LABEL_MIN = 4, BASELINE = 12, EDGE_MIN = 3, CONTROLS = 560, CONTROLS_MIN = 240;

const root = document.currentScript && document.currentScript.closest("svg.bpflame");
if (!root) return;
const pad = Number(root.dataset.pad), row = Number(root.dataset.row);
const frames = root.querySelector("svg.frames");
const labels = root.querySelector("g.labels");
const details = root.querySelector("text.details");
const height = frames.viewBox.baseVal.height;

// The frames in preorder: parents before children, left to right. Index 0 is the root.
const rects = Array.from(frames.getElementsByTagName("rect"));
const x = new Float64Array(rects.length);
const w = new Float64Array(rects.length);
const y = new Float64Array(rects.length);
const kinds = rects.map((rect, i) => {
  x[i] = rect.getAttribute("x");
  w[i] = rect.getAttribute("width");
  y[i] = rect.getAttribute("y");
  return rect.getAttribute("class")[0];
});
const hidden = (i) => kinds[i] === "h";
const names = new Array(rects.length);

function name(i) {
  if (names[i] === undefined) {
    const text = rects[i].textContent;
    names[i] = text.slice(0, text.indexOf("\n"));
  }
  return names[i];
}

let inner = frames.width.baseVal.value;  // width of the frames on screen, px
let left = 0, span = x.length ? w[0] : 1;  // the part of the profile in view
let zoomed = 0;
let faded = [];

// ---- Labels, and the edges between neighbours of one colour

const advance = measureAdvance();

function measureAdvance() {
  const probe = document.createElementNS(SVG, "text");
  probe.textContent = "m".repeat(50);
  labels.append(probe);
  const length = probe.getComputedTextLength();
  probe.remove();
  return length / 50 || 6.65;
}

const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

// The text cut on the right to `room` columns, the last one an ellipsis.
function fit(text, room) {
  if (/^[ -~]*$/.test(text)) {
    return text.length <= room ? text : text.slice(0, Math.max(room - 1, 0)) + "…";
  }
  const chars = Array.from(text);
  const cells = chars.map((char) => (/\p{M}/u.test(char) ? 0 : WIDE.test(char) ? 2 : 1));
  if (cells.reduce((sum, n) => sum + n, 0) <= room) return text;
  let end = 0;
  for (let used = 1; used + cells[end] <= room; end++) used += cells[end];
  return chars.slice(0, end).join("") + "…";
}

function drawOverlay() {
  const scale = inner / span, right = left + span;
  const least = (LABEL_MIN * advance + 2 * LABEL_PAD) / scale;
  const edge = EDGE_MIN / scale;
  const drawn = document.createDocumentFragment();
  let edges = "";
  for (let i = 0; i < x.length; i++) {
    if (w[i] < edge) continue;
    if (x[i] > left && x[i] < right) {
      edges += `M${((x[i] - left) * scale).toFixed(1)} ${y[i]}v${row - 1}`;
    }
    const from = Math.max(x[i], left), to = Math.min(x[i] + w[i], right);
    if (to - from < least || hidden(i)) continue;
    const label = document.createElementNS(SVG, "text");
    label.setAttribute("x", ((from - left) * scale + LABEL_PAD).toFixed(1));
    label.setAttribute("y", y[i] + BASELINE);
    if (kinds[i] === "s") label.setAttribute("class", "s");
    label.textContent = fit(name(i), Math.floor(((to - from) * scale - 2 * LABEL_PAD) / advance));
    drawn.append(label);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", edges);
  labels.replaceChildren(path, drawn);
}

// ---- Zoom

function ancestors(i) {
  const found = [];
  for (let j = 0; j < i; j++) {
    if (x[j] <= x[i] && x[j] + w[j] >= x[i] + w[i]) found.push(j);
  }
  return found;
}

function zoom(i) {
  if (!rects.length) return;
  for (const j of faded) rects[j].classList.remove("faded");
  zoomed = i;
  left = x[i];
  span = w[i];
  frames.setAttribute("viewBox", `${left} 0 ${span} ${height}`);
  faded = ancestors(i);
  for (const j of faded) rects[j].classList.add("faded");
  resetButton.hidden = i === 0;
  drawOverlay();
  showMatched();
}

frames.addEventListener("click", (event) => {
  const rect = event.target.closest("rect");
  const i = rects.indexOf(rect);
  if (i < 0 || hidden(i)) return;
  zoom(i);
  describe(rect);
});

// ---- Tooltips: the <title> of each frame, with its share of the view when zoomed

const plain = new WeakMap();  // the titles as they are in the file

function describe(rect) {
  const title = rect.firstElementChild;
  const text = plain.get(title) || title.textContent;
  const [frame, amount, ...about] = text.split("\n");
  const width = Number(rect.getAttribute("width"));
  // Of an ancestor, the view is a part and not the other way round.
  const share = zoomed && width <= span ? `, ${percent(width / span)} of view` : "";
  plain.set(title, text);
  const shown = [frame, amount + share, ...about].join("\n");
  if (title.textContent !== shown) title.textContent = shown;
  const tail = `  ${amount}${share}` + about.map((line) => `  ${line}`).join("");
  details.textContent = fit(frame, Math.max(Math.floor(inner / advance) - tail.length, 12)) + tail;
}

frames.addEventListener("pointerover", (event) => {
  const rect = event.target.closest("rect");
  if (rect) describe(rect);
});
frames.addEventListener("pointerleave", () => { details.textContent = ""; });

function percent(share) {
  return `${(100 * share).toFixed(2)}%`;
}

// ---- Search: in names only

let matches = [];
let current = -1;

function pattern() {
  const query = field.value;
  const literal = regexpButton.getAttribute("aria-pressed") !== "true";
  const source = literal ? query.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&") : query;
  // A capital in the query asks for case.
  return new RegExp(source, query === query.toLowerCase() ? "i" : "");
}

function search() {
  for (const i of matches) rects[i].classList.remove("match", "current");
  matches = [];
  current = -1;
  let wanted = null, problem = "";
  try {
    wanted = pattern();
  } catch (error) {
    problem = `Not a regular expression: ${error.message.split(": ").pop()}`;
  }
  if (wanted && field.value) {
    for (let i = 1; i < x.length; i++) {
      if (!hidden(i) && wanted.test(name(i))) matches.push(i);
    }
  }
  for (const i of matches) rects[i].classList.add("match");
  status.classList.toggle("bad", problem !== "");
  field.setAttribute("aria-invalid", problem !== "");
  status.textContent = problem;
  if (!problem) showMatched();
}

// What the matches cover between two edges, counting what is above a match only once.
function covered(from, to) {
  let sum = 0, end = from;
  for (const i of matches) {
    const start = Math.max(x[i], end), right = Math.min(x[i] + w[i], to);
    if (right <= start) continue;
    sum += right - start;
    end = right;
  }
  return sum;
}

function showMatched() {
  if (status.classList.contains("bad")) return;
  if (!field.value) {
    status.textContent = "";
  } else if (!matches.length) {
    status.textContent = "No match";
  } else {
    const all = percent(covered(0, w[0]) / w[0]);
    const view = percent(covered(left, left + span) / span);
    status.textContent = zoomed ? `Matched ${view} of view, ${all} of all` : `Matched ${all}`;
  }
}

function step(direction) {
  if (!matches.length) return;
  if (current >= 0) rects[matches[current]].classList.remove("current");
  const start = current < 0 && direction < 0 ? 0 : current;
  current = (start + direction + matches.length) % matches.length;
  const i = matches[current];
  rects[i].classList.add("current");
  if (x[i] < left || x[i] + w[i] > left + span) zoom(0);
  // Too narrow to see: let its parent fill the picture.
  if (w[i] * inner / span < 4) zoom(ancestors(i).pop());
  rects[i].scrollIntoView({block: "nearest", inline: "nearest"});
  describe(rects[i]);
  showMatched();
  status.textContent += ` (${current + 1} of ${matches.length})`;
}

// ---- Controls

function add(parent, tag, attributes) {
  const element = document.createElementNS(XHTML, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

const place = document.createElementNS(SVG, "foreignObject");
place.setAttribute("y", 8);
place.setAttribute("height", 28);
const bar = add(place, "div", {class: "controls"});
const status = add(bar, "span", {class: "status", role: "status"});
const resetButton = add(bar, "button", {type: "button", class: "reset", title: "Esc"});
resetButton.textContent = "Reset zoom";
resetButton.hidden = true;
const field = add(bar, "input", {
  type: "search", placeholder: "Search names  ( / )", "aria-label": "Search names",
  spellcheck: "false", autocomplete: "off",
  title: "A capital letter makes case matter. Enter: next match, Shift+Enter: previous",
});
const regexpButton = add(bar, "button", {
  type: "button", class: "regexp", "aria-pressed": "false", title: "Regular expression",
});
regexpButton.textContent = ".*";

field.addEventListener("input", search);
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
});
regexpButton.addEventListener("click", () => {
  const on = regexpButton.getAttribute("aria-pressed") === "true";
  regexpButton.setAttribute("aria-pressed", String(!on));
  search();
});
resetButton.addEventListener("click", () => zoom(0));

// With several pictures on a page, keys go to the one in use.
function inUse() {
  const active = document.activeElement;
  return (active && active.closest("svg.bpflame")) ||
    document.querySelector("svg.bpflame:hover") || document.querySelector("svg.bpflame");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  if (!(event.target instanceof Element)) return;
  const typing = event.target.closest("input,textarea,select,[contenteditable]");
  if ((typing && typing !== field) || inUse() !== root) return;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    field.focus();
    field.select();
  } else if (event.key === "Escape") {
    field.value = "";
    field.blur();
    search();
    zoom(0);
  }
});

// ---- Width: that of whatever holds the picture

function resize(width) {
  if (!width) return;
  inner = Math.max(width - 2 * pad, 1);
  frames.setAttribute("width", inner);
  const beside = inner - root.querySelector("text.title").getComputedTextLength() - 16;
  const room = Math.min(Math.max(beside, CONTROLS_MIN), CONTROLS, inner);
  place.setAttribute("x", width - pad - room);
  place.setAttribute("width", room);
  drawOverlay();
}

root.classList.add("live");
root.removeAttribute("viewBox");
root.setAttribute("width", "100%");
if (rects.length) root.append(place);
new ResizeObserver((entries) => resize(entries[0].contentRect.width)).observe(root);
})();
