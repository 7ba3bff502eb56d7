"""Reports on run folders; nothing in this package is imported while a run trains."""
