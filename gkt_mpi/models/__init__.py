"""The networks of both sides."""
