// The board: effects on one axis, and decisions with a reason.

import { $, attempt, call, draw, inks, onTheme } from "./console.js";
import { decide } from "./decide.js";

const ROUTES = $("script").dataset;
const EVERY = 30_000;

function effects() {
  const chart = $("effects");
  if (!chart) return;
  const rows = JSON.parse(chart.dataset.rows), { ink, good, bad, accent } = inks();
  const names = rows.map((row) => row.name), percent = (value) => (value === null ? null : 100 * value);
  const colours = rows.map((row) => (row.tone === "good" ? good : row.tone === "bad" ? bad : ink));
  const traces = rows.map((row, n) => ({
    type: "scatter", mode: "lines", x: [percent(row.low), percent(row.high)], y: [row.name, row.name], line: { color: colours[n], width: 3 },
    hoverinfo: "skip", showlegend: false }));
  traces.push({ type: "scatter", mode: "markers", name: "difference", x: rows.map((row) => percent(row.estimate)), y: names, marker: { size: 10, color: colours },
    customdata: rows.map((row) => [percent(row.low), percent(row.high)]), hovertemplate: "%{y}: %{x:+.2f}% [%{customdata[0]:+.2f}, %{customdata[1]:+.2f}]<extra></extra>" });
  for (const [kind, symbol] of [["floor", "line-ns"], ["goal", "triangle-right"]]) {
    const asked = rows.filter((row) => row.kind === kind);
    if (asked.length) traces.push({ type: "scatter", mode: "markers", name: kind, x: asked.map((row) => percent(row.bound)), y: asked.map((row) => row.name),
      marker: { symbol, size: kind === "floor" ? 22 : 12, color: accent, line: { width: kind === "floor" ? 3 : 0, color: accent } },
      hovertemplate: `%{y}: ${kind} %{x:+.2f}%<extra></extra>` });
  }
  const ends = rows.flatMap((row) => [row.low, row.high, row.estimate, row.bound, 0]).filter((value) => value !== null).map(percent);
  const low = Math.min(...ends), high = Math.max(...ends), room = 0.06 * (high - low || 1);
  draw(chart, traces, { height: 90 + 34 * rows.length, xaxis: { title: { text: "difference to the base (%)" }, zeroline: true, range: [low - room, high + room] },
    yaxis: { autorange: "reversed", type: "category", categoryarray: names, ticksuffix: "  " }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 } });
}

async function show() {
  $("board").innerHTML = await call(ROUTES.board);
  effects();
}

$("board").addEventListener("click", async (event) => {
  const { action } = event.target.dataset, context = $("actions")?.dataset;
  if (!action || !context) return;
  const asked = {
    promote: { title: "Promote", words: `${context.candidate} will serve every user.` },
    share: { title: "Change the share", words: `${context.candidate} goes to another share of the users; a new test begins.`, shares: JSON.parse(context.shares) },
    rollback: { title: "Roll back", words: `${context.base} will serve every user again.`, danger: true },
  }[action];
  if (await decide({ ...asked, path: ROUTES.action + action, body: { candidate: context.candidate } })) await call(ROUTES.board).then((html) => { $("board").innerHTML = html; effects(); });
});

onTheme(effects);
attempt(show, $("board"));
setInterval(() => { if (!document.hidden && !$("decide").open) attempt(show); }, EVERY);
