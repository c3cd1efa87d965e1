"""Training TANet on video files: reading, sampling, augmentation, loop, evaluation, and a demo that shows all of it."""
