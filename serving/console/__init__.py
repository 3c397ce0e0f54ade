"""The pages of the server. In: a models directory, what its rollout and its runs have written, and the backends that
serve. Out: HTML that people decide from, the values behind it, and their decisions in the audit."""
