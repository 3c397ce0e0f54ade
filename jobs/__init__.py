"""In: a command line. Out: what the job leaves on disk, and its closing table. One file a job: parse, call, print."""
