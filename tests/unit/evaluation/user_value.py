"""An estimator that no package of ours knows, as a user writes one: what a user brings over the log's time."""

import numpy as np

from recfuse.evaluation.answers import Evidence, OffPolicyEstimate, conclude, paired
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import DENSITIES, USER_OVER_TIME, Estimator
from recfuse.evaluation.support import Ratios, effective_sample_size
from recfuse.stats.intervals import sum_per_user


def user_value(case: Case) -> OffPolicyEstimate:
    """Σ_u (ρ̄_u Σ_t r_{u,t}) / Σ_u ρ̄_u: users weighted by the mean ratio of their requests."""
    ratios = Ratios.of(case.log_prob, case.log.log_prob, case.product_cap)
    per_user = sum_per_user(np.column_stack([case.log.feedback, ratios.weights, np.ones(len(ratios.log))]), case.users)
    feedback, weight = per_user[:, :-2], per_user[:, -2] / per_user[:, -1]
    evidence = Evidence(estimator="", logged=feedback.mean(0), size=effective_sample_size(weight),
                        requests=len(ratios.log), users=len(per_user), capped_share=ratios.capped_share,
                        mean_ratio=float(weight.mean()))
    width = feedback.shape[1]

    def value(sums):
        return sums[:, :width] / sums[:, width:width + 1]

    return conclude(evidence, np.column_stack([weight[:, None] * feedback, weight, feedback, np.ones(len(weight))]),
                    value, case.options, paired(value, lambda sums: sums[:, width + 1:-1] / sums[:, -1:]))


USER_VALUE = Estimator(name="UserIS", question=USER_OVER_TIME, formula="Σ ρ̄_u Σ_t r_{u,t} / Σ ρ̄_u",
                       requirements=(DENSITIES,), estimate=user_value)
