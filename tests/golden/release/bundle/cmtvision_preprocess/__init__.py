"""Preprocessing of cmtvision 0.1.0 (Apache-2.0), unchanged but for its imports."""
