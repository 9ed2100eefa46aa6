"""Recipes from YAML: built-in names or files, inheritance by ``base:``, ``a.b=c`` overrides; errors name the key."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cmtvision.errors import ConfigError
from cmtvision.recipe.schema import Recipe

_MAX_BYTES = 1_000_000
_SECTIONS: dict[str, type[BaseModel]] = {
    name: kind
    for name, field in Recipe.model_fields.items()
    for kind in (field.annotation, *get_args(field.annotation))  # a section, or a section or None
    if isinstance(kind, type) and issubclass(kind, BaseModel)
}
_MAY_BE_MISSING = [name for name, field in Recipe.model_fields.items() if field.default is None]
_TOP = [*Recipe.model_fields, "base"]
_OPEN = ("augment.auto_augment=null", "augment.random_resized_crop=false", "schedule.epochs=1000000")
"""Settings beside which every other one makes sense, until they are chosen."""
_OPTIONS = "model.options."
"""What is free to choose: arguments of the model's constructor."""
_PATHS = [path for name in Recipe.model_fields for path in (
    [f"{name}.{key}" for key in _SECTIONS[name].model_fields] if name in _SECTIONS else [name]
)]  # fmt: skip


def load_recipe(name_or_path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_path: a built-in name (see ``list_recipes``), a YAML file, or None for the recipe named 'default'.
        overrides: ``section.key=value`` strings; the value is read as YAML, so ``null``, ``[1, 2]``, ``5e-4`` work.

    Raises:
        ConfigError: no such recipe, not YAML, unknown or repeated key, or values that do not fit; one line for each.
    """
    reference = "default" if name_or_path is None else name_or_path
    data = _read(reference, folder=None, chain=())
    for override in overrides:
        _apply(data, override)
    if isinstance(reference, Path) or _is_path(str(reference)):
        data.setdefault("name", Path(reference).stem)
    return _validated(data)


def load_asked(name_or_path: str | Path | None, overrides: Sequence[str]) -> Recipe:
    """The recipe before anything is chosen: the named one; for None one that contradicts no setting.

    Raises:
        ConfigError: as ``load_recipe`` does.
    """
    return load_recipe(name_or_path, [*(_OPEN if name_or_path is None else ()), *overrides])


def given_settings(name_or_path: str | Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What ``a.b=c`` strings set, by 'section.key', each value as ``load_asked`` has it then.

    Raises:
        ConfigError: as ``load_recipe`` does.
    """
    recipe = load_asked(name_or_path, overrides)
    given = {}
    for override in overrides:
        key = override.partition("=")[0].strip()
        section, dot, inner = ("model.options" if key.startswith(_OPTIONS) else key).partition(".")
        given[f"{section}{dot}{inner}"] = getattr(getattr(recipe, section), inner) if dot else getattr(recipe, section)
    return given


def with_settings(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with some settings changed, by ``section.key=value`` strings.

    Raises:
        ConfigError: as ``load_recipe`` does.
    """
    data = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(data, override)
    return _validated(data)


def list_recipes() -> dict[str, str]:
    """Every built-in recipe's name with the first line of its description."""
    found = {}
    for name in _builtin_names():
        lines = str(_parse(_builtin_text(name), name).get("description", "")).strip().splitlines()
        found[name] = lines[0] if lines else ""
    return found


def recipe_comment(name_or_path: str | Path) -> str:
    """The comment that a recipe's file opens with (its command, cost, accuracy to expect), '#' included; '' for none.

    Raises:
        ConfigError: no such recipe.
    """
    reference = str(name_or_path)
    if isinstance(name_or_path, Path) or _is_path(reference):
        text = _file_text(Path(name_or_path))
    elif reference in _builtin_names():
        text = _builtin_text(reference)
    else:
        raise _unknown(reference)
    return "\n".join(takewhile(lambda line: line.startswith("#"), text.splitlines()))


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; ``load_recipe`` of it gives an equal recipe."""
    values = recipe.model_dump(mode="json")
    if values["scene"] is None:  # a classifier's recipe says nothing of what it has not
        del values["scene"]
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


class _Dumper(yaml.SafeDumper):
    """safe_dump that writes a text of several lines as they are."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _validated(data: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, data))) from None


class _Loader(yaml.SafeLoader):
    """safe_load that refuses a key given twice; PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key_node.value!r} is given twice; keep one")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _builtin_names() -> list[str]:
    folder = resources.files("cmtvision.recipe") / "builtin"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _builtin_text(name: str) -> str:
    return (resources.files("cmtvision.recipe") / "builtin" / f"{name}.yaml").read_text(encoding="utf-8")


def _is_path(reference: str) -> bool:
    return reference.endswith((".yaml", ".yml")) or "/" in reference or "\\" in reference


def _read(reference: str | Path, folder: Path | None, chain: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a recipe merged over those of its base; ``folder`` is where a relative base is looked for."""
    if isinstance(reference, Path) or _is_path(reference):
        path = Path(reference) if folder is None else folder / reference
        text, label, next_folder = _file_text(path), str(path), path.parent
        identity = str(path.resolve())
    else:
        if reference not in _builtin_names():
            raise _unknown(reference)
        text, label, next_folder = _builtin_text(reference), reference, folder or Path()
        identity = reference
    if identity in chain:
        raise ConfigError(f"recipe {label}: its base leads back to itself ({' -> '.join([*chain, identity])})")
    data = _parse(text, label)
    _check_keys(data, label)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"recipe {label}: base: got {base!r}, expected a recipe's name or file")
    merged = _read(base, next_folder, (*chain, identity))
    # A derived recipe is another recipe: it never shows its base's name and description as its own.
    merged.pop("name", None)
    merged.pop("description", None)
    return _merge(merged, data)


def _unknown(reference: str) -> ConfigError:
    names = _builtin_names()
    return ConfigError(
        f"unknown recipe {reference!r}{_did_you_mean(reference, names)}; "
        f"known: {', '.join(names)}, or the path of a .yaml file"
    )


def _file_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"recipe file {path} does not exist; built-in recipes: {', '.join(_builtin_names())}")
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"recipe file {path} is over {_MAX_BYTES:,} bytes; a recipe is a page of YAML")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe file {path} cannot be read as text: {error}") from None


