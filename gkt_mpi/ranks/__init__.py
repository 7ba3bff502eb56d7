"""The ranks of a run, from the configuration to the exit status: rank 0 is the server, the others are workers."""
