"""Programs besides training, each run by python -m or by a flag."""
