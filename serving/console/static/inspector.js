// The inspector: asks for a decision, and re-orders in the browser when a weight moves.

import { $, COLOURS, attempt, call, draw, escape, inks, onTheme, short } from "./console.js";
import { contributions, flips, order } from "./ranking.js";

const ROUTES = $("script").dataset;
const MOST_LINES = 40;
let options, decision, samples = [], weights = [], title = "Policy's mean", seed = 0, drawSeed = 0, drawn = [], touched = false, asked = 0;

const colour = (k) => COLOURS[k % COLOURS.length];
const hand = () => decision?.hand_tuned[Number($("compare").value || 0)];
const page = () => Math.max(1, Number($("page").value) || 10);

async function start() {
  options = await call(ROUTES.options);
  fill($("scene"), options.scenes, options.scene);
  fill($("stage"), options.stages, options.stage);
  $("page").value = options.page;
  $("user").value = options.example.user.user_id;
  const { predictions, item_id } = options.example.candidates;
  $("json").value = JSON.stringify({ item_id, predictions: predictions ?? {} }, null, 1);
  $("id-list").value = item_id.join(", ");
  const byCatalogue = options.items > 0 && options.scorer !== null;
  $("how").value = byCatalogue ? "drawn" : options.scorer === null ? "pasted" : "ids";
  $("how").options[0].disabled = !byCatalogue;
  $("how").options[1].disabled = options.scorer === null;
  $("count").max = options.items || 500;
  showHow();
  const encoded = !options.features.length && options.context_size > 0;
  $("state-box").hidden = !encoded;
  $("features-box").hidden = !options.features.length;
  $("features-box").open = innerWidth > 760;
  if (encoded) $("state").value = Array(options.context_size).fill(0).join(", ");
  $("features").innerHTML = options.features.map(featureRow).join("");
  if (byCatalogue) await drawCandidates();
  await readFeatures();
  await ask();
}

function fill(select, values, chosen) {
  select.innerHTML = values.map((value) => `<option>${escape(value)}</option>`).join("");
  select.value = chosen;
}

function showHow() {
  for (const name of ["drawn", "ids", "pasted"]) $(name).hidden = $("how").value !== name;
}

async function drawCandidates() {
  drawn = (await call(`${ROUTES.candidates}?count=${Math.max(1, Number($("count").value) || 20)}&seed=${drawSeed}`)).item_id;
}

// State features.

function featureRow(feature, n) {
  const id = `feature-${n}`, label = `<label for="${id}">${escape(feature.name.replaceAll("_", " "))}</label>`;
  if (feature.categories) {
    const choices = [...feature.categories, ""].map((c) => `<option value="${escape(c)}">${c === "" ? "other" : escape(c)}</option>`);
    return `<div class="slider">${label}<select id="${id}">${choices.join("")}</select></div>`;
  }
  return `<div class="slider">${label}<input type="range" id="${id}" min="0" max="200" step="1"><output for="${id}"></output></div>`;
}

// Features that pass through a logarithm move along it.
const bend = (feature, value) => (feature.log ? Math.log1p(Math.max(value, 0)) : value);
const unbend = (feature, value) => (feature.log ? Math.expm1(value) : value);

function setFeature(feature, n, value) {
  const input = $(`feature-${n}`);
  if (feature.categories) {
    const known = feature.categories.includes(String(value));
    input.value = known ? String(value) : feature.name === "scene" ? $("scene").value : "";
    return;
  }
  const low = bend(feature, feature.low), high = bend(feature, feature.high);
  input.value = Math.round(((bend(feature, value) - low) / (high - low || 1)) * 200);
  input.dataset.exact = value;
  input.nextElementSibling.value = short(value);
}

function featureValue(feature, n) {
  const input = $(`feature-${n}`);
  if (feature.categories) return input.value;
  if (input.dataset.exact !== "") return Number(input.dataset.exact);
  const low = bend(feature, feature.low), high = bend(feature, feature.high);
  return unbend(feature, low + ((high - low) * input.value) / 200);
}

async function readFeatures() {
  if (!options.features.length) return;
  const { features } = await call(`${ROUTES.features}?user=${encodeURIComponent($("user").value)}`);
  options.features.forEach((feature, n) => {
    const stored = features[feature.name];
    setFeature(feature, n, typeof stored === "number" || feature.categories ? stored : feature.default);
  });
  touched = false;
}

// The request.

const userId = () => (/^\d{1,15}$/.test($("user").value.trim()) ? Number($("user").value) : $("user").value.trim());
const asIds = (text) => text.split(/[\s,;]+/).filter(Boolean).map((each) => (/^-?\d{1,15}$/.test(each) ? Number(each) : each));

