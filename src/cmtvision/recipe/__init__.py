"""Floor 0: what a run is, as plain validated data. No torch here, so a mistyped key is reported at once."""

from cmtvision.recipe.load import dump_recipe, list_recipes, load_recipe, recipe_comment
from cmtvision.recipe.schema import (
    AugmentSection,
    DataSection,
    DistillSection,
    EmaSection,
    LossSection,
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
    "DistillSection",
    "EmaSection",
    "LossSection",
    "ModelSection",
    "OptimSection",
    "PreprocessSection",
    "Recipe",
    "ScheduleSection",
    "TrainSection",
    "dump_recipe",
    "list_recipes",
    "load_recipe",
    "recipe_comment",
]
