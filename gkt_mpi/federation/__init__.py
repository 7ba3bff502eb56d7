"""Who runs when: the server, its workers and their clients, uploads, faults, checkpoints."""
