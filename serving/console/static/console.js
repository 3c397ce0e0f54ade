// What every page shares: calls with the token, messages, colours of charts, text that is safe in HTML.

const KEY = "recfuse-token";
export const $ = (id) => document.getElementById(id);
// Okabe and Ito's colours, which colour-blind readers tell apart, on white and on black.
export const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999933", "#8C6BB1"];
const MINUS = /^-/;

export function say(text, kind = "error") {
  const box = $("message");
  box.hidden = !text;
  box.className = `message ${kind}`;
  box.textContent = text ?? "";
}

/** Asks the server; throws an Error whose message names what was wrong. */
export async function call(path, body) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const init = body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) };
  const answer = await fetch(path, init);
  const kind = answer.headers.get("content-type") ?? "";
  const content = kind.startsWith("application/json") ? await answer.json() : await answer.text();
  if (answer.ok) return content;
  if (answer.status === 401) {
    $("token")?.focus();
    throw new Error(token ? "This token is not valid here." : "This server asks for a token: give it above.");
  }
  throw new Error(content?.error?.reason ?? `The server answered ${answer.status}.`);
}

/** Runs what talks to the server, and says what was wrong. */
export async function attempt(task, element) {
  element?.classList.add("busy");
  try {
    const result = await task();
    say("");
    return result;
  } catch (error) {
    say(error.message);
    return undefined;
  } finally {
    element?.classList.remove("busy");
  }
}

export const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** A number in three significant digits, with a true minus. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replace(MINUS, "−");
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Layout of a chart in the page's colours. */
export function layout(more = {}) {
  const axis = { gridcolor: css("--grid"), zerolinecolor: css("--soft"), linecolor: css("--line"), automargin: true, fixedrange: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 8, r: 12, t: 8, b: 32 }, hoverlabel: { bgcolor: css("--card"), font: { color: css("--ink") } },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

export const inks = () => ({ ink: css("--ink"), soft: css("--soft"), accent: css("--accent"), good: css("--good"), bad: css("--bad") });

export function draw(element, traces, wanted) {
  return window.Plotly.react(element, traces, layout(wanted), { displayModeBar: false, responsive: true, staticPlot: false });
}

/** Calls again when the system turns light or dark. */
export const onTheme = (redraw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

$("token-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("token").value.trim());
  location.reload();
});
if ($("token") && sessionStorage.getItem(KEY)) $("token").placeholder = "token is set";
