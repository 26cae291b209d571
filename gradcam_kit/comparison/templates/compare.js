"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const panels = [...document.querySelectorAll("main > *")];
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// The values of a heatmap, 0 to 255, read from its gray picture once it is needed.
const known = new WeakMap();
async function valuesOf(image) {
  if (known.has(image)) return known.get(image);
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data, values = new Uint8Array(pixels.length / 4);
  for (let place = 0; place < values.length; place++) values[place] = pixels[4 * place];
  const found = { values, width: canvas.width, height: canvas.height };
  known.set(image, found);
  return found;
}

function fill(canvas, { width, height }, colorOf) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let place = 0; place < width * height; place++) image.data.set(colorOf(place), 4 * place);
  context.putImageData(image, 0, 0);
}

let palette = [];
function setColors() {
  const colors = bytes(new Map(data.colors).get(byId("colors").value)), stops = [];
  palette = Array.from({ length: 256 }, (_, level) => [...colors.subarray(3 * level, 3 * level + 3), 255]);
  for (let level = 0; level < 256; level += 15) stops.push(`rgb(${palette[level].slice(0, 3)})`);
  document.documentElement.style.setProperty("--legend", `linear-gradient(90deg, ${stops})`);
}

async function paint(panel) {
  for (const image of panel.querySelectorAll(".map")) {
    const canvas = image.nextElementSibling, map = await valuesOf(image);
    fill(canvas, map, (place) => palette[map.values[place]]);
    canvas.hidden = false;
  }
  await compare(panel);
}

// How far two heatmaps differ, and how alike they are.
function measured(a, b) {
  const n = a.length, mean = (values) => values.reduce((sum, value) => sum + value, 0) / n, [meanA, meanB] = [mean(a), mean(b)];
  let apart = 0, most = 0, shared = 0, ownA = 0, ownB = 0;
  for (let place = 0; place < n; place++) {
    const [x, y] = [a[place] - meanA, b[place] - meanB];
    const by = Math.abs(a[place] - b[place]);
    apart += by; most = Math.max(most, by); shared += x * y; ownA += x * x; ownB += y * y;
  }
  return { apart: apart / n / 255, most, correlation: ownA && ownB ? shared / Math.sqrt(ownA * ownB) : null };
}

async function compare(panel) {
  const figure = panel.querySelector(".difference"), one = byId("first")?.value ?? "";
  figure.hidden = one === "";
  if (figure.hidden) return;
  const images = panel.querySelectorAll(".map"), names = byId("second").options, two = byId("second").value;
  const [a, b] = [await valuesOf(images[one]), await valuesOf(images[two])], canvas = figure.querySelector("canvas");
  if (byId("first").value !== one || byId("second").value !== two) return;  // asked for others meanwhile
  const { apart, most, correlation } = measured(a.values, b.values), title = `${names[one].text} minus ${names[two].text}`;
  fill(canvas, a, (place) => {
    const by = a.values[place] - b.values[place], strength = most ? 240 * Math.abs(by) / most : 0;
    return by > 0 ? [214, 39, 40, strength] : [31, 90, 200, strength];
  });
  canvas.setAttribute("aria-label", title);
  const lines = [`mean absolute difference ${apart.toFixed(3)}, largest ${(most / 255).toFixed(2)}`, correlation === null ? "no correlation: a map is constant" : `correlation ${correlation.toFixed(3)}`];
  figure.querySelector("figcaption").replaceChildren(title, ...lines.map((textContent) => Object.assign(document.createElement("small"), { textContent })));
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) { near.unobserve(target); paint(target); }
}, { rootMargin: "600px" });
function repaint() {
  setColors();
  for (const panel of panels) { near.unobserve(panel); near.observe(panel); }
}
function setOpacity(value) {
  byId("opacity").value = value;
  document.documentElement.style.setProperty("--opacity", value);
}
byId("colors").addEventListener("input", repaint);
byId("opacity").addEventListener("input", () => setOpacity(byId("opacity").value));
for (const id of ["first", "second"]) byId(id)?.addEventListener("input", repaint);
document.querySelectorAll(".measured").forEach(sortable);
addEventListener("beforeprint", () => panels.forEach(paint));
document.addEventListener("keydown", (event) => {
  if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "h") setOpacity(Number(byId("opacity").value) > 0 ? 0 : .5);
  if (event.key === "d" && byId("first")) { byId("first").value = byId("first").value === "" ? "0" : ""; repaint(); }
});
repaint();
