"""A CMT with everything constant folded into its weights."""
