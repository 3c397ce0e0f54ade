// The list of runs, and "serve this".

import { $, attempt, call } from "./console.js";
import { decide } from "./decide.js";

const ROUTES = $("script").dataset;

async function show() {
  $("runs").innerHTML = await call(ROUTES.runs);
}

$("runs").addEventListener("click", async (event) => {
  const { serve, version } = event.target.dataset;
  if (!serve) return;
  const answer = await decide({ title: "Serve this", path: ROUTES.serve, body: { bundle: serve },
    words: `${version} will serve every user from now on, without a canary. The board can roll it back.` });
  if (answer) $("runs").innerHTML = await call(ROUTES.runs);
});

attempt(show, $("runs"));
