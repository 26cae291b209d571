"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 60, SIDE = 96, TILES = 8, ALL = "\u0000all";
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const state = { view: "gallery", page: 0, found: [], list: [], open: -1, opacity: 50 };
const classNames = [...new Set(data.pictures.flatMap((one) => one.class ?? []))].sort();
const labelNames = [...new Set(data.pictures.flatMap((one) => one.label ?? []))].sort();
const mapsOfMethod = Math.max(1, (data.pictures.find((one) => one.maps.length)?.maps.length ?? 0) / data.methods.length);
const isJudged = data.pictures.some((one) => typeof one.correct === "boolean");

// Every text goes through here: names of files and classes are never read as HTML.
function make(tag, options = {}, ...children) {
  const { style, role, label, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const button = (text, onclick) => make("button", { type: "button", textContent: text, onclick });
const name = (text) => make("bdi", { textContent: text });  // a name that is written from right to left turns nothing else
const percent = (value) => (value === null || value === undefined ? "" : data.percent ? `${(100 * value).toFixed(value > .9995 ? 0 : 1)}%` : `score ${Number(value.toPrecision(3))}`);
const number = (value) => value.toLocaleString("en");
const counted = (count) => (count === 1 ? "1 picture" : `${number(count)} pictures`);

// Canvases are painted when they come near the screen.
const unpainted = new WeakMap();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    paint(target, ...unpainted.get(target));
  }
}, { rootMargin: "300px" });

function canvasOf(values, size, side = SIDE, options = {}) {
  const canvas = make("canvas", { width: side, height: side, ...options });
  unpainted.set(canvas, [values, size, side]);
  watcher.observe(canvas);
  return canvas;
}

let palette = null;
function paint(canvas, values, [height, width], side) {
  const source = bytes(values), context = canvas.getContext("2d"), image = context.createImageData(side, side);
  const pixels = new Uint32Array(image.data.buffer), places = (size) => Array.from({ length: side }, (_, position) => {
    const exact = Math.min(Math.max((position + .5) * size / side - .5, 0), size - 1), first = Math.floor(exact);
    return [first, Math.min(first + 1, size - 1), exact - first];
  });
  const across = places(width);
  places(height).forEach(([y0, y1, v], y) => across.forEach(([x0, x1, u], x) => {
    const top = source[y0 * width + x0] * (1 - u) + source[y0 * width + x1] * u;
    const bottom = source[y1 * width + x0] * (1 - u) + source[y1 * width + x1] * u;
    pixels[y * side + x] = palette[Math.round(top * (1 - v) + bottom * v)];
  }));
  context.putImageData(image, 0, 0);
}

function setColors() {
  const colors = bytes(new Map(data.colors).get(byId("colors").value)), rgba = new Uint8Array(1024).fill(255);
  for (let level = 0; level < 256; level++) rgba.set(colors.subarray(3 * level, 3 * level + 3), 4 * level);
  palette = new Uint32Array(rgba.buffer);
}

function stage(picture, map, width, alt) {
  const [w, h] = picture.size, [x0, y0, x1, y1] = picture.box;
  const box = make("div", { className: "frame", style: { "aspect-ratio": `${w} / ${h}`, width } });
  if (picture.thumb) box.append(make("img", { src: picture.thumb, loading: "lazy", alt }));
  const parts = make("div", { className: "stage" }, box);
  if (!map) return parts;
  const all = x0 <= 0 && y0 <= 0 && x1 >= w && y1 >= h;
  const place = { left: `${100 * x0 / w}%`, top: `${100 * y0 / h}%`, width: `${100 * (x1 - x0) / w}%`, height: `${100 * (y1 - y0) / h}%` };
  const described = alt ? { role: "img", label: `heatmap of ${map.method}` } : {};
  box.append(make("div", { className: all ? "seen all" : "seen", style: place }, canvasOf(map.values, map.size, SIDE, described)));
  if (map.empty) parts.append(make("span", { className: "none", textContent: "no positive evidence" }));
  return parts;
}

function verdict(picture) {
  const mark = picture.correct === true ? "✓ " : picture.correct === false ? "✗ " : "";
  const className = picture.correct === true ? "right" : picture.correct === false ? "wrong" : "";
  return make("p", { className }, mark, name(picture.class), ` ${percent(picture.score)}`);
}

