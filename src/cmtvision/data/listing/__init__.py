"""Which images there are, of which class and in which part, before any image is opened."""
