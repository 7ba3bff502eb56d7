"""The cost of a round: operations, bytes, and seconds on real devices; counted, not measured."""