def _parse(text: str, label: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"recipe {label}: {error}") from None
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ConfigError(f"recipe {label} is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {label}: got {type(data).__name__}, expected keys such as 'model:' and 'train:'")
    # A section with nothing under it is an empty one.
    return {key: {} if key in _SECTIONS and value is None else value for key, value in data.items()}


def _check_keys(data: Mapping[str, Any], label: str) -> None:
    for key, value in data.items():
        if key not in _TOP:
            raise ConfigError(f"recipe {label}: unknown key {str(key)!r}{_suggest(str(key))}")
        if key in _SECTIONS and isinstance(value, dict):
            for inner in value:
                if inner not in _SECTIONS[key].model_fields:
                    path = f"{key}.{inner}"
                    raise ConfigError(f"recipe {label}: unknown key {path!r}{_suggest(path)}")


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one ``a.b=c`` in place."""
    key, equals, raw = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected section.key=value, for example optim.lr=1e-3")
    if key in _SECTIONS and not (key in _MAY_BE_MISSING and raw.split()[:1] in ([], ["~"], ["null"])):
        raise ConfigError(f"override {override!r}: {key!r} is a section; set one of its keys, for example "
                          f"{key}.{next(iter(_SECTIONS[key].model_fields))}=...")  # fmt: skip
    option = key.removeprefix(_OPTIONS) if key.startswith(_OPTIONS) else ""
    if key not in (*_PATHS, *_MAY_BE_MISSING) and not option:
        raise ConfigError(f"override {override!r}: unknown key {key!r}{_suggest(key)}")
    try:
        value = yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, ConfigError):
        raise ConfigError(f"override {override!r}: the value is not valid YAML; quote it if it is text") from None
    if option:
        model = data["model"] = dict(data.get("model") or {})
        model["options"] = {**(model.get("options") or {}), option: value}
        return
    section, dot, inner = key.partition(".")
    if not dot:
        data[section] = value
        return
    if not isinstance(data.get(section), dict):
        data[section] = {}
    data[section][inner] = value


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _suggest(path: str) -> str:
    """The nearest full path: first by the path as written, then by its last word in any section."""
    close = get_close_matches(path, [*_PATHS, *_SECTIONS], n=1, cutoff=0.75)
    if not close:
        last = path.rpartition(".")[2]
        words = get_close_matches(last, [known.rpartition(".")[2] for known in _PATHS], n=1, cutoff=0.7)
        close = [known for known in _PATHS if words and known.rpartition(".")[2] == words[0]]
    return f"; did you mean {close[0]!r}?" if close else f"; the sections are {', '.join(_SECTIONS)}"


def _lines(error: ValidationError, data: Mapping[str, Any]) -> Iterator[str]:
    """One line per key: path, what was given, what is expected (the branches of a union joined by 'or')."""
    expectations: dict[tuple[str, ...], list[str]] = {}
    for item in error.errors():
        depth = 2 if item["loc"] and item["loc"][0] in _SECTIONS else 1
        path = tuple(str(part) for part in item["loc"][:depth])
        expected = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        expected = expected.partition(", unable to parse")[0].partition(" or instance of")[0]
        if (item["type"] == "value_error" and len(path) < depth) or not path:
            yield ".".join([*path, expected])  # a check across keys names its key and values itself
            continue
        if item["type"] in ("missing", "too_long", "too_short"):
            expected = "another number of values"
        wanted = expectations.setdefault(path, [])
        if expected not in wanted:
            wanted.append(expected)
    for path, wanted in expectations.items():
        got: Any = data
        for part in path:
            got = got.get(part) if isinstance(got, Mapping) else got
        yield f"{'.'.join(path)}: got {got!r}, expected {' or '.join(wanted)}"