const chosenMethods = () => (byId("method").value === ALL ? data.methods : [byId("method").value]);

function card(index, small = false) {
  const picture = data.pictures[index], methods = chosenMethods();
  const element = make("button", { type: "button", className: "card", title: picture.path });
  element.dataset.index = index;
  if (picture.maps.length) {
    const maps = picture.maps.filter((map) => methods.includes(map.method)).slice(0, small ? 1 : undefined);
    const width = `${100 * Math.min(1, picture.size[0] / picture.size[1])}%`;
    element.append(make("div", { className: "views" }, ...maps.map((map) => make("div", { className: "view" }, stage(picture, map, width, ""),
      maps.length > 1 ? make("span", { textContent: caption(picture, map) }) : null))));
  } else {
    element.append(make("div", { className: "stage" }, make("div", { className: "broken", textContent: picture.error })));
  }
  if (small) { element.setAttribute("aria-label", `${picture.path}, ${picture.class} ${percent(picture.score)}`); return element; }
  if (picture.maps.length) element.append(verdict(picture));
  if (picture.correct === false) element.append(make("p", {}, "labeled ", name(picture.label)));
  if (picture.error && picture.maps.length) element.append(make("p", { className: "error", textContent: picture.error }));
  element.append(make("p", { className: "path", textContent: picture.path }));
  return element;
}

function caption(picture, map) {
  const other = map.target !== null && map.target !== picture.class ? `: ${map.target} ${percent(map.score)}` : "";
  return map.method + other;
}

let texts = null;
function find() {
  const status = byId("status").value, predicted = byId("predicted").value, label = byId("label").value, words = byId("search").value.trim().toLowerCase();
  const least = Number(byId("least").value) / 100, most = Number(byId("most").value) / 100;
  const tests = { right: (one) => one.correct === true, wrong: (one) => one.correct === false, failed: (one) => Boolean(one.error), empty: (one) => one.maps.some((map) => map.empty) };
  if (words) texts ??= data.pictures.map((one) => [one.path, one.class, one.label].filter(Boolean).join("\n").toLowerCase());
  const isFound = (one, index) => (!tests[status] || tests[status](one)) && (!predicted || one.class === predicted) && (!label || one.label === label)
    && (least <= 0 && most >= 1 || one.score >= least && one.score <= most) && (!words || texts[index].includes(words));
  state.found = [...data.pictures.keys()].filter((index) => isFound(data.pictures[index], index));
  const score = (index) => data.pictures[index].score ?? -1, isWrong = (index) => Number(data.pictures[index].correct === false);
  const orders = { low: (a, b) => score(a) - score(b), high: (a, b) => score(b) - score(a), wrong: (a, b) => isWrong(b) - isWrong(a) || score(b) - score(a) };
  if (orders[byId("sort").value]) state.found.sort(orders[byId("sort").value]);
  byId("clear").hidden = !(words || predicted || label || status !== "all" || least > 0 || most < 1);
  state.page = 0;
  show();
}

// Set filters, those that are not named to their first value, and show what they leave.
function filter(wanted = {}) {
  const plain = { search: "", status: "all", predicted: "", label: "", least: 0, most: 100 };
  for (const [id, value] of Object.entries({ ...plain, ...wanted })) byId(id).value = value;
  showNumbers();
  state.view = "gallery";
  find();
}

function show() {
  for (const view of ["gallery", "pairs", "classes"]) byId(view).hidden = view !== state.view;
  for (const one of document.querySelectorAll("nav button")) one.setAttribute("aria-pressed", String(one.dataset.view === state.view));
  byId("pager").hidden = byId("count").hidden = byId("filters").hidden = state.view !== "gallery";
  if (state.view !== "gallery") { byId(state.view).replaceChildren(...(state.view === "pairs" ? pairRows : classRows)()); return; }
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE)), start = state.page * PAGE;
  const views = Math.min(4, chosenMethods().length * mapsOfMethod);
  byId("gallery").style.setProperty("--side", views === 1 ? 1 : .65 * views);
  byId("gallery").replaceChildren(...state.found.slice(start, start + PAGE).map((index) => card(index)));
  byId("found").textContent = state.found.length ? `${number(state.found.length)} of ${counted(data.pictures.length)}` : `None of ${counted(data.pictures.length)} matches.`;
  byId("page").value = state.page + 1;
  byId("page").max = pages;
  byId("pages").textContent = number(pages);
  byId("pager").hidden = pages === 1;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page + 1 >= pages;
}

