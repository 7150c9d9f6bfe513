// The risk explorer in the browser. Python has measured, interpolated and named everything in `content`
// (content.py); here it is looked up and drawn. Every text from data is set as text, never as HTML.

const MAX_SHOWN = 240; // characters of a text that are shown at once
const KEYED = ["button", "input", "select", "summary"];
const PAUSE = 60; // milliseconds
const FRAME = 110; // milliseconds per step of the play button

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  if (KEYED.includes(tag)) element.dataset.lmSuppressShortcuts = "true"; // otherwise JupyterLab takes the arrow keys
  element.append(...children.filter((child) => child != null));
  return element;
}

const number = (value) => (value == null ? "–" : value.toFixed(2).replace(/^-/, "−"));
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const interval = ([, low, high]) => (low == null ? "" : `[${number(low)},\u00a0${number(high)}]`);
const excludesZero = ([, low, high]) => low != null && (low > 0 || high < 0);
const nearest = (values, wanted) =>
  values.reduce((best, value, place) =>
    Math.abs(Math.log(value / wanted)) < Math.abs(Math.log(values[best] / wanted)) ? place : best, 0);

const SILENT = { type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false };
const axis = (text, more = {}) => ({ title: { text, font: { size: 12 } }, ...more });
// A dashed line at x, over the whole height of a panel.
const markAt = (x, nth = "") => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, xref: `x${nth}`, yref: `y${nth} domain`, line: { color: "#444444", dash: "dash", width: 1.5 } });

// The outline of [value, low, high], along the known low ends and back along the high ones.
function band(along, [, low, high], fillcolor) {
  const known = along.map((_, place) => place).filter((place) => low[place] != null), back = known.toReversed();
  const at = (values) => (place) => values[place];
  return { ...SILENT, x: [...known, ...back].map(at(along)), y: [...known.map(at(low)), ...back.map(at(high))], fill: "toself", fillcolor, line: { width: 0 }, opacity: 0.15 };
}

function foldedText(text) {
  if (text.length <= MAX_SHOWN) return make("bdi", {}, text);
  return make("details", {}, make("summary", {}, make("bdi", {}, text.slice(0, MAX_SHOWN) + "…")), make("bdi", {}, text));
}

// The view as the part of an address after #, and back; what does not fit the run is ignored.
function viewText(view) {
  return new URLSearchParams(Object.entries(view).filter(([, value]) => value != null && value !== false)).toString();
}

function readView(text, content) {
  const found = new URLSearchParams(text), view = {};
  const known = content.groups.map((group) => group.key);
  for (const name of ["alpha", "trained"])
    if (Number(found.get(name)) > 0 && Number(found.get(name)) <= 1) view[name] = Number(found.get(name));
  if (Object.hasOwn(content.rankings, found.get("ranking"))) view.ranking = found.get("ranking");
  const methods = (found.get("methods") ?? "").split(",").filter((key) => known.includes(key));
  if (methods.length) view.methods = methods;
  if (known.includes(found.get("anchor"))) view.anchor = found.get("anchor");
  view.stacked = found.get("stacked") === "true";
  return view;
}

