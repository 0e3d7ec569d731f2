// The gallery. `state` says all that is shown; whoever changes it calls `show`, which draws it and
// writes it into the address. Numbers come from the tables (see page.py, `contents`).
"use strict";

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const runNames = about.runs.map((run) => run.name);
const methods = [...new Set(about.runs.map((run) => run.method))];
const SIDES = ["left", "right"];
const SCALES = ["auto", "8", "32", "128", "255"];
// The colours of the legend, dark to light, so that it reads in grey too.
const RAMP = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

const state = {
  left: 0, // the place of a run
  right: about.start,
  prompt: 0, // the place of a prompt
  reference: 0,
  split: 50, // percent of the width that shows the left image
  view: "images", // or "difference"
  sort: "number", // or the name of a metric: worst of the right run first
  scale: "auto", // the difference that is drawn brightest, of 255
};
let order = []; // the places of prompts as listed

// ---- Looking things up -------------------------------------------------------------------------

/** A number as JSON has it: null is unknown, and infinity is a text. */
const number = (value) => (value === null || value === undefined ? NaN : Number(value));

function score(metric, run, prompt) {
  return number(about.scores[state.reference][metric][run][prompt]);
}

function source(run, prompt) {
  return "data:image/webp;base64," + $(`image-${about.images[run][prompt]}`).textContent;
}

function nameOf(run) {
  return `${about.runs[run].method}, ${stepsOf(run)}`;
}

/** Plain sampling with 7 steps is not the same as a cache that computes 7 of 50 in full. */
function stepsOf(run) {
  const { num_steps: steps, full_steps: full } = about.runs[run];
  if (full < steps) return `${full} of ${steps} in full`;
  return `${steps} ${steps === 1 ? "step" : "steps"}`;
}

function runsOf(method) {
  const places = about.runs.map((_, place) => place).filter((p) => about.runs[p].method === method);
  return places.sort((a, b) => about.runs[a].full_steps - about.runs[b].full_steps);
}

/** The run of a method whose number of full steps is nearest to that of another run. */
function nearest(method, run) {
  const distance = (p) => Math.abs(about.runs[p].full_steps - about.runs[run].full_steps);
  return runsOf(method).reduce((best, p) => (distance(p) < distance(best) ? p : best));
}

// ---- Numbers in words --------------------------------------------------------------------------

