"""Scenes composed of the bundled product photos, to try detection and segmentation on."""
