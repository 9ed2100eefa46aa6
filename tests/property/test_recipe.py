"""Any valid recipe survives YAML; and any key is settable by its path."""

import tempfile
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from cmtvision.recipe import Recipe, dump_recipe, load_recipe

positive = st.floats(min_value=1e-12, max_value=1e6, allow_nan=False)
rates = st.floats(min_value=0, max_value=0.999)
text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=40)
recipes = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32 - 1), "description": text},
    optional={
        "name": text,
        "model": st.fixed_dictionaries(
            {"drop_path_rate": rates},
            optional={
                "img_size": st.none() | st.integers(1, 2000) | st.tuples(st.integers(1, 999), st.integers(1, 999)),
                "weights": st.none() | text,
                "rel_pos": st.sampled_from([None, "stage", "block", "none"]),
            },
        ),
        "optim": st.fixed_dictionaries({"lr": positive, "eps": positive, "betas": st.tuples(rates, rates)}),
        "preprocess": st.fixed_dictionaries({"mean": st.none() | st.tuples(rates, rates, rates)}),
        "train": st.fixed_dictionaries(
            {"batch_size": st.just("auto") | st.integers(1, 10**6), "compile": st.booleans()}
        ),
    },
)


@given(recipes)
def test_a_recipe_survives_yaml(values):
    recipe = Recipe.model_validate(values)
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(path) == recipe


@given(recipes)
def test_every_key_can_be_set_by_its_path(values):
    recipe = Recipe.model_validate(values)
    overrides = []
    for section, content in recipe.model_dump(mode="json").items():
        items = [(section, content)] if not isinstance(content, dict) else [
            (f"{section}.{key}", value) for key, value in content.items()
        ]  # fmt: skip
        overrides += [
            f"{key}={yaml.safe_dump(value, default_flow_style=True, allow_unicode=True)}" for key, value in items
        ]
    assert load_recipe("demo", overrides) == recipe
