"""The sections of a run's report: each is computed from what the model said of the images, without a word of HTML."""
