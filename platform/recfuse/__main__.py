"""`python -m recfuse` is the command `recfuse`."""

from recfuse.cli import main

main()
