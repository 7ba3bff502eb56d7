"""The federation: server, workers and their clients, uploads, faults, checkpoints."""