// ask(alpha): requests fresh completions, which come back through the returned function `answer`; null without a policy.
// share(view): the text that restores a view.
function explore(root, content, { ask = null, share, moved = () => {} }) {
  const view = { ...content.view };
  const parts = {};
  const fresh = new Map(), asked = new Set(); // by trained alpha
  let playing = null, waiting = null, error = null;
  const every = [...content.groups.flatMap((group) => group.slots), ...Object.values(content.methods)];
  const top = 1.06 * Math.max(...every.flatMap(({ counts }) => counts)); // one scale for whatever is chosen

  // What the view selects

  const alphaPlace = () => Math.min(content.measured.length, Math.max(1, Math.round(100 * view.alpha))) - 1;
  const slotOf = (group) => group.slots[group.slots.length > 1 ? nearest(group.slots.map((s) => s.alpha), view.trained) : 0];
  const chosen = () => content.groups.filter((group) => view.methods.includes(group.key));
  const anchorGroup = () => chosen().find((group) => group.key === view.anchor) ?? chosen()[0];
  const byReward = () => view.ranking === "reward";
  const tailAt = (slot) => {
    const { own, difference } = slot[view.ranking], here = (values) => values[alphaPlace()];
    return { own: own.map(here), difference: difference?.map(here) };
  };

  // Figures

  // By reward the tail fills the bins from the left; by prompt score Python has counted it.
  function insideCounts(slot, place) {
    if (!byReward()) return content.methods[slot.source].inside[place];
    let left = content.kept[place];
    return slot.counts.map((count) => {
      const taken = Math.min(left, count);
      left -= taken;
      return taken;
    });
  }

  // Four traces per method: its tail filled, its outline, VaR and tail mean. By prompt score there is no VaR of the rewards.
  function distributionTraces(slot) {
    const place = alphaPlace(), { own } = tailAt(slot), { color } = slot;
    const whole = byReward() ? slot.counts : content.methods[slot.source].counts;
    const x = [content.edges[0], ...content.edges], shape = "hv";
    const upright = (at, name, line) => ({ ...SILENT, x: at == null ? [] : [at, at], y: at == null ? [] : [0, top], name, line: { color, ...line } });
    return [
      { ...SILENT, x, y: [0, ...insideCounts(slot, place), 0], name: "tail", fill: "tozeroy", fillcolor: slot.faint, line: { width: 0, shape } },
      { type: "scatter", mode: "lines", x, y: [0, ...whole, 0], name: slot.name, line: { color, width: 2, shape } },
      upright(byReward() ? slot.var[place] : null, "VaR", { width: 2 }),
      upright(own[0], "tail mean", { width: 2.5, dash: "dot" }),
    ];
  }

  // Three per method: its band, its line, and a dot at the measured alpha.
  function curveTraces(slot) {
    const { own } = slot[view.ranking], { color } = slot, percent = content.measured.map((alpha) => 100 * alpha);
    return [
      band(percent, own, color),
      { type: "scatter", mode: "lines", x: percent, y: own[0], name: slot.name, line: { color, dash: slot.dash, width: 2.5 } },
      { ...SILENT, mode: "markers", x: [percent[alphaPlace()]], y: [own[0][alphaPlace()]], marker: { color, size: 10 } },
    ];
  }

  // The traces of one kind, of all methods, lie below those of the next.
  const layered = (traces) => traces[0].flatMap((_, kind) => traces.map((own) => own[kind]));

  const layoutOf = (more) => ({ template: content.template, font: { size: 12 }, showlegend: false, margin: { l: 52, r: 12, t: 12, b: 44 }, ...more });

  const height = (wide) => (root.classList.contains("narrow") ? 0.8 * wide : wide);

  function drawDistributions(slots) {
    const layers = view.stacked ? slots.map((slot) => [slot]) : [slots];
    while (parts.distributions.children.length > layers.length) parts.distributions.lastChild.remove();
    while (parts.distributions.children.length < layers.length) parts.distributions.append(make("div", { class: "figure" }));
    const axes = { xaxis: axis("reward (logit)", { range: [content.edges[0], content.edges.at(-1)] }), yaxis: axis("episodes (count)", { range: [0, top] }) };
    layers.forEach((layer, place) => {
      const title = { title: { text: layer[0].name, font: { size: 13 }, x: 0.5, xanchor: "center", y: 0.97 }, margin: { l: 52, r: 12, t: 26, b: 44 } };
      const layout = layoutOf({ ...axes, ...(view.stacked ? title : {}) });
      draw(parts.distributions.children[place], layered(layer.map(distributionTraces)), layout, view.stacked ? 175 : height(305));
    });
  }

  function drawCurve(slots) {
    const xaxis = axis("measured α: lowest share (%)", { type: "log", tickvals: [1, 2, 5, 10, 20, 50, 100], range: [-0.03, 2.03] });
    const layout = layoutOf({ xaxis, yaxis: axis("tail mean (logit)"), shapes: [markAt(100 * content.measured[alphaPlace()])] });
    draw(parts.curve, layered(slots.map(curveTraces)), layout, height(265));
  }

  // The figure that Python has made, with the trained alpha marked in every panel.
  function drawPrice() {
    if (!content.price) return;
    const { data, layout } = content.price;
    const marks = ["", 2, 3].map((nth) => markAt(view.trained, nth));
    draw(parts.price, data, { ...layout, shapes: [...layout.shapes, ...marks] }, layout.height);
  }

  // Numbers and texts

  function numberCell({ own, difference }) {
    const note = !difference ? "" : `${signed(difference[0])} ${interval(difference)}${excludesZero(difference) ? "\u00a0*" : ""}`;
    return make("td", {}, make("b", {}, number(own[0])), " ", make("small", {}, interval(own)), make("small", { class: "difference" }, note));
  }

  function writeNumbers(slots) {
    const percent = Math.round(100 * content.measured[alphaPlace()]);
    const tail = byReward() ? `CVaR ${percent} %` : `reward, hardest ${percent} %`;
    const head = ["", tail, "mean reward", "KL (nats)"].map((name) => make("th", {}, name));
    const rows = slots.map((slot) => {
      const value = byReward() ? `VaR ${number(slot.var[alphaPlace()])}` : "";
      return make("tr", {}, make("th", { scope: "row" }, make("i", { class: "swatch", style: `background:${slot.color}` }), slot.label, make("small", {}, value)),
        numberCell(tailAt(slot)), numberCell(slot.mean), numberCell(slot.kl));
    });
    const under = content.baseline ? `Second line: difference from ${content.baseline.name}, paired; *: its interval excludes 0. ` : "";
    parts.numbers.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)),
      make("p", { class: "note" }, `${under}In brackets: 95 % intervals over prompts.`));
  }

  function writeTexts(slots) {
    const anchor = slotOf(anchorGroup()), place = alphaPlace(), kept = content.kept[place];
    const rows = content.methods[anchor.source].rows[view.ranking][place];
    parts.anchor.replaceChildren(...chosen().map((group) => make("option", { value: group.key, selected: group === anchorGroup() }, slotOf(group).label)));
    parts.lead.textContent = `${rows.length} of the ${kept} episodes in it, from the lowest to the boundary. A filled square: the completion is in its own method's tail.`;
    parts.texts.replaceChildren(...rows.map((row) => {
      const [prompt, score] = content.prompts[row];
      return make("article", {}, make("p", { class: "prompt" }, make("small", {}, signed(score)), " ", foldedText(prompt)),
        ...slots.map((slot) => {
          const [text, reward, ...ranks] = content.methods[slot.source].completions[row];
          const inTail = ranks[Object.keys(content.rankings).indexOf(view.ranking)] < kept;
          const style = inTail ? `background:${slot.color}` : `box-shadow:inset 0 0 0 1.5px ${slot.color}`;
          const swatch = make("i", { class: "swatch", role: "img", "aria-label": inTail ? "in its tail" : "not in its tail", style });
          return make("p", {}, swatch, make("small", {}, slot.label), " ", make("b", {}, signed(reward)), " ", foldedText(text));
        }));
    }));
  }

  const compared = () => [1, view.trained, content.columns.alphas[0]];

  // The same prompts at three alphas: fresh from the policy if there is one, otherwise of the nearest evaluated alpha.
  function writeColumns() {
    if (!content.columns) return;
    const { prompts, alphas, completions } = content.columns;
    const found = compared().map((alpha) => {
      const near = nearest(alphas, alpha);
      if (fresh.has(alpha)) return { alpha, cells: fresh.get(alpha), note: "sampled now" };
      return { alpha: alphas[near], cells: completions[near], note: "from the evaluation" };
    });
    const head = make("tr", {}, make("th", {}, "prompt"), ...found.map(({ alpha, note }) => make("th", {}, `trained α = ${alpha.toFixed(2)}`, make("small", {}, note))));
    const rows = prompts.map(([prompt, score], row) => make("tr", {}, make("td", {}, make("b", {}, signed(score)), " ", foldedText(prompt)),
      ...found.map(({ cells }) => make("td", {}, make("b", {}, cells[row][1] == null ? "" : signed(cells[row][1])), " ", foldedText(cells[row][0])))));
    const note = error == null ? [] : [make("p", { role: "alert" }, error)];
    parts.columns.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)), ...note);
    parts.columns.classList.toggle("waiting", asked.size > 0);
  }

  // Controls

  function slider(name, attributes, read, write, released = () => {}) {
    const input = make("input", { type: "range", "aria-label": name, ...attributes,
      oninput: () => { stop(); write(Number(input.value)); update(); }, onchange: () => { released(); moved(view); } });
    const output = make("output", {});
    parts[name] = () => { input.value = read(); output.textContent = input.ariaValueText = shownAlpha(name); };
    return make("label", { class: "slider" }, make("span", {}, name), input, output);
  }

  const shownAlpha = (name) => (name === "measured α" ? content.measured[alphaPlace()] : view.trained).toFixed(2);

  function measuredSlider() {
    return slider("measured α", { min: 1, max: content.measured.length, step: 1 }, () => alphaPlace() + 1, (value) => { view.alpha = content.measured[value - 1]; });
  }

  function trainedSlider() {
    return slider("trained α", { min: 0, max: content.trained.length - 1, step: 1 },
      () => nearest(content.trained, view.trained), (value) => { view.trained = content.trained[value]; }, request);
  }

  function stop() {
    if (playing == null) return;
    clearInterval(playing);
    playing = null;
    parts.play.textContent = "▶ play";
    request();
    moved(view);
  }

  // From 1 down to the smallest alpha of the first slider.
  function play() {
    if (playing != null) return stop();
    const [name, values] = content.continuous ? ["trained", content.trained] : ["alpha", content.measured];
    let place = values.length - 1;
    parts.play.textContent = "❚❚ stop";
    playing = setInterval(() => {
      view[name] = values[place];
      update();
      if (place-- === 0) stop();
    }, FRAME);
  }

  function request() {
    if (!ask) return;
    for (const alpha of compared().filter((alpha) => !fresh.has(alpha) && !asked.has(alpha))) {
      asked.add(alpha);
      ask(alpha);
    }
    writeColumns();
  }

  function answer(found) {
    asked.delete(found.alpha);
    error = found.error ?? null;
    if (found.completions) fresh.set(found.alpha, found.completions);
    writeColumns();
  }

  const toggle = (name, pressed, onclick, swatch = null) => make("button", { type: "button", "aria-pressed": String(pressed), onclick }, swatch, name);

  function writeChips() {
    const focused = [...parts.chips.children].indexOf(document.activeElement);
    parts.chips.replaceChildren(...content.groups.map((group) => toggle(group.name, view.methods.includes(group.key), () => {
      const others = view.methods.filter((key) => key !== group.key);
      if (others.length === view.methods.length) others.push(group.key);
      if (others.length) view.methods = others; // the last one stays
      change();
    }, make("i", { class: "swatch" })))); // its colour comes with `update`
    if (focused >= 0) parts.chips.children[focused].focus();
  }

  function writeOptions() {
    const focused = [...parts.options.children].indexOf(document.activeElement);
    parts.options.replaceChildren(
      ...Object.entries(content.rankings).map(([key, name]) => toggle(`tail by ${name}`, view.ranking === key, () => { view.ranking = key; change(); })),
      toggle("stacked", view.stacked, () => { view.stacked = !view.stacked; change(); }),
      make("button", { type: "button", onclick: showLink }, "share"));
    if (focused >= 0) parts.options.children[focused].focus();
  }

  function showLink() {
    parts.link.textContent = share(view);
    navigator.clipboard?.writeText(parts.link.textContent).catch(() => {}); // the text can be copied by hand
  }

  function update() {
    root.classList.toggle("dark", isDark());
    const slots = chosen().map(slotOf);
    parts["measured α"]();
    parts["trained α"]?.();
    [...parts.chips.children].forEach((chip, place) => { chip.firstChild.style.background = slotOf(content.groups[place]).color; });
    drawDistributions(slots);
    drawCurve(slots);
    clearTimeout(waiting);
    waiting = setTimeout(drawPrice, PAUSE); // it is below the first screen and slow to draw: once the slider rests
    writeNumbers(slots);
    writeTexts(slots);
    writeColumns();
  }

  function change() {
    parts.link.textContent = "";
    writeChips();
    writeOptions();
    update();
    moved(view);
  }

  // A theme makes its text light on dark, whatever the front end calls it.
  function isDark() {
    const [red, green, blue] = getComputedStyle(root).color.match(/[\d.]+/g).map(Number);
    return red + green + blue > 382;
  }

  parts.chips = make("div", { class: "chips", role: "group", "aria-label": "methods" });
  parts.options = make("div", { class: "chips", role: "group", "aria-label": "view" });
  parts.play = make("button", { type: "button", class: "play", onclick: play }, "▶ play");
  parts.link = make("code", { class: "link" });
  parts.distributions = make("div", { class: "distributions" });
  parts.curve = make("div", { class: "figure" });
  parts.numbers = make("div", { class: "numbers" });
  parts.anchor = make("select", { "aria-label": "texts of", onchange: () => { view.anchor = parts.anchor.value; change(); } });
  parts.lead = make("span", { class: "note" });
  parts.texts = make("div", { class: "texts", tabindex: 0, "aria-label": "texts of the tail" });
  parts.price = make("div", { class: "figure" });
  parts.columns = make("div", { class: "columns" });
  const sliders = content.trained.length ? [measuredSlider(), trainedSlider()] : [measuredSlider()];
  if (content.continuous) sliders.reverse();
  sliders[0].append(parts.play);
  root.replaceChildren(
    make("div", { class: "controls" }, ...sliders, make("div", { class: "row" }, parts.chips, parts.options), parts.link),
    make("div", { class: "screen" },
      make("section", {}, make("div", {}, make("h3", {}, "Rewards: tail filled, VaR solid, tail mean dotted"), parts.distributions),
        make("div", { class: "later" }, make("h3", {}, "The tail mean at every α, with its 95 % band"), parts.curve)),
      make("section", {}, parts.numbers, make("div", { class: "later" }, make("h3", {}, "The tail of ", parts.anchor), parts.lead, parts.texts))),
    ...(content.columns ? [make("section", {}, make("h3", {}, "The same prompts, one policy, three α"), parts.columns)] : []),
    ...(content.price ? [make("section", {}, make("h3", {}, "The chosen trained α (dashed) among the others"), parts.price)] : []));
  root.classList.add("rarlhf-explorer");
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (root.clientWidth === width) return; // a text was unfolded
    width = root.clientWidth;
    root.classList.toggle("narrow", width < 700);
    if (width) update();
  });
  resized.observe(root);
  const theme = window.matchMedia("(prefers-color-scheme: dark)");
  theme.addEventListener("change", update);
  const end = () => {
    stop();
    clearTimeout(waiting);
    resized.disconnect();
    theme.removeEventListener("change", update);
  };
  writeChips();
  writeOptions();
  request();
  return { answer, end, restore: (changes) => { Object.assign(view, changes); change(); } };
}

// The view as arguments of `risk_explorer`.
function pythonArguments(view) {
  return Object.entries(view).filter(([, value]) => value != null && value !== false)
    .map(([name, value]) => `${name}=${value === true ? "True" : JSON.stringify(value)}`).join(", ");
}

// In a notebook the completions come from its kernel.
async function render({ model, el }) {
  await loadPlotly(model);
  const mail = await part(model, "mail");
  const ask = model.get("live") ? (alpha) => model.send({ alpha }) : null;
  const { answer, end } = explore(el, model.get("content"), { ask, share: pythonArguments });
  mail.on("msg:custom", answer);
  return () => {
    mail.off("msg:custom", answer);
    end();
  };
}

// As a page of its own, the address holds the view.
function openPage() {
  const content = JSON.parse(document.getElementById("content").textContent);
  const written = () => readView(location.hash.slice(1), content);
  const share = (view) => location.href.split("#")[0] + "#" + viewText(view);
  const moved = (view) => history.replaceState(null, "", "#" + viewText(view));
  Object.assign(content.view, written());
  const { restore } = explore(document.querySelector("main"), content, { share, moved });
  window.addEventListener("hashchange", () => restore(written()));
}

export default { render, openPage };
