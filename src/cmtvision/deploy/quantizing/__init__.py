"""A trained model in 8 bits, within an accuracy budget."""
