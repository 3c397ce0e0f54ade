"""In: samples in Parquet and their vocabulary. Out: a trained fusion policy with the history of its training, by RLlib
(an RLModule, a Learner and an Algorithm of our own), ready to be exported as a bundle."""
