"""What detection and segmentation have in common: networks from recipes, the task of the engine, evaluation."""