function format(value, digits, signed = false) {
  if (Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = Math.abs(value).toFixed(digits);
  const zero = Number(text) === 0;
  if (value < 0 && !zero) return "−" + text;
  return signed && !zero ? "+" + text : text;
}

/** Right minus left; two infinite values are equal, and one alone has no difference to tell. */
function difference(left, right) {
  if (left === right) return 0;
  return Number.isFinite(left) && Number.isFinite(right) ? right - left : NaN;
}

function direction(metric) {
  return metric.higher ? " ↑" : " ↓";
}

// ---- Drawing -----------------------------------------------------------------------------------

function show() {
  sortPrompts();
  drawSides();
  drawRow();
  drawImages();
  drawSplit();
  drawDifference();
  drawNumbers();
  drawPrompts();
  writeAddress();
}

function drawSides() {
  for (const side of SIDES) {
    const run = state[side];
    const [method, steps] = [document.querySelector(`#${side} .method`), document.querySelector(`#${side} .steps`)];
    method.value = about.runs[run].method;
    steps.replaceChildren(...runsOf(method.value).map((place) => option(place, stepsOf(place))));
    steps.value = run;
  }
  $("reference").value = state.reference;
}

/** All methods at about the budget of the right run, with the prompt that is shown. */
function drawRow() {
  const chosen = methods.map((method) => (method === about.runs[state.right].method ? state.right : nearest(method, state.right)));
  $("row-title").textContent = `All methods near ${about.runs[state.right].full_steps} full steps`;
  for (const [i, button] of [...$("row").children].entries()) {
    const run = chosen[i];
    const url = source(run, state.prompt);
    const [image, name, steps, value] = button.children;
    if (image.src !== url) image.src = url;
    name.textContent = about.runs[run].method;
    steps.textContent = stepsOf(run);
    const found = about.metrics.length ? score(0, run, state.prompt) : NaN;
    value.textContent = about.metrics.length ? `${about.metrics[0].label} ${format(found, 1)}` : "";
    button.dataset.run = run;
    button.setAttribute("aria-pressed", run === state.right);
    if (run === state.right) keepInView($("row"), button);
  }
}

/** Scroll a row or a list, and not the page, as scrollIntoView would, to one of its parts. */
function keepInView(list, part) {
  const [right, below] = [part.offsetLeft + part.offsetWidth, part.offsetTop + part.offsetHeight];
  list.scrollLeft = Math.max(Math.min(list.scrollLeft, part.offsetLeft), right - list.clientWidth);
  list.scrollTop = Math.max(Math.min(list.scrollTop, part.offsetTop), below - list.clientHeight);
}

function drawImages() {
  for (const side of SIDES) {
    const image = $(`${side}-image`);
    const url = source(state[side], state.prompt);
    if (image.src !== url) image.src = url;
    image.alt = `${about.prompts[state.prompt].text}, by ${nameOf(state[side])}`;
  }
  const place = order.indexOf(state.prompt) + 1;
  const text = document.createElement("strong");
  text.textContent = about.prompts[state.prompt].text;
  const index = about.prompts[state.prompt].index;
  $("caption").replaceChildren(text, `prompt ${index}, ${place} of ${order.length} in this order`);
}

function drawSplit() {
  const { split } = state;
  const seen = split >= 100 ? "left" : split <= 0 ? "right" : "both";
  $("stage").style.setProperty("--split", `${split}%`);
  $("stage").classList.toggle("whole", seen !== "both");
  document.querySelector(".sides").dataset.seen = state.view === "images" ? seen : "both";
  $("split").value = split;
  $("split").setAttribute("aria-valuetext", seen === "both"
    ? `${split} % left, ${100 - split} % right`
    : `${nameOf(state[seen])} alone`);
}

function drawNumbers() {
  const metrics = about.metrics.map((metric, m) => metricRow(metric, m));
  const reference = about.references[state.reference];
  $("image-numbers").replaceChildren(heading(`This image, against ${reference}`), ...metrics,
    row("Seconds", (run) => number(about.seconds[run][state.prompt]), 3));
  $("run-numbers").replaceChildren(heading(`The run, mean over ${about.runs[state.right].images} images`),
    ...about.metrics.map((metric, m) => meanRow(metric, m)),
    ...about.wholes.map((metric, w) => wholeRow(metric, w)),
    ...predictedRow(),
    row("Full steps", (run) => about.runs[run].full_steps, 0),
    row("Sampler steps", (run) => about.runs[run].num_steps, 0),
    intervalRow("Speed-up (median)", (run) => about.runs[run].speedup, 2));
}

function metricRow(metric, m) {
  const made = row(metric.label + direction(metric), (run) => score(m, run, state.prompt), metric.digits);
  made.dataset.metric = metric.name;
  return made;
}

function meanRow(metric, m) {
  const made = intervalRow(metric.label + direction(metric),
    (run) => about.runs[run].means[state.reference][m], metric.digits);
  made.dataset.mean = metric.name;
  return made;
}

function wholeRow(metric, w) {
  return row(metric.label + direction(metric),
    (run) => number(about.runs[run].wholes[state.reference][w]), metric.digits);
}

/** What the plans say of themselves, where at least one of the sides has such a plan. */
function predictedRow() {
  const predicted = (run) => number(about.runs[run].predicted_psnr);
  if (SIDES.every((side) => Number.isNaN(predicted(state[side])))) return [];
  return [row("Predicted PSNR (dB)", predicted, 2)];
}

function heading(text) {
  const cell = Object.assign(document.createElement("th"), { colSpan: 4, scope: "rowgroup", className: "group" });
  cell.textContent = text;
  return tableRow([cell]);
}

function row(label, valueOf, digits) {
  return intervalRow(label, (run) => [valueOf(run)], digits);
}

/** A row of the table: of each side `[value, low, high]`, the last two where there is an interval. */
function intervalRow(label, valuesOf, digits) {
  const [left, right] = SIDES.map((side) => valuesOf(state[side]).map(number));
  const head = Object.assign(document.createElement("th"), { scope: "row" });
  head.textContent = label;
  const change = document.createElement("td");
  change.textContent = format(difference(left[0], right[0]), digits, true);
  return tableRow([head, valueCell(left, digits), valueCell(right, digits), change]);
}

function valueCell([value, low, high], digits) {
  const cell = document.createElement("td");
  cell.textContent = format(value, digits);
  if (Number.isFinite(low) && Number.isFinite(high) && low < high) {
    const interval = document.createElement("small");
    interval.textContent = `[${format(low, digits)}, ${format(high, digits)}]`;
    cell.append(interval);
  }
  return cell;
}

function tableRow(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

// ---- The difference ----------------------------------------------------------------------------

function drawDifference() {
  const shown = state.view === "difference";
  $("difference").hidden = $("legend").hidden = !shown;
  $("toggle-difference").setAttribute("aria-pressed", shown);
  for (const part of document.querySelectorAll("#left-image, #right-image, .divider, #split")) part.hidden = shown;
  $("scale").value = state.scale;
  if (!shown) return;
  const asked = [state.left, state.right, state.prompt, state.scale].join();
  // Decoding takes a moment; what it shows may be out of date by then.
  const still = () => asked === [state.left, state.right, state.prompt, state.scale].join();
  Promise.all(SIDES.map((side) => $(`${side}-image`).decode())).then(() => still() && paintDifference(), () => {});
}

/** Paint |left - right|, of each pixel the largest of the three channels. */
function paintDifference() {
  const [left, right] = SIDES.map((side) => pixels($(`${side}-image`)));
  const canvas = $("difference");
  [canvas.width, canvas.height] = about.size;
  const context = canvas.getContext("2d");
  const out = context.createImageData(canvas.width, canvas.height);
  const errors = new Uint8Array(left.length / 4);
  let [largest, sum, changed] = [0, 0, 0];
  for (let i = 0; i < errors.length; i++) {
    for (let c = 4 * i; c < 4 * i + 3; c++) errors[i] = Math.max(errors[i], Math.abs(left[c] - right[c]));
    largest = Math.max(largest, errors[i]);
    sum += errors[i];
    changed += errors[i] > 0;
  }
  const top = state.scale === "auto" ? Math.max(largest, 1) : Number(state.scale);
  errors.forEach((error, i) => out.data.set(colour(error / top), 4 * i));
  context.putImageData(out, 0, 0);
  $("top").textContent = `${top} of 255`;
  const share = (100 * changed) / errors.length;
  $("legend-text").textContent = `Largest ${largest}, mean ${(sum / errors.length).toFixed(2)}; `
    + `${share.toFixed(1)} % of the pixels differ${about.exact ? "" : ", in the copies on this page"}.`;
  canvas.setAttribute("aria-label", `Where the two images differ. ${$("legend-text").textContent}`);
}

function pixels(image) {
  const canvas = new OffscreenCanvas(...about.size);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, ...about.size);
  return context.getImageData(0, 0, ...about.size).data;
}

function colour(share) {
  const place = Math.min(share, 1) * (RAMP.length - 1);
  const [low, rest] = [Math.min(Math.floor(place), RAMP.length - 2), place % 1];
  const weight = place >= RAMP.length - 1 ? 1 : rest;
  return [0, 1, 2].map((c) => RAMP[low][c] * (1 - weight) + RAMP[low + 1][c] * weight).concat(255);
}

// ---- The list of prompts -----------------------------------------------------------------------

const metricOfSort = () => about.metrics.findIndex((metric) => metric.name === state.sort);

/** Worst of the right run first; unknown values come last, and equal ones in the prompts' order. */
function sortPrompts() {
  const m = metricOfSort();
  order = about.prompts.map((_, place) => place);
  if (m < 0) return;
  const badness = (p) => (about.metrics[m].higher ? -1 : 1) * score(m, state.right, p);
  const key = (p) => (Number.isNaN(badness(p)) ? -Infinity : badness(p));
  order.sort((a, b) => (key(a) === key(b) ? a - b : key(b) > key(a) ? 1 : -1));
}

/** The prompt to open on: that of the median, which says more of a run than its worst or first. */
function typicalPrompt() {
  const m = metricOfSort();
  const known = m < 0 ? [] : order.filter((p) => !Number.isNaN(score(m, state.right, p)));
  return known.length ? known[Math.floor((known.length - 1) / 2)] : order[0];
}

// Of many large images, only those that are seen in the list are decoded.
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.dataset.seen = entry.isIntersecting;
    drawThumbnail(entry.target);
  }
}, { root: $("prompts"), rootMargin: "100px" });

