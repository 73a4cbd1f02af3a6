"use strict";
// The report's behaviour: charts, the table, the opened feature. All text reaches the page as text nodes, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const F = data.features, N = F.latent.length;
const byLatent = new Map(F.latent.map((latent, i) => [latent, i]));
const $ = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "circle", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null && value !== false) node.setAttribute(name, value);
  node.append(...children.filter((child) => child != null));
  return node;
}

// Numbers as people read them.
const whole = (x) => Math.round(x).toLocaleString("en-US");
const fixed = (x, digits = 2) => x.toFixed(digits);
function short(x) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-4) return x.toExponential(1).replace("e+", "e");
  return String(Number(x.toPrecision(3)));
}
function percent(x) {
  if (!x) return "never";
  return x >= 0.1 ? fixed(100 * x, 0) + "%" : Number((100 * x).toPrecision(2)) + "%";
}
const oneIn = (x) => (x > 0.5 ? "on most tokens" : x ? "1 token in " + whole(Number((1 / x).toPrecision(2))) : "never");

// ---------- theme
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("saeflow-theme"); } catch { /* storage may be closed to files */ }
function showTheme() {
  const theme = chosen || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  $("theme-name").textContent = theme === "dark" ? "Dark" : "Light";
}
dark.addEventListener("change", showTheme);
$("theme").addEventListener("click", () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("saeflow-theme", chosen); } catch { /* as above */ }
  showTheme();
});
showTheme();

// ---------- charts
function niceTicks(low, high, count) {
  const raw = (high - low || Math.abs(high) || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) ticks.push(Math.abs(t) < step / 1e6 ? 0 : t);
  return ticks;
}

function curve(series) {
  const [W, H, left, bottom, top] = [300, 150, 38, 20, 8];
  const xs = data.history.step, points = xs.map((x, i) => [x, series.values[i]]).filter((p) => p[1] != null);
  if (!points.length) return null;
  const later = points.slice(Math.floor(points.length * 0.02)); // the first steps would flatten everything else
  const [least, most] = bounds(later.map((p) => p[1]));
  let low = Math.min(0, least), high = Math.max(most, low + 1e-9);
  if (least > 0.5 * high && high - least > 0.02 * high) low = least - 0.3 * (high - least);
  high += (high - low) * 0.06;
  const x = (v) => left + ((v - xs[0]) / (xs[xs.length - 1] - xs[0] || 1)) * (W - left - 4);
  const y = (v) => top + (1 - (Math.min(v, high) - low) / (high - low)) * (H - top - bottom);
  const path = points.map(([a, b], i) => (i ? "L" : "M") + x(a).toFixed(1) + " " + y(b).toFixed(1)).join("");
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `${series.name}: from ${short(points[0][1])} to ${short(points[points.length - 1][1])}` });
  for (const t of niceTicks(low, high, 3)) svg.append(
    el("line", { class: "grid", x1: left, x2: W - 4, y1: y(t), y2: y(t) }),
    el("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, short(t)));
  svg.append(el("text", { x: left, y: H - 4 }, whole(xs[0])),
    el("text", { x: W - 4, y: H - 4, "text-anchor": "end" }, whole(xs[xs.length - 1]) + " steps"),
    el("path", { class: "area", d: path + `L${x(points[points.length - 1][0]).toFixed(1)} ${H - bottom}L${x(points[0][0]).toFixed(1)} ${H - bottom}Z` }),
    el("path", { class: "line", d: path }));
  const rule = el("line", { class: "rule", y1: top, y2: H - bottom, visibility: "hidden" });
  const dot = el("circle", { class: "dot", r: 4.5, visibility: "hidden" });
  svg.append(rule, dot);
  const now = el("span", { class: "now" }), last = points[points.length - 1];
  const rest = () => { now.textContent = short(last[1]); for (const n of [rule, dot]) n.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * W;
    const p = points.reduce((best, q) => (Math.abs(x(q[0]) - at) < Math.abs(x(best[0]) - at) ? q : best));
    rule.setAttribute("x1", x(p[0])); rule.setAttribute("x2", x(p[0]));
    dot.setAttribute("cx", x(p[0])); dot.setAttribute("cy", y(p[1]));
    for (const n of [rule, dot]) n.setAttribute("visibility", "visible");
    now.textContent = `${short(p[1])} at step ${whole(p[0])}`;
  });
  svg.addEventListener("pointerleave", rest);
  rest();
  return el("figure", { title: series.explanation }, el("figcaption", {}, el("b", {}, series.name), now), svg);
}

