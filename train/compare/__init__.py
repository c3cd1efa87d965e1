"""Systems compared: each trained on the same data, by the same seeds and schedule."""
