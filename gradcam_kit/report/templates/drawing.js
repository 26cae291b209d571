"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 60, SIDE = 96, TILES = 8, ALL = "\u0000all";
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const state = { view: "gallery", page: 0, found: [], list: [], open: -1, opacity: 50, tab: 0, against: "off" };
const classNames = [...new Set(data.pictures.flatMap((one) => one.class ?? []))].sort();
const labelNames = [...new Set(data.pictures.flatMap((one) => one.label ?? []))].sort();
const mapsOfMethod = Math.max(1, (data.pictures.find((one) => one.maps.length)?.maps.length ?? 0) / data.methods.length);
const isJudged = data.pictures.some((one) => typeof one.correct === "boolean");

// Make an element with text; all texts are made with this function, so that names are never read as HTML.
function make(tag, options = {}, ...children) {
  const { style, role, label, ...rest } = options;
  const element = Object.assign(document.createElement(tag), rest);
  if (role) element.setAttribute("role", role);
  if (label) element.setAttribute("aria-label", label);
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const option = (text, value = text) => make("option", { value, textContent: text });
const button = (text, onclick) => make("button", { type: "button", textContent: text, onclick });
const name = (text) => make("bdi", { textContent: text });  // isolated, so that a right-to-left name does not reorder the text around it
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

function paintAll() {
  for (const canvas of document.querySelectorAll("canvas")) if (unpainted.has(canvas)) { watcher.unobserve(canvas); paint(canvas, ...unpainted.get(canvas)); }
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
  const colors = bytes(new Map(data.colors).get(byId("colors").value)), rgba = new Uint8Array(1024).fill(255), stops = [];
  for (let level = 0; level < 256; level++) rgba.set(colors.subarray(3 * level, 3 * level + 3), 4 * level);
  for (let level = 0; level < 256; level += 15) stops.push(`rgb(${[...colors.subarray(3 * level, 3 * level + 3)]})`);
  document.documentElement.style.setProperty("--legend", `linear-gradient(90deg, ${stops})`);
  palette = new Uint32Array(rgba.buffer);
}

// Return the part of a picture that is shown: the part that the model saw, or the whole picture.
function viewOf(picture) {
  const [w, h] = picture.size, [x0, y0, x1, y1] = picture.box, isWhole = byId("whole").checked || x1 <= x0 || y1 <= y0;
  return isWhole ? [0, 0, w, h] : [x0, y0, x1, y1];
}
const ratioOf = (picture) => { const [x0, y0, x1, y1] = viewOf(picture); return (x1 - x0) / (y1 - y0); };

function frame(picture, map, width, alt, side = SIDE) {
  const [w, h] = picture.size, [x0, y0, x1, y1] = picture.box, [left, top, right, bottom] = viewOf(picture);
  const at = (a, b, c, d) => ({ left: `${100 * (a - left) / (right - left)}%`, top: `${100 * (b - top) / (bottom - top)}%`,
    width: `${100 * (c - a) / (right - left)}%`, height: `${100 * (d - b) / (bottom - top)}%` });
  const box = make("div", { className: "frame", style: { "aspect-ratio": `${right - left} / ${bottom - top}`, width } });
  if (picture.thumb) box.append(make("img", { src: picture.thumb, loading: "lazy", alt, style: at(0, 0, w, h) }));
  if (!map) return box;
  const all = x0 <= left && y0 <= top && x1 >= right && y1 >= bottom;
  const described = alt ? { role: "img", label: `heatmap of ${map.method}` } : {};
  box.append(make("div", { className: all ? "seen all" : "seen", style: at(x0, y0, x1, y1) }, canvasOf(map.values, map.size, side, described)));
  return box;
}

function stage(picture, map, width, alt) {
  const parts = make("div", { className: "stage" }, frame(picture, map, width, alt));
  if (map?.empty) parts.append(make("span", { className: "none", textContent: "no positive evidence" }));
  return parts;
}
