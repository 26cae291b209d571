const share = (value) => `${(100 * value).toFixed(value > .9995 ? 0 : 1)}%`;

function mean(maps, text) {
  return chosenMethods().filter((method) => maps?.[method]).map((method) => make("div", { className: "mean" },
    canvasOf(maps[method], [16, 16], SIDE, { role: "img", label: `mean heatmap, ${text}` }), make("span", { textContent: chosenMethods().length > 1 ? `${text}, ${method}` : text })));
}

// Group pictures by class and by pair: the first few of each group, and their number on this page.
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
  if (!data.pairs.length) return [make("p", { textContent: "No picture is predicted as a class other than its label." })];
  const maps = new Map(data.classes.map((one) => [one.name, one.maps]));
  return cut(data.pairs.map((pair) => row([name(pair.label), " → ", name(pair.predicted)], JSON.stringify([pair.label, pair.predicted]), pair.count,
    [`${counted(pair.count)} labeled ${pair.label} and predicted as ${pair.predicted}`],
    [...mean(pair.maps, "mean of these"), ...mean(maps.get(pair.label), `all predicted as ${pair.label}`), ...mean(maps.get(pair.predicted), `all predicted as ${pair.predicted}`)],
    { status: "wrong", label: pair.label, predicted: pair.predicted })), data.counts.pairs, "confusions");
}

// A histogram of the model's confidence, with right and wrong predictions stacked; a click shows the pictures of a bar.
function histogram() {
  const bins = data.confidence, most = Math.max(...bins.map((bin) => bin.right + bin.wrong + bin.other)), step = 100 / bins.length;
  if (!data.percent || !(most > 0)) return null;
  const bars = bins.map((bin, place) => {
    const kinds = ["right", "wrong", "other"].filter((kind) => bin[kind]), from = Math.round(place * step), to = Math.round((place + 1) * step);
    const words = `${from} to ${to}%: ${kinds.map((kind) => `${number(bin[kind])} ${kind === "other" ? "without a known label" : kind}`).join(", ") || "none"}`;
    return make("button", { type: "button", className: "column", title: words, label: words, disabled: !kinds.length, onclick: () => filter({ least: String(from), most: String(to) }) },
      ...kinds.map((kind) => make("i", { className: kind, style: { height: `${100 * bin[kind] / most}%` } })));
  });
  const key = isJudged ? [make("span", { className: "right", textContent: "■ right" }), make("span", { className: "wrong", textContent: "■ wrong" })] : [];
  return make("figure", { className: "histogram" }, make("figcaption", {}, make("strong", { textContent: "How confident is the model?" }), " Pictures by the probability of the predicted class. ", ...key),
    make("div", { className: "columns" }, ...bars), make("div", { className: "axis" }, ...["0%", "50%", "100%"].map((textContent) => make("span", { textContent }))));
}

function bar(parts, words) {
  return make("div", { className: "share", role: "img", label: words }, ...parts.map(([className, part]) => make("i", { className, style: { width: `${100 * part}%` } })));
}

function classRows() {
  const most = Math.max(1, ...data.classes.map((one) => one.count));
  return cut(data.classes.map((one) => row([name(one.name)], one.name, one.count, [
    make("span", {}, `predicted for ${counted(one.count)}`, bar([["other", one.count / most]], `${one.count} of at most ${most}`)),
    ...(one.labeled ? [make("span", {}, `${share(one.right / one.labeled)} of ${number(one.labeled)} with this label are right`,
      bar([["right", one.right / one.labeled], ["wrong", 1 - one.right / one.labeled]], `${one.right} of ${one.labeled} right`))] : [])],
    mean(one.maps, "mean"), { predicted: one.name })), data.counts.classes, "classes");
}