function drawThumbnail(label) {
  const url = source(state.right, Number(label.dataset.prompt));
  const image = label.querySelector("img");
  if (label.dataset.seen === "true" && image.src !== url) image.src = url;
}

function makePrompts() {
  for (const [place, prompt] of about.prompts.entries()) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "prompt", value: place });
    const image = Object.assign(document.createElement("img"), { alt: "", decoding: "async" });
    const text = document.createElement("span");
    text.textContent = text.title = prompt.text;
    label.dataset.prompt = place;
    label.append(input, image, text, document.createElement("output"));
    $("prompts").append(label);
    seen.observe(label);
  }
}

function drawPrompts() {
  const labels = [...$("prompts").querySelectorAll("label")];
  const rank = new Map(order.map((place, position) => [place, position]));
  const placeOf = (label) => Number(label.dataset.prompt);
  const m = metricOfSort() < 0 ? 0 : metricOfSort();
  const moved = labels.some((label, position) => order[position] !== placeOf(label));
  labels.sort((a, b) => rank.get(placeOf(a)) - rank.get(placeOf(b)));
  const focused = document.activeElement;
  if (moved) $("prompts").append(...labels);
  if (moved && labels.some((label) => label.contains(focused))) focused.focus({ preventScroll: true });
  for (const label of labels) {
    label.querySelector("output").textContent = format(score(m, state.right, placeOf(label)), about.metrics[m].digits);
    label.querySelector("input").checked = placeOf(label) === state.prompt;
    drawThumbnail(label);
  }
  keepInView($("prompts"), labels[rank.get(state.prompt)]);
  $("sort").value = state.sort;
}

