"""Comparisons: what models cost, measured here, and what they learn under one recipe."""
