// A decision: a dialog that asks why and who, and sends it.

import { $, call, say } from "./console.js";

/** Asks for a reason and sends the decision; `shares` lets a person choose among them. Resolves to the answer, or to
 *  undefined where nothing was decided. */
export function decide({ title, words, path, body = {}, shares = [], danger = false }) {
  $("decide-title").textContent = title;
  $("decide-words").textContent = words;
  $("decide-yes").textContent = title;
  $("decide-yes").className = danger ? "danger" : "main";
  $("share-box").hidden = shares.length === 0;
  $("share").innerHTML = shares.map((share) => `<option value="${Number(share)}">${Number((share * 100).toPrecision(6))}%</option>`).join("");
  $("reason").value = "";
  $("decide-error").hidden = true;
  $("decide").showModal();
  $("reason").focus();
  return new Promise((resolve) => {
    const form = $("decide-form");
    const end = (result) => {
      form.onsubmit = $("decide").onclose = null;
      $("decide").close();
      resolve(result);
    };
    $("decide").onclose = () => end(undefined);
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (event.submitter?.value === "no") return end(undefined);
      $("decide-yes").disabled = true;
      try {
        const told = { ...body, reason: $("reason").value.trim(), who: $("who").value.trim() };
        if (shares.length) told.share = Number($("share").value);
        const answer = await call(path, told);
        say(answer.words, "fine");
        end(answer);
      } catch (error) {
        $("decide-error").hidden = false;
        $("decide-error").textContent = error.message;
      } finally {
        $("decide-yes").disabled = false;
      }
      return undefined;
    };
  });
}
