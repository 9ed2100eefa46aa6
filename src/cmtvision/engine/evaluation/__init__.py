"""Exact counts of what a model gets right."""