function candidates() {
  if ($("how").value === "drawn") return { item_id: drawn };
  if ($("how").value === "ids") return { item_id: asIds($("id-list").value) };
  try {
    return JSON.parse($("json").value);
  } catch (error) {
    throw new Error(`The pasted candidates are no JSON: ${error.message}`);
  }
}

function request() {
  const body = { user: { user_id: userId() }, scene: $("scene").value, stage: $("stage").value, candidates: candidates() };
  if (!$("state-box").hidden) body.state = $("state").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (touched) body.context = Object.fromEntries(options.features.map((feature, n) => [feature.name, featureValue(feature, n)]));
  return body;
}

async function ask(draws = 1) {
  const number = ++asked;
  const body = request();
  const answer = await call(`${ROUTES.decide}?draws=${draws}&seed=${seed}`, { ...body, top_n: null, explore: false });
  if (number !== asked) return;  // A later question is under way.
  seed += draws;
  const places = new Map(body.candidates.item_id.map((id, place) => [String(id), place]));
  answer.items.forEach((item) => { item.place = places.get(String(item.id)) ?? 0; });
  const same = decision?.version === answer.version && decision.parameters.join() === answer.parameters.join();
  decision = answer;
  samples = [...(same ? samples : []), ...answer.draws].slice(-100);
  fillCompare();
  if (!same) buildSliders();
  if (title === "Policy's mean" || !same) take("mean");
  showAll(body);
}

function fillCompare() {
  const before = $("compare").value;
  $("compare").innerHTML = decision.hand_tuned.map((vector, n) => `<option value="${n}">${escape(vector.source)}</option>`).join("");
  $("compare").value = decision.hand_tuned[before] ? before : "0";
  const one = decision.hand_tuned.length < 2;
  $("compare").hidden = $("compare-label").hidden = one;
  document.querySelector("[data-from=hand]").disabled = decision.hand_tuned.length === 0;
}

// Weights by hand.

function buildSliders() {
  $("sliders").innerHTML = decision.parameters.map((name, k) => `<div class="slider"><label for="weight-${k}">
    <span class="swatch" style="background:${colour(k)}"></span>${escape(name)}</label>
    <input type="range" id="weight-${k}" data-weight="${k}" step="any"><output for="weight-${k}"></output></div>`).join("");
}

function take(from) {
  const names = { mean: "Policy's mean", sample: "Last sample", hand: "Hand-tuned" };
  const vector = { mean: decision.mean, sample: samples.at(-1) ?? decision.mean, hand: hand()?.values ?? decision.mean }[from];
  weights = [...vector];
  title = names[from];
  setSliders();
}

function setSliders() {
  weights.forEach((value, k) => {
    const around = [decision.mean[k] - 4 * decision.sigma[k], decision.mean[k] + 4 * decision.sigma[k], value, hand()?.values[k] ?? value];
    const input = $(`weight-${k}`);
    input.min = decision.range ? decision.range[0] : Math.min(...around);
    input.max = decision.range ? decision.range[1] : Math.max(...around);
    input.value = value;
    input.nextElementSibling.value = short(value);
  });
}

// What is shown.

function showAll(body) {
  const unknown = decision.unknown.item_id ?? 0, from = { store: "stored", context: "the sliders", default: "defaults", request: "this form", degraded: "defaults (the store does not answer)" };
  $("source").textContent = `from ${from[decision.source] ?? decision.source}`;
  $("said").textContent = `${decision.version}${decision.scorer ? `, predictions by ${decision.scorer}` : ", predictions as pasted"}. `
    + `${decision.items.length} candidates${unknown ? `, ${unknown} of them unknown to the scorer` : ""}.`;
  const vector = hand();
  $("hand-source").textContent = vector ? `Tick: hand-tuned, the ${vector.source}. Dots: sampled vectors.`
    : "Nothing here tells of a hand-tuned vector: no bundle of `recfuse explore`, and no mean of the samples. Move the weights by hand instead.";
  drawWeights();
  showRankings();
  showRequest(body);
}

