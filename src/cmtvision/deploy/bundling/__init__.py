"""A folder that predicts without PyTorch."""
