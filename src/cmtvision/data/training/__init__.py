"""What training does with images: their order, random changes, and the torch data set."""