function drawWeights() {
  const { ink, soft, accent } = inks(), names = decision.parameters, middle = decision.range ? "μ before it is squashed to its range" : "weight";
  const dots = samples.flatMap((sample, n) => names.map((name, k) => ({ x: sample[k], y: name, last: n === samples.length - 1 })));
  const traces = [
    { type: "bar", orientation: "h", name: "μ ± σ", y: names, x: decision.mu, marker: { color: names.map((_, k) => colour(k)), opacity: 0.75 },
      error_x: { type: "data", array: decision.sigma, color: soft, thickness: 1.5 }, hovertemplate: "%{y}: μ %{x:.3g} ± %{error_x.array:.2g}<extra></extra>" },
    { type: "scatter", mode: "markers", name: "sampled", x: dots.map((d) => d.x), y: dots.map((d) => d.y), hovertemplate: "%{y}: sampled %{x:.3g}<extra></extra>",
      marker: { color: dots.map((d) => (d.last ? ink : soft)), size: dots.map((d) => (d.last ? 9 : 6)), opacity: dots.map((d) => (d.last ? 0.95 : 0.4)) } },
  ];
  const vector = hand();
  if (vector) {
    traces.push({ type: "scatter", mode: "markers", name: "hand-tuned", x: vector.values, y: names, hovertemplate: "%{y}: hand-tuned %{x:.3g}<extra></extra>",
      marker: { symbol: "line-ns", size: 20, line: { width: 4, color: accent } } });
  }
  draw($("weights-chart"), traces, { height: 70 + 34 * names.length, xaxis: { title: { text: middle }, zeroline: true },
    yaxis: { autorange: "reversed", ticksuffix: "  " }, bargap: 0.35, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 } });
}

function row(item, place, bars, reach, total, size) {
  const spans = { left: 50, right: 50 };
  const pieces = bars.map((value, k) => {
    const width = (Math.abs(value) / reach) * 50;
    const start = value < 0 ? (spans.left -= width) : spans.right;
    if (value >= 0) spans.right += width;
    return `<i style="left:${start}%;width:${width}%;background:${colour(k)}"></i>`;
  }).join("");
  const told = decision.parameters.map((name, k) => `${name} ${short(item.predictions[k])} adds ${short(bars[k])}`).join("\n");
  const classes = `${place >= page() ? "off" : ""} ${place === page() - 1 && place < size - 1 ? "edge" : ""}`;
  return `<li class="${classes}" data-id="${escape(item.id)}" title="${escape(told)}"><span class="place">${place + 1}</span>
    <span class="name">${escape(item.id)}<small>${escape(item.label)}</small></span>
    <span class="bars">${pieces}<b style="left:calc(${50 + (total / reach) * 50}% - 1px)"></b></span></li>`;
}

function showRankings() {
  const items = decision.items, vector = hand(), hidden = items.length > MOST_LINES;
  const sides = { left: vector?.values ?? decision.mean, right: weights };
  $("left-title").textContent = vector ? "Hand-tuned" : "Policy's mean (no hand-tuned vector is known)";
  $("right-title").textContent = title;
  $("legend").innerHTML = decision.parameters.map((name, k) => `<span><span class="swatch" style="background:${colour(k)}"></span> ${escape(name)}</span>`).join("");
  const places = {};
  for (const [side, vectorOf] of Object.entries(sides)) {
    const bars = contributions(items, vectorOf), ranked = order(items, vectorOf).slice(0, MOST_LINES);
    const reach = Math.max(1e-12, ...bars.flatMap((each) => [each.filter((v) => v > 0).reduce((a, b) => a + b, 0), -each.filter((v) => v < 0).reduce((a, b) => a + b, 0)]));
    $(side).innerHTML = ranked.map((i, place) => row(items[i], place, bars[i], reach, bars[i].reduce((a, b) => a + b, 0), items.length)).join("");
    places[side] = ranked;
  }
  join(places.left, places.right);
  const top = page(), entered = places.right.slice(0, top).filter((i) => !places.left.slice(0, top).includes(i));
  const changed = places.right.slice(0, top).filter((i, place) => places.left[place] !== i).length;
  $("moved").textContent = `${entered.length} of ${Math.min(top, items.length)} places of the page have another item than on the left, `
    + `${changed} stand elsewhere.${hidden ? ` The first ${MOST_LINES} of ${items.length} are shown.` : ""}`;
  showFlips();
}

