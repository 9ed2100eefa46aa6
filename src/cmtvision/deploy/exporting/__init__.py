"""A trained model as files of a runtime, kept only if they agree with the model."""
