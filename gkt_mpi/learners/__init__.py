"""What the server trains, one file a learner, and what lies around it: bank, sharing, arrivals."""
