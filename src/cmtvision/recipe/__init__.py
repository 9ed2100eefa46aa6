"""Floor 0: what a run is, as plain validated data. No torch here, so a mistyped key is answered at once."""

from cmtvision.recipe.load import dump_recipe, list_recipes, load_recipe
from cmtvision.recipe.schema import (
    AugmentSection,
    DataSection,
    EmaSection,
    ModelSection,
    OptimSection,
    PreprocessSection,
    Recipe,
    ScheduleSection,
    TrainSection,
)

__all__ = [
    "AugmentSection",
    "DataSection",
    "EmaSection",
    "ModelSection",
    "OptimSection",
    "PreprocessSection",
    "Recipe",
    "ScheduleSection",
    "TrainSection",
    "dump_recipe",
    "list_recipes",
    "load_recipe",
]
