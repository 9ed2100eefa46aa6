"""``cmtvision recipes``: the recipes that come with the package."""

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe (a name or a YAML file) in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the built-in recipes, or show one: its command, cost and expected accuracy, and every setting."""
    from cmtvision.cli import output
    from cmtvision.recipe import dump_recipe, list_recipes, load_recipe, recipe_comment

    if name is not None:
        recipe = load_recipe(name)
        if json:
            output.result_json(recipe.model_dump(mode="json"))
        else:
            comment = recipe_comment(name)  # command, cost and accuracy; the output stays a recipe
            output.result("\n".join(filter(None, [comment, dump_recipe(recipe).rstrip()])))
        return
    known = list_recipes()
    if json:
        output.result_json(known)
        return
    output.table(["recipe", "what it is"], [[key, text] for key, text in known.items()])
    output.note("next: cmtvision recipes NAME > my.yaml, edit it, cmtvision train DATA --recipe my.yaml")
