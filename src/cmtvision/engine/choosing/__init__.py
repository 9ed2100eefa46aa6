"""The choices for a run without a recipe: images and machine are inspected."""
