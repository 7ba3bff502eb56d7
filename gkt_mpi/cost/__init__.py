"""What a round costs: operations, bytes, and seconds on real devices; counted, not measured."""
