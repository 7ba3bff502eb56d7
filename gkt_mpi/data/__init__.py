"""From a data set to a client's training batches: one HDF5 file, a partition, a shard, augmented batches."""
