// The address of the current view, and tables and pictures to download.
const SHARED = { method: "method", colors: "colors", search: "search", status: "status", predicted: "predicted", label: "label", least: "least", most: "most", sort: "sort" };
const first = {};

function hashOf() {
  const parts = new URLSearchParams();
  if (state.view !== "gallery") parts.set("view", state.view);
  for (const [key, id] of Object.entries(SHARED)) if (byId(id).value !== first[id]) parts.set(key, byId(id).value === ALL ? "*" : byId(id).value);
  if (byId("whole").checked) parts.set("whole", "1");
  if (byId("detail").open) parts.set("picture", data.pictures[state.open].path);
  return String(parts);
}

function writeHash() {
  const hash = hashOf();
  try { history.replaceState(null, "", hash ? `#${hash}` : location.href.split("#")[0]); } catch { /* a page in a frame may not change its address */ }
}

// Show the view that the address describes; settings with unknown values get their first value.
function readHash() {
  const wanted = new URLSearchParams(location.hash.slice(1)), view = wanted.get("view"), path = wanted.get("picture");
  for (const [key, id] of Object.entries(SHARED)) {
    const value = wanted.get(key) === "*" ? ALL : wanted.get(key) ?? first[id];
    byId(id).value = value;
    if (byId(id).value !== value) byId(id).value = first[id];
  }
  byId("whole").checked = wanted.get("whole") === "1";
  state.view = document.querySelector(`nav [data-view="${CSS.escape(view ?? "gallery")}"]`) ? view ?? "gallery" : "gallery";
  setColors();
  showNumbers();
  if (byId("detail").open) byId("detail").close();
  find();
  const index = path === null ? -1 : data.pictures.findIndex((one) => one.path === path);
  if (index < 0) return;
  state.list = state.found.includes(index) ? state.found : [index];
  open(index);
}

let silence = 0;
function say(text) {
  for (const place of document.querySelectorAll(".said")) place.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => say(""), 6000);
}

async function copyLink() {
  writeHash();
  try {
    await navigator.clipboard.writeText(location.href);
    say("Link copied.");
  } catch {
    say("The browser does not allow this page to copy. The link is the address of this page.");
  }
}

function save(blob, filename) {
  const link = make("a", { href: URL.createObjectURL(blob), download: filename });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Put an apostrophe before text that a spreadsheet would evaluate as a formula.
const cell = (value) => {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function tableOf(found) {
  const lines = [["path", "label", "predicted", "score", "correct", "method", "target", "target_score", "is_empty", "error"]];
  for (const one of found.map((index) => data.pictures[index])) {
    for (const map of one.maps.length ? one.maps : [{}]) {
      lines.push([one.path, one.label, one.class, one.score, one.correct, map.method, map.target, map.score, map.empty, one.error]);
    }
  }
  return lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
}

// Save the picture with its heatmap as displayed, at least 512 pixels wide.
function savePng() {
  const picture = data.pictures[state.open], map = mapAt(picture, state.tab), [left, top, right, bottom] = viewOf(picture);
  const image = document.querySelector("#stage .frame img"), heat = document.querySelector("#stage .frame canvas");
  const scale = Math.max(512 / (right - left), image?.naturalWidth ? image.naturalWidth / picture.size[0] : 0);
  const canvas = make("canvas", { width: Math.round((right - left) * scale), height: Math.round((bottom - top) * scale) }), context = canvas.getContext("2d");
  const [w, h] = picture.size, [x0, y0, x1, y1] = picture.box, at = (a, b, c, d) => [(a - left) * scale, (b - top) * scale, (c - a) * scale, (d - b) * scale];
  if (image?.naturalWidth) context.drawImage(image, ...at(0, 0, w, h));
  context.globalAlpha = byId("opacity").value / 100;
  if (map && heat) context.drawImage(heat, ...at(x0, y0, x1, y1));
  try {
    canvas.toBlob((blob) => save(blob, `${picture.path.split("/").pop()}.${map ? map.method : "picture"}.png`));
  } catch {
    say("The browser does not allow this page to read pictures in its folder. Open the heatmap in full size instead.");
  }
}
