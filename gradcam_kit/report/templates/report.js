"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 60, SIDE = 96, ALL = "\u0000all";
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const colors = bytes(data.colors);
const state = { view: "gallery", page: 0, found: [], open: -1, pair: null };

// Every text goes through here: names of files and classes are never read as HTML.
function make(tag, options = {}, ...children) {
  const { style, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const percent = (value) => (value === null || value === undefined ? "" : `${(100 * value).toFixed(value > .9995 ? 0 : 1)}%`);

const counted = (count) => (count === 1 ? "1 picture" : `${count} pictures`);

function paint(values, [height, width], side = SIDE) {
  const canvas = make("canvas", { width: side, height: side });
  const source = bytes(values), context = canvas.getContext("2d"), image = context.createImageData(side, side);
  const at = (position, size) => Math.min(Math.max((position + .5) * size / side - .5, 0), size - 1);
  for (let y = 0; y < side; y++) {
    const fy = at(y, height), y0 = Math.floor(fy), y1 = Math.min(y0 + 1, height - 1), v = fy - y0;
    for (let x = 0; x < side; x++) {
      const fx = at(x, width), x0 = Math.floor(fx), x1 = Math.min(x0 + 1, width - 1), u = fx - x0;
      const top = source[y0 * width + x0] * (1 - u) + source[y0 * width + x1] * u;
      const bottom = source[y1 * width + x0] * (1 - u) + source[y1 * width + x1] * u;
      const level = Math.round(top * (1 - v) + bottom * v), to = 4 * (y * side + x);
      image.data.set([colors[3 * level], colors[3 * level + 1], colors[3 * level + 2], 255], to);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function frame(picture, map) {
  const [width, height] = picture.size, [x0, y0, x1, y1] = picture.box;
  const box = make("div", { className: "frame", style: { "aspect-ratio": `${width} / ${height}` } });
  if (picture.thumb) box.append(make("img", { src: picture.thumb, loading: "lazy", alt: picture.path }));
  if (!map) return box;
  const all = x0 <= 0 && y0 <= 0 && x1 >= width && y1 >= height;
  const place = { left: `${100 * x0 / width}%`, top: `${100 * y0 / height}%`, width: `${100 * (x1 - x0) / width}%`, height: `${100 * (y1 - y0) / height}%` };
  box.append(make("div", { className: all ? "seen all" : "seen", style: place }, paint(map.values, map.size)));
  if (map.empty) box.append(make("span", { className: "none", textContent: "no positive evidence" }));
  return box;
}

function verdict(picture) {
  const known = picture.correct !== null && picture.correct !== undefined;
  const mark = known ? (picture.correct ? "✓ " : "✗ ") : "";
  const text = `${mark}${picture.class} ${percent(picture.score)}`;
  return make("p", { className: known ? (picture.correct ? "right" : "wrong") : "", textContent: text });
}

function mapsOf(picture) {
  const chosen = byId("method").value;
  return picture.maps.filter((map) => chosen === ALL || map.method === chosen);
}

function card(index, small = false) {
  const picture = data.pictures[index];
  const element = make("button", { type: "button", className: "card" });
  element.dataset.index = index;
  if (picture.maps.length) {
    const maps = small ? mapsOf(picture).slice(0, 1) : mapsOf(picture);
    const views = maps.map((map) => make("div", { className: "view" }, frame(picture, map),
      maps.length > 1 ? make("span", { textContent: caption(picture, map) }) : null));
    element.append(make("div", { className: "views" }, ...views));
  } else {
    element.append(make("div", { className: "broken", textContent: picture.error }));
  }
  if (small) { element.title = picture.path; return element; }
  if (picture.maps.length) element.append(verdict(picture));
  if (picture.correct === false) element.append(make("p", { textContent: `labeled ${picture.label}` }));
  if (picture.error && picture.maps.length) element.append(make("p", { className: "error", textContent: picture.error }));
  element.append(make("p", { className: "path", textContent: picture.path }));
  return element;
}

function caption(picture, map) {
  const other = map.target !== null && map.target !== picture.class ? `: ${map.target} ${percent(map.score)}` : "";
  return map.method + other;
}

function matches(picture) {
  const wanted = byId("status").value, name = byId("class").value, words = byId("search").value.trim().toLowerCase();
  const failed = Boolean(picture.error), score = picture.score;
  if (wanted === "failed" ? !failed : wanted === "right" ? picture.correct !== true : wanted === "wrong" ? picture.correct !== false
    : wanted === "empty" ? !picture.maps.some((map) => map.empty) : false) return false;
  if (name && picture.class !== name && picture.label !== name) return false;
  if (state.pair && !(picture.correct === false && picture.label === state.pair[0] && picture.class === state.pair[1])) return false;
  const least = Number(byId("least").value) / 100, most = Number(byId("most").value) / 100;
  if ((least > 0 || most < 1) && !(score >= least && score <= most)) return false;
  return !words || [picture.path, picture.class, picture.label].some((text) => text && text.toLowerCase().includes(words));
}

function find() {
  state.found = data.pictures.map((_, index) => index).filter((index) => matches(data.pictures[index]));
  const score = (index) => data.pictures[index].score ?? -1, wrong = (index) => (data.pictures[index].correct === false ? 1 : 0);
  const orders = { low: (a, b) => score(a) - score(b), high: (a, b) => score(b) - score(a), wrong: (a, b) => wrong(b) - wrong(a) || score(b) - score(a) };
  const order = orders[byId("sort").value];
  if (order) state.found.sort(order);
  state.page = 0;
  show();
}

function show() {
  for (const view of ["gallery", "pairs", "classes"]) byId(view).hidden = view !== state.view;
  for (const button of document.querySelectorAll("nav button")) button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
  byId("pager").hidden = byId("count").hidden = state.view !== "gallery";
  if (state.view !== "gallery") { (state.view === "pairs" ? showPairs : showClasses)(); return; }
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE)), start = state.page * PAGE;
  const side = byId("method").value === ALL ? Math.min(4, Math.max(1, ...data.pictures.slice(0, 50).map((one) => one.maps.length))) : 1;
  byId("gallery").style.setProperty("--side", side === 1 ? 1 : .65 * side);
  byId("gallery").replaceChildren(...state.found.slice(start, start + PAGE).map((index) => card(index)));
  byId("count").replaceChildren(`${state.found.length} of ${data.pictures.length} pictures`);
  if (state.pair) byId("count").append(` labeled ${state.pair[0]} and taken for ${state.pair[1]} `,
    make("button", { type: "button", id: "unpair", textContent: "show all", onclick: () => { state.pair = null; find(); } }));
  byId("page").textContent = `${state.page + 1} / ${pages}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page + 1 >= pages;
}

function means(maps) {
  const chosen = byId("method").value, names = data.methods.filter((name) => (chosen === ALL || name === chosen) && maps[name]);
  return names.map((name) => make("div", { className: "mean" }, paint(maps[name], [16, 16], 112), make("span", { textContent: `mean, ${name}` })));
}

function tiles(test) {
  const indices = data.pictures.map((_, index) => index).filter((index) => test(data.pictures[index])).slice(0, 8);
  return make("div", { className: "tiles" }, ...indices.map((index) => card(index, true)));
}

function showPairs() {
  const rows = data.pairs.map((pair) => make("div", { className: "row" },
    make("div", { className: "text" }, make("h2", { textContent: `${pair.label} → ${pair.predicted}` }),
      make("p", { textContent: `${counted(pair.count)} labeled ${pair.label} and taken for ${pair.predicted}` }),
      make("button", { type: "button", textContent: "show them", onclick: () => { state.pair = [pair.label, pair.predicted]; state.view = "gallery"; find(); } })),
    ...means(pair.maps), tiles((one) => one.correct === false && one.label === pair.label && one.class === pair.predicted)));
  byId("pairs").replaceChildren(...(rows.length ? rows : [make("p", { textContent: "No picture with a label that the model knows is predicted wrong." })]));
}

function showClasses() {
  byId("classes").replaceChildren(...data.classes.map((one) => make("div", { className: "row" },
    make("div", { className: "text" }, make("h2", { textContent: one.name }), make("p", { textContent: `predicted for ${counted(one.count)}` }),
      one.labeled ? make("p", { textContent: `${percent(one.right / one.labeled)} of ${one.labeled} with this label are right` }) : null,
      make("button", { type: "button", textContent: "show them", onclick: () => { byId("class").value = one.name; state.view = "gallery"; find(); } })),
    ...means(one.maps), tiles((picture) => picture.class === one.name))));
}

function open(index) {
  const picture = data.pictures[index], dialog = byId("detail");
  state.open = index;
  const close = make("button", { type: "button", className: "close", textContent: "close", onclick: () => dialog.close() });
  const parts = [close, make("h2", { textContent: picture.path })];
  if (picture.error) parts.push(make("p", { className: "error", textContent: picture.error }));
  if (picture.maps.length) {
    parts.push(verdict(picture));
    if (picture.label !== null) parts.push(make("p", { textContent: `label: ${picture.label}` }));
    const views = picture.maps.map((map) => make("div", { className: "view" }, frame(picture, map),
      make("span", { textContent: `${map.method}, ${map.layer}${map.target === null ? "" : `, for ${map.target} ${percent(map.score)}`}` })));
    parts.push(make("div", { className: "views" }, make("div", { className: "view" }, frame(picture, null), make("span", { textContent: `${picture.size[0]} × ${picture.size[1]}` })), ...views));
    const rows = picture.top.map(([name, score]) => make("tr", {}, make("td", { textContent: name }), make("td", { textContent: percent(score) }),
      make("td", { className: "bar" }, make("i", { style: { width: `${100 * score}%` } }))));
    parts.push(make("table", {}, make("tbody", {}, ...rows)));
  }
  dialog.replaceChildren(...parts);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  if (byId("detail").open) {
    const next = state.found.indexOf(state.open) + by;
    if (next >= 0 && next < state.found.length) open(state.found[next]);
  } else if (state.view === "gallery") {
    const pages = Math.ceil(state.found.length / PAGE), page = state.page + by;
    if (page >= 0 && page < pages) { state.page = page; show(); scrollTo(0, 0); }
  }
}

function setOpacity() {
  document.documentElement.style.setProperty("--opacity", byId("opacity").value / 100);
  byId("opacity-value").textContent = `${byId("opacity").value}%`;
}

for (const name of data.methods) byId("method").append(make("option", { value: name, textContent: name }));
if (data.methods.length > 1) byId("method").append(make("option", { value: ALL, textContent: "side by side" }));
const names = new Set(data.pictures.flatMap((one) => [one.class, one.label]).filter((name) => name));
for (const name of [...names].sort()) byId("class").append(make("option", { value: name, textContent: name }));
for (const id of ["search", "status", "class", "sort", "least", "most"]) byId(id).addEventListener("input", find);
for (const id of ["least", "most"]) byId(id).addEventListener("input", () => { byId(`${id}-value`).textContent = `${byId(id).value}%`; });
byId("method").addEventListener("input", show);
byId("opacity").addEventListener("input", setOpacity);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => { state.view = button.dataset.view; show(); });
document.addEventListener("click", (event) => { const found = event.target.closest(".card"); if (found) open(Number(found.dataset.index)); });
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select") && event.key !== "Escape";
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "Escape" && event.target.matches("input")) event.target.blur();
  else if (event.key === "h") { byId("opacity").value = Number(byId("opacity").value) ? 0 : 50; setOpacity(); }
});
setOpacity();
find();
