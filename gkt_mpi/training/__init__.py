"""Training without federation: losses, optimizer, schedules, precision, evaluation."""
