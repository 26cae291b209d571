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

function setWhole() {
  byId("detail-whole").setAttribute("aria-pressed", String(byId("whole").checked));
  if (state.view === "gallery") show(); else writeHash();
  if (byId("detail").open) open(state.open);
}

function showNumbers() {
  for (const id of ["least", "most"]) byId(`${id}-value`).textContent = `${byId(id).value}%`;
}

byId("method").append(...data.methods.map((text) => option(text)), ...(data.methods.length > 1 ? [option("side by side", ALL)] : []));
byId("colors").append(...data.colors.map(([text]) => option(text)));
byId("predicted").append(...classNames.map((text) => option(text)));
byId("label").append(...labelNames.map((text) => option(text)));
byId("label").closest("label").hidden = !labelNames.length;
for (const id of ["least", "most"]) byId(id).closest("label").hidden = !data.percent;
if (!isJudged) for (const one of document.querySelectorAll(".judged")) one.remove();
for (const id of ["search", "status", "predicted", "label", "sort", "least", "most"]) byId(id).addEventListener("input", () => { showNumbers(); find(); });
byId("method").addEventListener("input", show);
byId("colors").addEventListener("input", () => { setColors(); show(); });
byId("whole").addEventListener("input", setWhole);
byId("detail-whole").addEventListener("click", () => { byId("whole").checked = !byId("whole").checked; setWhole(); });
byId("against").addEventListener("input", () => { state.against = byId("against").value; open(state.open); });
byId("tabs").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.stopPropagation();
  turn(Math.max(PLAIN_PICTURE, state.tab + by));
  byId("tabs").querySelector("[aria-selected=true]").focus();
});
byId("detail").addEventListener("close", writeHash);
byId("link").addEventListener("click", copyLink);
byId("csv").addEventListener("click", () => save(new Blob(["\ufeff", tableOf(state.found)], { type: "text/csv" }), "pictures.csv"));
byId("png").addEventListener("click", savePng);
byId("print").addEventListener("click", () => print());
addEventListener("beforeprint", paintAll);
addEventListener("hashchange", readHash);
document.querySelectorAll(".measured").forEach(sortable);
for (const slider of document.querySelectorAll(".opacity")) slider.addEventListener("input", () => setOpacity(Number(slider.value)));
byId("page").addEventListener("change", () => { turnTo(Math.round(byId("page").value) - 1); byId("page").value = state.page + 1; });
for (const [id, by] of [["previous", -1], ["next", 1], ["before", -1], ["after", 1]]) byId(id).addEventListener("click", () => step(by));
for (const one of document.querySelectorAll("nav [data-view]")) one.addEventListener("click", () => { state.view = one.dataset.view; show(); });
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
  else if (event.key === "f") { byId("whole").checked = !byId("whole").checked; setWhole(); }
  else if (isOpen && event.key === "w" && data.pictures[state.open].maps.length) toggleWipe();
  else if (isOpen && /^[0-9]$/.test(event.key)) turn(Number(event.key) - 1);
  else if (event.key === "h") setOpacity(document.documentElement.style.getPropertyValue("--opacity") > 0 ? 0 : state.opacity);
});
const narrow = matchMedia("(max-width: 640px)");
const fold = () => { byId("filters").open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
for (const id of Object.values(SHARED)) first[id] = byId(id).value;
setOpacity(state.opacity);
readHash();
byId("detail-whole").setAttribute("aria-pressed", String(byId("whole").checked));
