"""Types and sentences of fields that several algorithms have."""

from __future__ import annotations

from typing import Literal

AdvantageKind = Literal["regressed", "sampled"]
AdvantageChoice = Literal["auto", "replay", "regressed", "sampled"]
ADVANTAGE_CHOICE_SENTENCE = (
    "Policies learn from what a vector would have shown (replay), from the advantage regressed on the vector, or from "
    "its samples; auto replays where the log keeps candidates.")
ADVANTAGE_SENTENCE = ("Policies learn from the conditional expectation of the advantage given state and action, or "
                      "from its samples.")
COLUMNS_SENTENCE = ("The regressed advantage has at most so many columns; above that, a wide state enters by its "
                    "leading principal directions.")
ESS_FLOOR_SENTENCE = "The effective sample size of the weights stays at or above this share of the samples."
WEIGHT_CAP_SENTENCE = "No sample weighs more than this, where the mean is 1; nothing leaves weights as they are."