let pickedBar = null;
function histogram(target, { title, keys, bins, ticks, field, say, note }) {
  const [W, H, left, bottom, top] = [520, 210, 40, 24, 8];
  const high = Math.max(1, ...bins.map((b) => Math.max(b.count, b.other || 0)));
  const from = bins[0].from, to = bins[bins.length - 1].to;
  const x = (v) => left + ((v - from) / (to - from)) * (W - left - 4), y = (v) => top + (1 - v / high) * (H - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": title });
  for (const t of niceTicks(0, high, 4).filter(Number.isInteger)) svg.append(el("line", { class: "grid", x1: left, x2: W - 4, y1: y(t), y2: y(t) }),
    el("text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, whole(t)));
  const now = el("span", { class: "now" }, note);
  for (const bin of bins) {
    const wide = x(bin.to) - x(bin.from);
    const hit = el("rect", { class: "hit", x: x(bin.from), width: wide, y: top, height: H - top - bottom,
      role: "button", tabindex: bin.count ? 0 : null, "aria-label": `${say(bin)}: ${whole(bin.count)} features` });
    const bar = el("rect", { class: "bar-fill", x: x(bin.from) + 0.75, width: Math.max(wide - 1.5, 1), y: y(bin.count), height: H - bottom - y(bin.count), "pointer-events": "none" });
    const tell = () => { now.textContent = `${say(bin)}: ${whole(bin.count)}` + (bin.other == null ? "" : `, baseline ${whole(bin.other)}`); };
    const pick = () => {
      if (pickedBar) pickedBar.classList.remove("on");
      pickedBar = bar; bar.classList.add("on");
      setRange({ field, from: bin.from, to: bin.to, last: bin === bins[bins.length - 1], text: say(bin) });
    };
    hit.addEventListener("pointerenter", tell); hit.addEventListener("focus", tell);
    hit.addEventListener("click", pick);
    hit.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
    svg.append(hit, bar);
  }
  svg.addEventListener("pointerleave", () => { now.textContent = note; });
  if (bins.some((bin) => bin.other != null)) {
    let d = `M${x(from)} ${y(0)}`;
    for (const bin of bins) d += `V${y(bin.other).toFixed(1)}H${x(bin.to).toFixed(1)}`;
    svg.append(el("path", { class: "outline", d: d + `V${y(0)}` }));
  }
  svg.append(el("line", { class: "axis", x1: left, x2: W - 4, y1: y(0), y2: y(0) }));
  for (const [value, text] of ticks) svg.append(el("text", { x: x(value), y: H - 7, "text-anchor": "middle" }, text));
  target.append(el("figcaption", {}, el("b", {}, title), ...keys, now), svg);
}

const median = (values) => { const s = [...values].sort((a, b) => a - b); return s.length ? s[Math.floor(s.length / 2)] : null; };
function count(bins, values, name) {
  for (const bin of bins) bin[name] = 0;
  const { from } = bins[0], width = bins[0].to - bins[0].from;
  for (const value of values) bins[Math.min(bins.length - 1, Math.max(0, Math.floor((value - from) / width + 1e-9)))][name]++;
}
function drawHistograms() {
  const alive = F.rate.filter((r) => r > 0), logs = alive.map(Math.log10);
  if (alive.length) {
    const low = Math.floor(Math.min(...bounds(logs)) * 2) / 2, high = Math.min(0, Math.ceil(Math.max(...bounds(logs)) * 2) / 2);
    const steps = Math.max(4, Math.round((high - low) * 8)), size = (high - low) / steps || 0.125;
    const bins = Array.from({ length: steps }, (_, i) => ({ from: low + i * size, to: low + (i + 1) * size }));
    count(bins, logs, "count");
    const ticks = [];
    for (let power = Math.ceil(low); power <= high; power++) ticks.push([power, power < -4 ? "1e" + power : percent(10 ** power)]);
    histogram($("density"), { title: "How often features fire", keys: [], bins, ticks, field: "log",
      note: `share of tokens, median ${percent(median(alive))}` + (N - alive.length ? `; ${whole(N - alive.length)} dead` : ""),
      say: (b) => `${percent(10 ** b.from)} to ${percent(10 ** b.to)} of tokens` });
  }
  const scores = F.score.filter((s) => s != null), base = F.baseline.filter((s, i) => s != null && F.score[i] != null);
  if (scores.length) {
    const low = Math.min(0.4, Math.floor(Math.min(...bounds(scores), ...bounds(base)) * 20) / 20), steps = Math.round((1 - low) * 40);
    const bins = Array.from({ length: steps }, (_, i) => ({ from: low + ((1 - low) * i) / steps, to: low + ((1 - low) * (i + 1)) / steps }));
    count(bins, scores, "count");
    if (base.length) count(bins, base, "other");
    const ticks = []; for (let t = Math.ceil(low * 10) / 10; t <= 1.0001; t += 0.1) ticks.push([t, fixed(t, 1)]);
    histogram($("scores"), { title: "Label scores", bins, ticks, field: "score",
      keys: [el("span", { class: "key" }, "label"), base.length ? el("span", { class: "key cool" }, "token look-up") : null],
      note: `median ${fixed(median(scores))}` + (base.length ? ` against ${fixed(median(base))}` : ""), say: (b) => `${fixed(b.from)} to ${fixed(b.to)}` });
  } else $("scores").append(el("figcaption", {}, el("b", {}, "Label scores"), el("span", {}, "no feature had enough held-out examples for a score")));
}
function bounds(values) { let low = Infinity, high = -Infinity; for (const v of values) { if (v < low) low = v; if (v > high) high = v; } return [low, high]; }

// ---------- the table: filter, sort, draw what is in view
const text = F.label.map((label, i) => `#${F.latent[i]} ${F.latent[i]} ${label || ""} ${F.words[i]}`.toLowerCase());
const columns = {
  latent: F.latent, score: F.score, rate: F.rate, max: F.max,
  label: F.label.map((label) => (label ? label.toLowerCase() : null)),
  gain: F.score.map((s, i) => (s == null || F.baseline[i] == null ? null : s - F.baseline[i])),
  log: F.rate.map((r) => (r > 0 ? Math.log10(r) : null)),
};
const view = { query: "", state: "all", range: null, sort: "gain", way: -1, order: [], at: -1, shown: null };
const states = {
  all: () => true, scored: (i) => F.score[i] != null, better: (i) => columns.gain[i] > 0,
  few: (i) => F.status[i] === "too few" && F.rate[i] > 0, dead: (i) => !F.rate[i],
};

function apply() {
  const words = view.query.toLowerCase().split(/\s+/).filter(Boolean), keep = states[view.state], r = view.range;
  const order = [];
  for (let i = 0; i < N; i++) {
    if (!keep(i) || !words.every((word) => text[i].includes(word))) continue;
    if (r) { const v = columns[r.field][i]; if (v == null || v < r.from || (r.last ? v > r.to : v >= r.to)) continue; }
    order.push(i);
  }
  const values = columns[view.sort], way = view.way;
  order.sort((a, b) => {
    const p = values[a], q = values[b];
    if (p == null || q == null) return (p == null) - (q == null) || a - b; // what is missing comes last either way
    return (p < q ? -way : p > q ? way : 0) || a - b;
  });
  view.order = order;
  view.at = view.shown == null ? -1 : order.indexOf(view.shown);
  $("count").textContent = order.length === N ? `${whole(N)} features` : `${whole(order.length)} of ${whole(N)} features`;
  for (const head of document.querySelectorAll("[data-sort]")) {
    if (head.dataset.sort === view.sort) head.setAttribute("aria-sort", view.way < 0 ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  $("sort").value = `${view.sort}:${view.way}`;
  $("grid").setAttribute("aria-rowcount", order.length + 1);
  $("grid").scrollTop = 0;
  draw();
}

function track(i) {
  const low = 0.4, at = (v) => `${Math.max(0, Math.min(100, (100 * (v - low)) / (1 - low)))}%`;
  const node = el("span", { class: "track", "aria-hidden": "true" });
  const put = (name, css) => { const part = el("span", { class: name }); Object.assign(part.style, css); node.append(part); };
  if (F.low[i] != null) put("span", { left: at(F.low[i]), width: `${(100 * (F.high[i] - Math.max(F.low[i], low))) / (1 - low)}%` });
  if (F.baseline[i] != null) put("base", { left: at(F.baseline[i]) });
  put("at", { left: at(F.score[i]) });
  return node;
}
const gainText = (g) => (Math.abs(g) < 0.005 ? "±" : g > 0 ? "+" : "−") + fixed(Math.abs(g));
const gainClass = (g) => (g == null || Math.abs(g) < 0.005 ? "" : g > 0 ? " up" : " down");
const missing = (i) => (F.rate[i] ? F.status[i] || "no score" : "dead");

function row(position) {
  const i = view.order[position], gain = columns.gain[i];
  const node = el("div", { class: "row", role: "row", id: `row-${position}`, "aria-rowindex": position + 2, "aria-selected": String(i === view.shown) },
    el("div", { role: "gridcell", class: "id" }, String(F.latent[i])),
    el("div", { role: "gridcell", class: "name" }, F.label[i] ? el("b", {}, F.label[i]) : el("b", { class: "none" }, F.rate[i] ? "no label" : "never fires"), el("i", {}, F.words[i])),
    F.score[i] == null ? el("div", { role: "gridcell", class: "none" }, missing(i))
      : el("div", { role: "gridcell", class: "score", title: F.low[i] == null ? null : `95% interval ${fixed(F.low[i])} to ${fixed(F.high[i])}` }, el("span", {}, fixed(F.score[i])), track(i)),
    el("div", { role: "gridcell", class: "num gain" + gainClass(gain), title: F.baseline[i] == null ? null : `baseline ${fixed(F.baseline[i])}` }, gain == null ? "" : gainText(gain)),
    el("div", { role: "gridcell", class: "num", title: oneIn(F.rate[i]) }, percent(F.rate[i])),
    el("div", { role: "gridcell", class: "num" }, F.rate[i] ? short(F.max[i]) : ""));
  node.style.top = `calc(${position} * var(--row))`;
  node.addEventListener("click", () => open(i, { focus: narrow.matches }));
  return node;
}

const narrow = matchMedia("(max-width: 860px)");
function rowHeight() { return parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")); }
function draw() {
  const grid = $("grid"), body = $("body"), size = rowHeight();
  body.style.height = `${view.order.length * size}px`;
  const first = Math.max(0, Math.floor(grid.scrollTop / size) - 6), last = Math.min(view.order.length, Math.ceil((grid.scrollTop + grid.clientHeight) / size) + 6);
  const rows = [];
  for (let position = first; position < last; position++) rows.push(row(position));
  body.replaceChildren(...(rows.length ? rows : [el("p", { class: "empty" }, "No feature matches. Try fewer words or another filter.")]));
  if (view.at >= first && view.at < last) grid.setAttribute("aria-activedescendant", `row-${view.at}`);
  else grid.removeAttribute("aria-activedescendant");
}
function reveal(position, centred) {
  const grid = $("grid"), size = rowHeight(), head = document.querySelector(".row.head").offsetHeight;
  if (centred) { grid.scrollTop = (position + 0.5) * size - (grid.clientHeight - head) / 2; return; }
  if (position * size < grid.scrollTop) grid.scrollTop = position * size;
  else if ((position + 1) * size + head > grid.scrollTop + grid.clientHeight) grid.scrollTop = (position + 1) * size + head - grid.clientHeight;
}

// ---------- the opened feature
const blocks = new Map();
function detailOf(i) {
  const number = F.block[i];
  if (number == null) return null;
  if (!blocks.has(number)) blocks.set(number, JSON.parse($(`block-${number}`).textContent));
  return blocks.get(number)[F.latent[i]];
}

function example([activation, hit, wordStart, wordEnd, rowId, start, tokens, heat]) {
  const line = el("p", {}, start ? el("span", { class: "nl" }, "… ") : null), levels = new Map();
  for (let j = 0; j < heat.length; j += 2) levels.set(heat[j], heat[j + 1]);
  let word = null;
  let blank = start > 0;
  tokens.forEach((number, j) => {
    const whole = data.strings[number], level = levels.get(j) || 0;
    const said = whole.trim() && whole !== "\n" ? whole.replace(/^ +/, "") : whole; // a space before a word is not shaded with it
    if (blank && !whole.trim() && j < wordStart) return; // white space after the ellipsis
    const gap = j && !blank ? whole.slice(0, whole.length - said.length) : "";
    const piece = el(j === hit ? "mark" : "span", { class: /^<[^<>\s]+>$/.test(whole) ? "t special" : "t", title: level ? `activation ${short((level / 100) * example.max)}` : null });
    if (level) piece.style.setProperty("--a", (0.1 + 0.62 * (level / 100)).toFixed(2));
    said.split("\n").forEach((part, n) => { if (n) piece.append(el("span", { class: "nl" }, "↵ ")); piece.append(part); });
    blank = false;
    if (j === wordStart) { line.append(gap); word = el("span", { class: "word" }); line.append(word); }
    if (j > wordStart && j < wordEnd) word.append(gap, piece);
    else if (j === wordStart) word.append(piece);
    else line.append(gap, piece);
  });
  return el("li", { title: `row ${rowId}` }, el("span", { class: "a" }, activation ? short(activation) : ""), line);
}

function stat(name, value, more) { return el("div", {}, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, more) : null)); }

function show(i) {
  const found = detailOf(i), detail = $("detail"), latent = F.latent[i];
  const move = (step) => { const next = view.order[view.at + step]; if (next != null) open(next, { focus: false }); };
  const button = (label, glyph, act, cls = "") => { const b = el("button", { class: "quiet " + cls, type: "button", "aria-label": label, title: label }, glyph); b.addEventListener("click", act); return b; };
  const parts = [el("div", { class: "detail-bar" }, button("Back to the list", "← Back", close, "close"), el("span", {}, `No. ${latent}`), el("span", { class: "grow" }),
    button("Previous feature", "↑", () => move(-1)), button("Next feature", "↓", () => move(1)), el("a", { class: "quiet", href: `#latent=${latent}` }, "Link")),
    el("h3", { id: "detail-title" }, F.label[i] || (F.rate[i] ? "No label" : "Never fires"))];
  if (F.label[i]) parts.push(el("p", { class: "by" }, `Labelled by ${data.labeller}` + (F.certainty[i] == null ? "" : `, certainty ${F.certainty[i]}`)));
  if (F.score[i] != null) parts.push(el("div", { class: "scale" }, track(i), el("div", { class: "ends" }, el("span", {}, "0.4"), el("span", {}, "1.0"))));
  parts.push(el("dl", { class: "stats" },
    F.score[i] == null ? stat("Score", missing(i), F.rate[i] ? `${whole(F.held[i])} held-out activations` : "")
      : stat("Score", fixed(F.score[i]), F.low[i] == null ? "" : `${fixed(F.low[i])} to ${fixed(F.high[i])}`),
    F.baseline[i] == null ? null : stat("Token look-up", fixed(F.baseline[i]), columns.gain[i] == null ? "" : `label ${gainText(columns.gain[i])}`),
    stat("Fires on", percent(F.rate[i]), F.rate[i] ? oneIn(F.rate[i]) : ""),
    F.rate[i] ? stat("Max activation", short(F.max[i]), `mean ${short(F.mean[i])}`) : null));
  if (!found) parts.push(el("p", { class: "by" }, F.rate[i] ? "This file holds the texts of a limited number of features, and this one is not among them; examples.parquet has them all." : "A dead latent: nothing in the text makes it fire."));
  else {
    example.max = F.max[i] || 1;
    const texts = (title, small, list) => list.length && parts.push(el("h4", {}, title + " ", el("small", {}, small)), el("ul", { class: "texts" }, ...list.map(example)));
    texts("Strongest", "the strongest token of each text", found.top);
    texts("Typical", "drawn at random from all its activations", found.sample);
    const list = (title, tokens, cls) => (tokens.length ? el("div", {}, el("h4", {}, title), el("ul", { class: "tokens " + cls }, ...tokens.map(([t, e]) => el("li", { title: "logit " + short(e) + " per unit" }, data.strings[t].replaceAll("\n", "↵") || "∅")))) : null);
    parts.push(el("div", { class: "pair" }, list("Makes these tokens likelier", found.promoted, ""), list("Makes these tokens unlikelier", found.suppressed, "cool")));
    const near = found.near.filter(([other]) => byLatent.has(other));
    if (near.length) parts.push(el("h4", {}, "Nearest features ", el("small", {}, "cosine of decoder directions")), el("ul", { class: "near" }, ...near.map(([other, cosine]) => {
      const j = byLatent.get(other);
      return el("li", {}, el("a", { href: `#latent=${other}` }, el("span", {}, String(other)), el("span", {}, F.label[j] || F.words[j] || "no label"), el("span", {}, fixed(cosine))));
    })));
  }
  detail.setAttribute("aria-label", `Feature ${latent}: ${F.label[i] || "no label"}`);
  detail.replaceChildren(...parts.filter((part) => part instanceof Node));
  detail.scrollTop = 0;
}

function open(i, { focus = false, link = true, centred = false } = {}) {
  view.shown = i;
  view.at = view.order.indexOf(i);
  show(i);
  if (view.at >= 0) reveal(view.at, centred);
  draw();
  if (link) { history.replaceState(null, "", `#latent=${F.latent[i]}`); document.body.classList.add("open"); }
  if (focus) $("detail").focus({ preventScroll: true });
}
function close() {
  document.body.classList.remove("open");
  history.replaceState(null, "", location.pathname + location.search);
  $("grid").focus({ preventScroll: true });
}
function follow() {
  const match = /^#latent=(\d+)$/.exec(location.hash), i = match && byLatent.get(Number(match[1]));
  if (i == null) return false;
  if (view.order.indexOf(i) < 0) resetFilters();
  open(i, { focus: true, centred: true });
  if (!narrow.matches) $("features").scrollIntoView({ behavior: "instant" });
  return true;
}

// ---------- input
function resetFilters() {
  view.query = $("search").value = ""; view.state = $("state").value = "all"; setRange(null);
}
function setRange(range) {
  view.range = range;
  if (!range && pickedBar) { pickedBar.classList.remove("on"); pickedBar = null; }
  $("range").hidden = !range;
  $("range").textContent = range ? `${range.text}  ✕` : "";
  if (range) { $("range").setAttribute("aria-label", `Remove the filter ${range.text}`); $("features").scrollIntoView(); }
  apply();
}
let waiting = 0;
function search() { clearTimeout(waiting); if (view.query !== $("search").value) { view.query = $("search").value; apply(); } }
$("search").addEventListener("input", () => { // at once where that is cheap, else when the typing pauses
  if (N <= 5000) return search();
  clearTimeout(waiting);
  waiting = setTimeout(search, 120);
});
$("state").addEventListener("change", (event) => { view.state = event.target.value; apply(); });
$("sort").addEventListener("change", (event) => { const [name, way] = event.target.value.split(":"); view.sort = name; view.way = Number(way); apply(); });
$("range").addEventListener("click", () => setRange(null));
for (const head of document.querySelectorAll("[data-sort]")) head.querySelector("button").addEventListener("click", () => {
  const name = head.dataset.sort, natural = name === "label" || name === "latent" ? 1 : -1;
  view.way = view.sort === name ? -view.way : natural; view.sort = name; apply();
});
let frame = 0;
$("grid").addEventListener("scroll", () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(draw); });
addEventListener("resize", draw);
addEventListener("hashchange", follow);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName), step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 10, PageUp: -10 }[event.key];
  if (event.key === "Escape") {
    if (event.target.id === "search" && event.target.value) { event.target.value = ""; search(); } else close();
  } else if (event.key === "/" && !typing) { event.preventDefault(); $("search").focus(); $("search").select(); }
  else if (event.key === "Enter" && event.target.id === "search") { search(); if (view.order.length) open(view.order[0], { focus: narrow.matches }); }
  else if (event.key === "Enter" && event.target.id === "grid" && view.shown != null) open(view.shown, { focus: true });
  else if (event.target.id === "grid" || (event.target.id === "search" && event.key.startsWith("Arrow"))) {
    const end = event.target.id === "grid" ? { Home: 0, End: view.order.length - 1 }[event.key] : null;
    if ((step == null && end == null) || !view.order.length) return;
    event.preventDefault();
    const at = end != null ? end : Math.max(0, Math.min(view.order.length - 1, view.at + step));
    if (narrow.matches) { view.at = at; view.shown = view.order[at]; reveal(at); draw(); } else open(view.order[at]);
  }
});
addEventListener("beforeprint", () => { // the table in view is drawn by parts; paper gets its first rows whole
  const rows = view.order.slice(0, 200).map((i) => el("tr", {}, ...[F.latent[i], F.label[i] || F.words[i], F.score[i] == null ? missing(i) : `${fixed(F.score[i])}` + (F.low[i] == null ? "" : ` (${fixed(F.low[i])} to ${fixed(F.high[i])})`), F.baseline[i] == null ? "" : fixed(F.baseline[i]), percent(F.rate[i])].map((cell) => el("td", {}, String(cell)))));
  $("print-table").replaceChildren(el("table", {}, el("tr", {}, ...["No.", "Label", "Score", "Baseline", "Fires on"].map((name) => el("th", {}, name))), ...rows), el("p", {}, `${whole(rows.length)} of ${whole(view.order.length)} features`));
});

const drawn = data.history.series.map(curve).filter(Boolean);
$("curves").append(...(drawn.length ? drawn : [el("p", { class: "under" }, "The training left no curves.")]));
drawHistograms();
apply();
if (!follow() && view.order.length) open(view.order[0], { link: false });
document.documentElement.dataset.ready = "yes";
