"""Programs beside a run, each run by python -m or by a flag."""
