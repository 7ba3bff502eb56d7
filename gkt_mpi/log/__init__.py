"""Files and output that a run produces as it goes: records, clients, uploads, timeline, progress."""