function mean(maps, text) {
  return chosenMethods().filter((method) => maps?.[method]).map((method) => make("div", { className: "mean" },
    canvasOf(maps[method], [16, 16], SIDE, { role: "img", label: `mean heatmap, ${text}` }), make("span", { textContent: chosenMethods().length > 1 ? `${text}, ${method}` : text })));
}

// The pictures of each class and of each pair: the first few, and how many there are on this page.
const groups = new Map();
for (const [index, one] of data.pictures.entries()) {
  const keys = one.maps.length ? [one.class, ...(one.correct === false ? [JSON.stringify([one.label, one.class])] : [])] : [];
  for (const key of keys) {
    const group = groups.get(key) ?? { first: [], count: 0 };
    groups.set(key, group);
    group.count += 1;
    if (group.first.length < TILES) group.first.push(index);
  }
}

function row(title, key, count, texts, means, wanted) {
  const group = groups.get(key) ?? { first: [], count: 0 }, here = group.count < count ? ` (${number(group.count)} on this page)` : "";
  const text = make("div", { className: "text" }, make("h2", {}, ...title), ...texts.map((one) => make("p", {}, one)), group.count ? button(`show them${here}`, () => filter(wanted)) : null);
  return make("div", { className: "row" }, text, make("div", { className: "means" }, ...means), make("div", { className: "tiles" }, ...group.first.map((index) => card(index, true))));
}

function cut(rows, total, what) {
  if (total > rows.length) rows.push(make("p", { className: "notes", textContent: `These are the ${rows.length} most frequent of ${number(total)} ${what}.` }));
  return rows;
}

function pairRows() {
  if (!data.pairs.length) return [make("p", { textContent: "No picture is taken for another class than that of its label." })];
  const maps = new Map(data.classes.map((one) => [one.name, one.maps]));
  return cut(data.pairs.map((pair) => row([name(pair.label), " → ", name(pair.predicted)], JSON.stringify([pair.label, pair.predicted]), pair.count,
    [`${counted(pair.count)} labeled ${pair.label} and taken for ${pair.predicted}`],
    [...mean(pair.maps, "mean of these"), ...mean(maps.get(pair.label), `all taken for ${pair.label}`), ...mean(maps.get(pair.predicted), `all taken for ${pair.predicted}`)],
    { status: "wrong", label: pair.label, predicted: pair.predicted })), data.counts.pairs, "confusions");
}

function classRows() {
  return cut(data.classes.map((one) => row([name(one.name)], one.name, one.count,
    [`predicted for ${counted(one.count)}`, ...(one.labeled ? [`${percent(one.right / one.labeled)} of ${number(one.labeled)} with this label are right`] : [])],
    mean(one.maps, "mean"), { predicted: one.name })), data.counts.classes, "classes");
}

