"""What a run writes down as it goes: records, clients, uploads, timeline, progress."""
