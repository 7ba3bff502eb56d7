"""What the server trains, one file per learner, and their shared parts: bank, weight sharing, arrivals."""
