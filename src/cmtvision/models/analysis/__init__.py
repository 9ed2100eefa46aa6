"""What a network costs, and the paper's law of scaling."""