function open(index) {
  const picture = data.pictures[index], [w, h] = picture.size ?? [1, 1], dialog = byId("detail");
  const place = state.list.indexOf(index), width = `min(100%, 62vh * ${w / h})`, parts = [];
  state.open = index;
  byId("detail-place").textContent = `${number(place + 1)} of ${number(state.list.length)}`;
  byId("before").disabled = place <= 0;
  byId("after").disabled = place + 1 >= state.list.length;
  byId("detail-path").textContent = picture.path;
  if (picture.error) parts.push(make("p", { className: "error", textContent: picture.error }));
  if (picture.maps.length) parts.push(verdict(picture));
  if (picture.label !== null) parts.push(make("p", {}, "labeled ", name(picture.label)));
  if (picture.maps.length) {
    const views = picture.maps.map((map) => make("div", { className: "view" }, stage(picture, map, width, picture.path),
      make("span", { textContent: `${map.method}, ${data.layers[map.method] ?? ""}${map.target === null ? "" : `, for ${map.target} ${percent(map.score)}`}` }),
      map.overlay ? make("a", { href: map.overlay.split("/").map(encodeURIComponent).join("/"), target: "_blank", rel: "noreferrer", textContent: "in full size" }) : null));
    const plain = make("div", { className: "view" }, stage(picture, null, width, picture.path), make("span", { textContent: `${w} × ${h}${picture.thumb ? "" : ", without a thumbnail"}` }));
    parts.push(make("div", { className: "views" }, plain, ...views));
    const rows = picture.top.map(([text, score]) => make("tr", {}, make("td", {}, name(text)), make("td", { textContent: percent(score) }),
      make("td", { className: "bars" }, make("i", { style: { width: `${100 * Math.min(1, Math.max(0, score))}%` } }))));
    parts.push(make("table", { label: "best classes" }, make("tbody", {}, ...rows)));
  }
  byId("detail-body").replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function step(by) {
  if (byId("detail").open) {
    const next = state.list[state.list.indexOf(state.open) + by];
    if (next !== undefined) open(next);
  } else if (state.view === "gallery") turnTo(state.page + by);
}

function turnTo(page) {
  if (!(page >= 0 && page < Math.ceil(state.found.length / PAGE))) return;
  state.page = page;
  show();
  byId("count").scrollIntoView();
}

function setOpacity(value) {
  if (value > 0) state.opacity = value;
  document.documentElement.style.setProperty("--opacity", value / 100);
  for (const slider of document.querySelectorAll(".opacity")) slider.value = value;
  byId("opacity-value").textContent = `${value}%`;
}

function showNumbers() {
  for (const id of ["least", "most"]) byId(`${id}-value`).textContent = `${byId(id).value}%`;
}

const option = (text, value = text) => make("option", { value, textContent: text });
byId("method").append(...data.methods.map((text) => option(text)), ...(data.methods.length > 1 ? [option("side by side", ALL)] : []));
byId("colors").append(...data.colors.map(([text]) => option(text)));
byId("predicted").append(...classNames.map((text) => option(text)));
byId("label").append(...labelNames.map((text) => option(text)));
byId("label").parentElement.hidden = !labelNames.length;
for (const id of ["least", "most"]) byId(id).parentElement.hidden = !data.percent;
if (!isJudged) for (const one of document.querySelectorAll(".judged")) one.remove();
for (const id of ["search", "status", "predicted", "label", "sort", "least", "most"]) byId(id).addEventListener("input", () => { showNumbers(); find(); });
byId("method").addEventListener("input", show);
byId("colors").addEventListener("input", () => { setColors(); show(); });
for (const slider of document.querySelectorAll(".opacity")) slider.addEventListener("input", () => setOpacity(Number(slider.value)));
byId("page").addEventListener("change", () => { turnTo(Math.round(byId("page").value) - 1); byId("page").value = state.page + 1; });
for (const [id, by] of [["previous", -1], ["next", 1], ["before", -1], ["after", 1]]) byId(id).addEventListener("click", () => step(by));
for (const one of document.querySelectorAll("nav button")) one.addEventListener("click", () => { state.view = one.dataset.view; show(); });
for (const one of document.querySelectorAll("[data-show]")) one.addEventListener("click", () => filter({ status: one.dataset.show }));
byId("clear").addEventListener("click", () => filter());
byId("close").addEventListener("click", () => byId("detail").close());
document.addEventListener("click", (event) => {
  const chosen = event.target.closest(".card"), tiles = event.target.closest(".tiles");
  if (event.target === byId("detail") && !isInside(event)) byId("detail").close();
  if (!chosen) return;
  state.list = tiles ? [...tiles.children].map((one) => Number(one.dataset.index)) : state.found;
  open(Number(chosen.dataset.index));
});
function isInside({ clientX: x, clientY: y }) {
  const place = byId("detail").getBoundingClientRect();
  return x >= place.left && x <= place.right && y >= place.top && y <= place.bottom;
}
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select") && event.key !== "Escape";
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const isOpen = byId("detail").open;
  if (event.key === "/" && !isOpen) { event.preventDefault(); if (state.view !== "gallery") { state.view = "gallery"; show(); } byId("filters").open = true; byId("search").focus(); }
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "Escape" && event.target.matches("input")) event.target.blur();
  else if (event.key === "h") setOpacity(document.documentElement.style.getPropertyValue("--opacity") > 0 ? 0 : state.opacity);
});
const narrow = matchMedia("(max-width: 640px)");
const fold = () => { byId("filters").open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
setColors();
setOpacity(state.opacity);
showNumbers();
find();
