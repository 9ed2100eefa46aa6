"""Answers that say how sure they are: calibrated probabilities, prediction sets, scores for unfamiliar images.

Arithmetic on arrays alone; no files and no networks. Each module says what it assumes.
"""
