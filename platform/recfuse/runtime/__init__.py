"""What a job runs on: Ray (`cluster`), what we do to it (`ray_compat`), and the terminal (`console`).

In: a config class and a command line. Out: a checked config, a Ray, progress lines and tables.
"""