function join(left, right) {
  const line = $("left").firstElementChild?.offsetHeight ?? 46, height = line * Math.max(left.length, right.length);
  const svg = $("joins"), from = new Map(left.map((i, place) => [i, place]));
  svg.setAttribute("viewBox", `0 0 100 ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = `${height}px`;
  svg.innerHTML = right.map((i, place) => {
    if (!from.has(i)) return "";
    const a = (from.get(i) + 0.5) * line, b = (place + 0.5) * line, kind = a > b ? "up" : a < b ? "down" : "";
    return `<path vector-effect="non-scaling-stroke" class="${kind}" data-id="${escape(decision.items[i].id)}" d="M0 ${a}C50 ${a} 50 ${b} 100 ${b}"/>`;
  }).join("");
}

function showFlips() {
  const items = decision.items;
  const found = flips(items, weights, page()).map((flip) => ({ ...flip, far: flip.step / Math.max(decision.sigma[flip.parameter], 1e-12) }));
  const allowed = found.filter((flip) => !decision.range || (flip.at >= decision.range[0] && flip.at <= decision.range[1])).sort((a, b) => a.far - b.far);
  $("flips").innerHTML = allowed.map((flip) => `<li><b>${escape(items[flip.leaves].id)}</b> leaves the page for <b>${escape(items[flip.enters].id)}</b>
    when <span class="swatch" style="background:${colour(flip.parameter)}"></span> ${escape(decision.parameters[flip.parameter])} ${flip.sign < 0 ? "&lt;" : "&gt;"} ${short(flip.at)}
    <span class="soft small">now ${short(weights[flip.parameter])}; ${short(flip.far, 2)} σ away</span></li>`).join("")
    || `<li class="soft">${items.length <= page() ? "Every candidate is on the page." : "No weight alone changes the page."}</li>`;
}

function showRequest(body) {
  const sent = { ...body, top_n: page() }, url = location.origin + options.path, asks = Boolean($("token-form"));
  const json = JSON.stringify(sent);
  $("curl").textContent = `curl -s '${url}'${asks ? ' -H "Authorization: Bearer $TOKEN"' : ""} -H 'Content-Type: application/json' -d '${json.replaceAll("'", "'\\''")}'`;
  $("python").textContent = `import ${asks ? "os\n\nimport " : ""}httpx\n\nanswer = httpx.post(\n    "${url}",\n${asks ? '    headers={"Authorization": f"Bearer {os.environ[\'TOKEN\']}"},\n' : ""}    json=${python(sent)},\n)\nprint(answer.raise_for_status().json())`;
}

/** A JSON value as Python writes it. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`).join(", ")}}`;
  return JSON.stringify(value);
}

// What a person does.

const later = (() => {
  let timer;
  return (task) => { clearTimeout(timer); timer = setTimeout(task, 150); };
})();
const again = () => attempt(options ? () => ask(0) : start, $("result"));

$("request").addEventListener("submit", (event) => { event.preventDefault(); again(); });
$("how").addEventListener("change", () => { showHow(); if ($("how").value !== "pasted") again(); });
$("draw").addEventListener("click", () => { drawSeed += 1; attempt(async () => { await drawCandidates(); await ask(0); }, $("result")); });
$("count").addEventListener("change", () => attempt(async () => { await drawCandidates(); await ask(0); }, $("result")));
$("user").addEventListener("change", () => attempt(async () => { await readFeatures(); await ask(0); }, $("result")));
$("reset").addEventListener("click", () => attempt(async () => { await readFeatures(); await ask(0); }, $("result")));
for (const id of ["scene", "stage"]) {
  $(id).addEventListener("change", () => {
    const n = options.features.findIndex((feature) => feature.name === "scene");
    if (id === "scene" && n >= 0) setFeature(options.features[n], n, $("scene").value);
    again();
  });
}
$("page").addEventListener("input", () => decision && showAll(request()));
$("features").addEventListener("input", (event) => {
  const n = Number(event.target.id.replace("feature-", "")), feature = options.features[n];
  touched = true;
  if (!feature.categories) {
    event.target.dataset.exact = "";
    event.target.nextElementSibling.value = short(featureValue(feature, n));
  }
  later(() => again());
});
$("sample").addEventListener("click", () => attempt(async () => { await ask(1); if (title === "Last sample") { take("sample"); showRankings(); } }));
$("clear").addEventListener("click", () => { samples = []; drawWeights(); });
$("presets").addEventListener("click", (event) => { if (event.target.dataset.from) { take(event.target.dataset.from); showRankings(); } });
$("compare").addEventListener("change", () => { setSliders(); showAll(request()); });
$("sliders").addEventListener("input", (event) => {
  const k = Number(event.target.dataset.weight);
  weights[k] = Number(event.target.value);
  event.target.nextElementSibling.value = short(weights[k]);
  title = "Weights by hand";
  showRankings();
});
for (const side of ["left", "right"]) {
  for (const [kind, on] of [["mouseover", true], ["mouseout", false]]) {
    $(side).addEventListener(kind, (event) => {
      const id = event.target.closest("li")?.dataset.id;
      document.querySelectorAll(`.rankings [data-id="${CSS.escape(id ?? "")}"]`).forEach((each) => each.classList.toggle("lit", on));
    });
  }
}
document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($(button.dataset.copy).textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($(button.dataset.copy));
  }
}));
addEventListener("resize", () => later(() => decision && showRankings()));
onTheme(() => decision && drawWeights());
attempt(start, $("result"));
