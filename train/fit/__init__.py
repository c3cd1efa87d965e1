"""Training: from a recipe and the indices of a data set to checkpoints."""
