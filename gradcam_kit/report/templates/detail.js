// The enlarged view of a picture: tabs for its heatmaps, a wipe between two heatmaps, and the predictions of the model.
const PLAIN_PICTURE = -1, BIG = 256;
const mapAt = (picture, place) => (place === PLAIN_PICTURE ? null : picture.maps[Math.min(place, picture.maps.length - 1)]);
const captionAt = (picture, place) => (place === PLAIN_PICTURE ? "picture" : caption(picture, mapAt(picture, place)));
const href = (path) => path.split("/").map(encodeURIComponent).join("/");

function open(index) {
  const picture = data.pictures[index], dialog = byId("detail"), place = state.list.indexOf(index);
  state.open = index;
  byId("detail-place").textContent = `${number(place + 1)} of ${number(state.list.length)}`;
  byId("before").disabled = place <= 0;
  byId("after").disabled = place + 1 >= state.list.length;
  byId("detail-path").textContent = picture.path;
  byId("tools").hidden = !picture.maps.length;
  if (picture.maps.length) showTools(picture);
  byId("stage").replaceChildren(...(picture.maps.length ? bigStage(picture) : [make("p", { className: "broken", textContent: picture.error })]));
  byId("facts").replaceChildren(...facts(picture));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  writeHash();
}

function showTools(picture) {
  const places = [PLAIN_PICTURE, ...picture.maps.keys()], chosen = Math.min(state.tab, picture.maps.length - 1);
  const tab = (place) => make("button", { type: "button", role: "tab", textContent: captionAt(picture, place), onclick: () => turn(place) });
  byId("tabs").replaceChildren(...places.map((place) => {
    const element = tab(place);
    element.setAttribute("aria-selected", String(place === chosen));
    element.setAttribute("aria-controls", "stage");
    return element;
  }));
  byId("against").replaceChildren(option("nothing", "off"), ...places.filter((place) => place !== chosen).map((place) => option(captionAt(picture, place), String(place))));
  byId("against").value = state.against;
  if (byId("against").selectedIndex < 0) byId("against").value = state.against = "off";
}

function bigStage(picture) {
  const width = `min(100%, var(--stage) * ${ratioOf(picture)})`, map = mapAt(picture, state.tab), said = [];
  const one = frame(picture, map, "100%", picture.path, BIG), both = make("div", { className: "wipe", style: { width } }, one);
  const note = (which, text) => which?.empty && said.push(make("p", { className: "notes", textContent: `${text}: no positive evidence, the heatmap is empty` }));
  note(map, captionAt(picture, state.tab));
  if (state.against === "off") return [both, ...said];
  const place = Number(state.against), other = mapAt(picture, place);
  both.append(make("div", { className: "over" }, frame(picture, other, "100%", "", BIG)), make("i", { className: "edge" }));
  const handle = make("input", { type: "range", id: "wipe", min: 0, max: 100, value: 50, label: "how much of each is shown" });
  const move = (value) => { handle.value = value; both.style.setProperty("--wipe", `${value}%`); };
  const follow = (event) => { const { left, width: all } = both.getBoundingClientRect(); move(Math.min(100, Math.max(0, 100 * (event.clientX - left) / all))); };
  handle.addEventListener("input", () => move(handle.value));
  both.addEventListener("pointerdown", (event) => { both.setPointerCapture(event.pointerId); follow(event); });
  both.addEventListener("pointermove", (event) => { if (both.hasPointerCapture(event.pointerId)) follow(event); });
  both.classList.add("two");
  move(50);
  note(other, captionAt(picture, place));
  return [both, make("div", { className: "ends", style: { width } }, make("span", { textContent: captionAt(picture, state.tab) }), handle, make("span", { textContent: captionAt(picture, place) })), ...said];
}

function facts(picture) {
  const parts = [];
  if (picture.maps.length) parts.push(verdict(picture));
  if (picture.label !== null) parts.push(make("p", {}, "labeled ", name(picture.label)));
  if (picture.error && picture.maps.length) parts.push(make("p", { className: "error", textContent: picture.error }));
  if (!picture.maps.length) return parts;
  const rows = picture.top.map(([text, score]) => make("tr", {}, make("td", {}, name(text)), make("td", { className: "bars" },
    make("i", { className: text === picture.label ? "good" : "", style: { width: `${100 * Math.min(1, Math.max(0, score))}%` } })), make("td", { textContent: percent(score) })));
  parts.push(make("h3", { textContent: "Best classes" }), make("table", { label: "best classes" }, make("tbody", {}, ...rows)));
  const map = mapAt(picture, state.tab), [w, h] = picture.size, [x0, y0, x1, y1] = picture.box.map(Math.round), lines = [];
  if (map) lines.push(["Heatmap", `${map.method}${data.layers[map.method] ? `, ${data.layers[map.method]}` : ""}`]);
  if (map && map.target !== null) lines.push(["Explains", `${map.target} ${percent(map.score)}`]);
  lines.push(["Picture", `${w} × ${h}${picture.thumb ? "" : ", without a thumbnail"}`]);
  if (x0 > 0 || y0 > 0 || x1 < w || y1 < h) lines.push(["Model saw", `${x1 - x0} × ${y1 - y0} of it`]);
  parts.push(make("dl", {}, ...lines.flatMap(([term, text]) => [make("dt", { textContent: term }), make("dd", { textContent: text })])));
  if (map?.overlay) parts.push(make("p", {}, make("a", { href: href(map.overlay), target: "_blank", rel: "noreferrer", textContent: "in full size" })));
  return parts;
}

// Show another heatmap of the picture; if it is the one compared with the current heatmap, swap the two.
function turn(place) {
  const picture = data.pictures[state.open];
  if (!picture?.maps.length || place >= picture.maps.length) return;
  if (state.against === String(place)) state.against = state.tab === place ? "off" : String(state.tab);
  state.tab = place;
  open(state.open);
}

// Compare with the next heatmap, or with the picture if there is only one heatmap; stop if a comparison is on.
function toggleWipe() {
  const picture = data.pictures[state.open], next = state.tab + 1 < picture.maps.length ? state.tab + 1 : state.tab === PLAIN_PICTURE ? 0 : PLAIN_PICTURE;
  state.against = state.against === "off" ? String(next) : "off";
  open(state.open);
}
