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
    const width = `${100 * Math.min(1, ratioOf(picture))}%`;
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
  showChips();
  state.page = 0;
  show();
}

const PLAIN = { search: "", status: "all", predicted: "", label: "", least: "0", most: "100" };

// Set the named filters, reset all other filters, and show the pictures that match.
function filter(wanted = {}) {
  for (const [id, value] of Object.entries({ ...PLAIN, ...wanted })) byId(id).value = value;
  showNumbers();
  state.view = "gallery";
  find();
}

// Show a chip for each active filter; a click on the chip resets the filter.
function showChips() {
  const said = { search: (value) => `search: ${value.trim()}`, status: (value) => byId("status").selectedOptions[0]?.text ?? value, predicted: (value) => `predicted: ${value}`,
    label: (value) => `labeled: ${value}`, least: (value) => `at least ${value}% confident`, most: (value) => `at most ${value}% confident` };
  const active = Object.keys(PLAIN).filter((id) => byId(id).value.trim() !== PLAIN[id]);
  byId("chips").replaceChildren(...active.map((id) => make("button", { type: "button", className: "chip", title: "remove this filter",
    onclick: () => { byId(id).value = PLAIN[id]; showNumbers(); find(); } }, name(said[id](byId(id).value)), make("span", { textContent: " ×" }))));
  byId("clear").hidden = !active.length;
}

function show() {
  for (const view of ["gallery", "pairs", "classes"]) byId(view).hidden = view !== state.view;
  for (const one of document.querySelectorAll("nav [data-view]")) one.setAttribute("aria-pressed", String(one.dataset.view === state.view));
  byId("pager").hidden = byId("count").hidden = byId("filters").hidden = state.view !== "gallery";
  writeHash();
  if (state.view !== "gallery") { byId(state.view).replaceChildren(...(state.view === "pairs" ? pairRows() : [histogram(), ...classRows()].filter(Boolean))); return; }
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

