"""The space that ``cmtvision tune`` searches: recipe keys with a range or a list of values, written as text.

``optim.lr=log:1e-4..1e-2`` (logarithmic), ``augment.mixup=0..0.4`` (uniform), ``schedule.epochs=int:5..20`` (whole
numbers; ``int:log:`` for both), ``model.name=cmt_nano,cmt_ti`` (one of these; each is read as YAML).
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cmtvision.errors import ConfigError
from cmtvision.recipe.load import with_settings
from cmtvision.recipe.schema import Recipe

_RANGE = re.compile(r"((?:log:|int:)*)([^,:]+?)\.\.([^,:]+)")
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
_EXAMPLES = (
    "expected KEY=LOW..HIGH, KEY=log:LOW..HIGH, KEY=int:LOW..HIGH or KEY=A,B,C, for example optim.lr=log:1e-4..1e-2"
)
_INNER = 0.37  # a place between both ends: where a key takes whole numbers only, it shows here
_COMBINATIONS = 32
# A trial must be measured on the same images as the next, or their scores cannot be compared.
_FIXED = {
    "data.val_fraction", "data.split_seed", "data.multi_label", "data.image_column", "data.label_column", "name",
    "description",
}  # fmt: skip


@dataclass(frozen=True)
class Dimension:
    """One recipe key and the values it may take.

    Attributes:
        key: 'section.key'.
        text: as the user wrote it.
        low, high: the ends of a range, both included; None for a list of values.
        log: a range is searched by its logarithm.
        integer: a range of whole numbers.
        choices: the values of a list, each as JSON text.
    """

    key: str
    text: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()

    def probes(self) -> list[str]:
        """Values, as JSON text, that show whether the key can take this dimension at all."""
        if self.low is None or self.high is None:
            return list(self.choices)
        inner = self.low + (self.high - self.low) * _INNER
        return [self.json(value) for value in (self.low, inner, self.high)]

    def draw(self, random_: random.Random) -> str:
        """One value at random, as JSON text; uniform over the range."""
        if self.low is None or self.high is None:
            return random_.choice(self.choices)
        return self.json(random_.uniform(self.low, self.high))

    def json(self, value: float) -> str:
        """A number of the range as JSON text, rounded where whole numbers are meant."""
        return json.dumps(round(value) if self.integer else value)


def default_space(recipe: Recipe) -> list[Dimension]:
    """Learning rate (a fifth to five times the recipe's), weight decay, drop path, mixup."""
    texts = [f"optim.lr=log:{recipe.optim.lr / 5:.3g}..{recipe.optim.lr * 5:.3g}", "optim.weight_decay=log:0.005..0.3"]
    if recipe.model.freeze == "none":
        texts += ["model.drop_path_rate=0..0.3"]
    return parse_space([*texts, "augment.mixup=0..0.8"])


def parse_space(texts: Sequence[str]) -> list[Dimension]:
    """Read a space from its texts.

    Raises:
        ConfigError: a text that is neither a range nor a list, or a key given twice.
    """
    space = [_parse(text) for text in texts]
    for place, dimension in enumerate(space):
        if dimension.key in [other.key for other in space[:place]]:
            raise ConfigError(f"--space {dimension.key}: given twice; keep one")
    return space


def check_space(space: Sequence[Dimension], recipe: Recipe, overrides: Sequence[str] = ()) -> None:
    """Check every key's values in the recipe, and some combinations of them, before hours are spent.

    Args:
        space: what is to be searched.
        recipe: what is varied.
        overrides: the ``a.b=c`` settings that it was given.

    Raises:
        ConfigError: an unknown key (with a did-you-mean), a value that a key cannot take, a key that is set by an
            override too or that must not change between trials, or a space of which no combination fits the recipe.
    """
    set_too = {override.partition("=")[0].strip() for override in overrides}
    for dimension in space:
        key = dimension.key
        if key in set_too:
            raise ConfigError(f"--space {key} and --set {key}: both given; keep one")
        if key in _FIXED:
            raise ConfigError(f"--space {key}: it must be the same in every trial, or their scores cannot be compared")
        for value in dimension.probes():
            setting = f"{key}={value}"
            try:
                with_settings(recipe, [setting])
            except ConfigError as error:
                first = str(error).splitlines()[0].removeprefix(f"override {setting!r}: ")
                if not _fits_alone(key, value):
                    whole = "; for whole numbers write int:LOW..HIGH" if "valid integer" in first else ""
                    raise ConfigError(f"--space {dimension.text!r}: {first}{whole}") from None
    random_ = random.Random(0)
    reason = ""
    for _ in range(_COMBINATIONS):
        try:
            with_settings(recipe, [f"{dimension.key}={dimension.draw(random_)}" for dimension in space])
            return
        except ConfigError as error:
            reason = reason or str(error).splitlines()[0]
    raise ConfigError(f"--space: no combination fits the recipe; the first tried failed by {reason}")


def _fits_alone(key: str, value: str) -> bool:
    """Whether a key takes a value at all, whatever the other keys say; False for an unknown key."""
    section, _, name = key.partition(".")
    field = Recipe.model_fields.get(section)
    if name and field is not None:
        field = getattr(field.annotation, "model_fields", {}).get(name)
    if field is None:
        return False
    # the text does nothing: Annotated wants something beside the type, and a plain field has nothing
    kind: Any = Annotated[(field.annotation, "", *field.metadata)]
    try:
        TypeAdapter(kind).validate_python(json.loads(value))
    except ValidationError:
        return False
    return True


def _parse(text: str) -> Dimension:
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not key or not raw:
        raise ConfigError(f"--space {text!r}: {_EXAMPLES}")
    found = _RANGE.fullmatch(raw)
    if found is None:
        return Dimension(key, text, choices=_choices(text, raw))
    kinds, low, high = found[1], _number(text, found[2]), _number(text, found[3])
    log, integer = "log:" in kinds, "int:" in kinds
    if low >= high:
        raise ConfigError(f"--space {text!r}: got {low:g}..{high:g}, expected the smaller number first")
    if log and low <= 0:
        raise ConfigError(f"--space {text!r}: a logarithmic range begins above 0, got {low:g}")
    if integer and (low % 1 or high % 1):
        raise ConfigError(f"--space {text!r}: int: needs whole numbers at both ends")
    return Dimension(key, text, low=low, high=high, log=log, integer=integer)


def _number(text: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ConfigError(f"--space {text!r}: {word.strip()!r} is not a number; {_EXAMPLES}") from None
    if not abs(value) < float("inf"):
        raise ConfigError(f"--space {text!r}: {word.strip()!r} is not a finite number")
    return value


def _choices(text: str, raw: str) -> tuple[str, ...]:
    try:
        values: Any = yaml.safe_load(f"[{raw}]")
        choices = tuple(json.dumps(_as_number(value), ensure_ascii=False) for value in values)
    except (yaml.YAMLError, TypeError):
        raise ConfigError(f"--space {text!r}: the values are not valid YAML; {_EXAMPLES}") from None
    if len(choices) < 2 or len(set(choices)) != len(choices):
        raise ConfigError(f"--space {text!r}: got {raw!r}, expected two values at least, all different; {_EXAMPLES}")
    return choices


def _as_number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text; here it is the number that was meant."""
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value
