// Scores, orders and flip points of a page: plain functions of terms and weights, without a document.

/** Σ w t of every item. */
export const scores = (items, weights) => items.map((item) => item.terms.reduce((sum, term, k) => sum + term * weights[k], 0));

/** Places of the items, the best first; ties keep the candidates' order, as in serving. */
export function order(items, weights) {
  const total = scores(items, weights);
  return items.map((_, i) => i).sort((a, b) => total[b] - total[a] || items[a].place - items[b].place);
}

/** What each prediction adds to each item's score, against the average candidate: [item][parameter]. */
export function contributions(items, weights) {
  const mean = weights.map((_, k) => items.reduce((sum, item) => sum + item.terms[k], 0) / items.length);
  return items.map((item) => weights.map((weight, k) => weight * (item.terms[k] - mean[k])));
}

/**
 * The first change of the page in each direction of each weight: an item on the page and one beyond it whose scores
 * meet. Scores are linear in a weight, so the nearest such meeting is the first change.
 */
export function flips(items, weights, page) {
  const total = scores(items, weights);
  const ranked = order(items, weights);
  const inside = ranked.slice(0, page), outside = ranked.slice(page);
  const found = [];
  weights.forEach((weight, k) => {
    for (const sign of [-1, 1]) {
      let best = null;
      for (const i of inside) {
        for (const j of outside) {
          const gain = (items[j].terms[k] - items[i].terms[k]) * sign;
          if (gain <= 0) continue;
          const step = (total[i] - total[j]) / gain;
          if (best === null || step < best.step) best = { step, leaves: i, enters: j };
        }
      }
      if (best) found.push({ ...best, parameter: k, at: weight + sign * best.step, sign });
    }
  });
  return found;
}
