"""``cmtvision recipes``: the recipes that come with the package."""

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe (a name or a YAML file) in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the built-in recipes, or show one with every setting."""
    from cmtvision.cli import output
    from cmtvision.recipe import dump_recipe, list_recipes, load_recipe

    if name is not None:
        recipe = load_recipe(name)
        if json:
            output.result_json(recipe.model_dump(mode="json"))
        else:
            output.result(dump_recipe(recipe).rstrip())
        return
    known = list_recipes()
    if json:
        output.result_json(known)
        return
    output.table(["recipe", "what it is"], [[key, text] for key, text in known.items()])
    output.note("next: cmtvision recipes NAME > my.yaml, edit it, cmtvision train DATA --recipe my.yaml")
