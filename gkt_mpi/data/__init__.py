"""From a data set to what one client trains on: one HDF5 file, a partition, a shard, augmented batches."""
