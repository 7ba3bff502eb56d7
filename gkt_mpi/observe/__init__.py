"""What a person sees of a run: progress while it goes, a log and a summary of it, and a report to look at."""
