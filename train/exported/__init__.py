"""Networks in exported files: what they say of themselves, and running them as a checkpoint is run."""
