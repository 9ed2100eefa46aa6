"""Where data comes from besides folders: a CSV or Parquet table, torchvision's and Hugging Face's sets."""
