"""Scores of a trained network: on one video, on all those of a data set, and the mean of several networks."""