// ---- What a person does ------------------------------------------------------------------------

function change(changes) {
  Object.assign(state, changes);
  show();
}

/** Moving the slider is all that changes while it is dragged, so nothing else is drawn. */
function moveSplit(split) {
  state.split = Math.min(100, Math.max(0, Math.round(2 * split) / 2));
  drawSplit();
  writeAddress();
}

/** To the image that is seen less, wholly. */
function flip() {
  if (state.view !== "images") change({ view: "images" });
  moveSplit(state.split > 50 ? 0 : 100);
}

function stepPrompt(by) {
  const place = (order.indexOf(state.prompt) + by + order.length) % order.length;
  change({ prompt: order[place] });
}

function stepMethod(by) {
  const place = methods.indexOf(about.runs[state.right].method);
  change({ right: nearest(methods[(place + by + methods.length) % methods.length], state.right) });
}

function stepBudget(by) {
  const runs = runsOf(about.runs[state.right].method);
  change({ right: runs[(runs.indexOf(state.right) + by + runs.length) % runs.length] });
}

function stepSort(by) {
  const sorts = ["number", ...about.metrics.map((metric) => metric.name)];
  change({ sort: sorts[(sorts.indexOf(state.sort) + by) % sorts.length] });
}

const swap = () => change({ left: state.right, right: state.left, split: 100 - state.split });
const toggleDifference = () => change({ view: state.view === "images" ? "difference" : "images" });

const KEYS = {
  arrowleft: () => moveSplit(state.split - 2),
  arrowright: () => moveSplit(state.split + 2),
  arrowup: () => stepPrompt(-1),
  arrowdown: () => stepPrompt(1),
  k: () => stepPrompt(-1),
  j: () => stepPrompt(1),
  " ": flip,
  f: flip,
  m: (event) => stepMethod(event.shiftKey ? -1 : 1),
  b: (event) => stepBudget(event.shiftKey ? -1 : 1),
  x: swap,
  d: toggleDifference,
  s: () => stepSort(1),
  "?": showHelp,
};

function showHelp() {
  $("help").open = true;
  $("help").scrollIntoView({ block: "nearest" });
  $("help").querySelector("summary").focus();
}

