"""In: exposures and session logs, as files. Out: checked tables and samples, and an account of every row."""
