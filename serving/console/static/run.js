// The report of a run, as the file has it, in a frame without scripts.

import { $, attempt, call } from "./console.js";

const report = new URLSearchParams(location.search).get("report") ?? "";
$("name").textContent = report;

function grow() {
  const inside = $("report").contentDocument?.documentElement;
  if (inside) $("report").style.height = `${inside.scrollHeight + 4}px`;
}

attempt(async () => {
  $("report").addEventListener("load", () => {
    const inside = $("report").contentDocument;
    grow();
    // A link within the report moves the page around the frame, which is as high as the report.
    inside.addEventListener("click", (event) => {
      const target = event.target.closest("a[href^='#']")?.getAttribute("href");
      if (!target) return;
      event.preventDefault();
      scrollTo({ top: $("report").offsetTop + inside.querySelector(target).getBoundingClientRect().top });
    });
    inside.addEventListener("toggle", grow, true);
  });
  $("report").srcdoc = await call(`${$("script").dataset.run}?report=${encodeURIComponent(report)}`);
}, $("report"));
addEventListener("resize", grow);