function pressed(event) {
  const at = event.target;
  if (event.key === "Escape" && at.matches("select")) $("split").focus();
  if (!$("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey) return;
  // A menu, a button and a link keep the keys that they have; the slider its arrows.
  if (at.matches("select") || (event.key === " " && at.matches("button, summary, [type=checkbox]"))) return;
  if (event.key.startsWith("Arrow") && at === $("split")) return;
  const action = KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action(event);
}

/** Dragging anywhere on the image moves the slider, on touch screens too. */
function drag(event) {
  if (event.buttons !== 1) return;
  const box = $("stage").getBoundingClientRect();
  moveSplit((100 * (event.clientX - box.left)) / box.width);
}

// ---- The address -------------------------------------------------------------------------------

function writeAddress() {
  const { view, sort, scale, split } = state;
  const words = {
    left: runNames[state.left], right: runNames[state.right],
    prompt: about.prompts[state.prompt].index, split, view, sort,
    ...(scale === "auto" ? {} : { scale }),
    ...(state.reference ? { reference: about.references[state.reference] } : {}),
  };
  const address = "#" + new URLSearchParams(words);
  // Inside a report the page is a frame without an address of its own.
  if (location.hash !== address && /^(file|https?):$/.test(location.protocol)) history.replaceState(null, "", address);
}

/** What the address does not say, or says of what is not here, stays as it is. */
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const known = (key, names) => names.includes(words.get(key)) && { [key]: words.get(key) };
  const place = (key, names) => names.includes(words.get(key)) && { [key]: names.indexOf(words.get(key)) };
  const split = parseFloat(words.get("split"));
  Object.assign(state,
    place("left", runNames), place("right", runNames), place("reference", about.references),
    place("prompt", about.prompts.map((prompt) => String(prompt.index))),
    known("view", ["images", "difference"]), known("scale", SCALES),
    known("sort", ["number", ...about.metrics.map((metric) => metric.name)]),
    split >= 0 && split <= 100 && { split });
}

// ---- Setting up --------------------------------------------------------------------------------

function option(value, text) {
  return Object.assign(document.createElement("option"), { value, textContent: text });
}

function setUpSides() {
  for (const side of SIDES) {
    const [method, steps] = [document.querySelector(`#${side} .method`), document.querySelector(`#${side} .steps`)];
    method.append(...methods.map((name) => option(name, name)));
    method.addEventListener("change", () => change({ [side]: nearest(method.value, state[side]) }));
    steps.addEventListener("change", () => change({ [side]: Number(steps.value) }));
  }
}

function setUpRow() {
  for (const method of methods) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `${method} on the right` });
    const image = Object.assign(document.createElement("img"), { alt: "", decoding: "async" });
    button.append(image, ...["strong", "span", "span"].map((kind) => document.createElement(kind)));
    button.addEventListener("click", () => change({ right: Number(button.dataset.run) }));
    $("row").append(button);
  }
}

function setUpMenus() {
  $("sort").append(option("number", "number"),
    ...about.metrics.map((metric) => option(metric.name, `${metric.label} of the right, worst first`)));
  $("sort").addEventListener("change", () => change({ sort: $("sort").value }));
  $("scale").addEventListener("change", () => change({ scale: $("scale").value }));
  $("reference").append(...about.references.map((name, place) => option(place, name)));
  $("reference").addEventListener("change", () => change({ reference: Number($("reference").value) }));
  $("reference-choice").hidden = about.references.length < 2;
}

function setUpStage() {
  const [width, height] = about.size;
  const small = Math.max(width, height) <= 256;
  const { style } = document.documentElement;
  style.setProperty("--width", width);
  style.setProperty("--height", height);
  if (small) style.setProperty("--unit", `${width}px`);
  document.body.classList.toggle("pixels", small);
  $("split").addEventListener("input", () => moveSplit(Number($("split").value)));
  for (const kind of ["pointerdown", "pointermove"]) $("split").addEventListener(kind, drag);
}

function setUpButtons() {
  $("swap").addEventListener("click", swap);
  $("flip").addEventListener("click", flip);
  $("toggle-difference").addEventListener("click", toggleDifference);
  $("previous").addEventListener("click", () => stepPrompt(-1));
  $("next").addEventListener("click", () => stepPrompt(1));
  $("prompts").addEventListener("change", (event) => change({ prompt: Number(event.target.value) }));
}

function setUp() {
  setUpSides();
  setUpRow();
  setUpMenus();
  setUpStage();
  setUpButtons();
  makePrompts();
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  if (about.metrics.length) state.sort = about.metrics[0].name;
  readAddress();
  sortPrompts();
  if (!new URLSearchParams(location.hash.slice(1)).has("prompt")) state.prompt = typicalPrompt();
  show();
}

setUp();
