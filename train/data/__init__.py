"""Video files to batches: entries of a data set, checked and read, sampled, augmented and loaded in order."""
