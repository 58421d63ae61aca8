"""Recipes from YAML files and command-line overrides, typed by the dataclasses they fill."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path

from vqkern.terminal import one_line
from vqkern.training.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name or by the path of a YAML file, with `--optim.lr 5e-5` and the like applied.

    Raises:
        ValueError: no such recipe; not YAML; an unknown key or a value of another type, each named.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"recipe {name!r} does not exist; expected a .yaml file or one of "
            f"{', '.join(recipe_names())}"
        )
    described = _parse_yaml(path.read_text(encoding="utf-8"), f"recipe {str(path)!r}")
    if not isinstance(described, dict):
        raise ValueError(f"recipe {str(path)!r}: expected keys and values, got {described!r}")
    for key, value in _pairs(overrides or []):
        _set(described, key, value)
    try:
        return from_mapping(Recipe, described)
    except ValueError as error:
        raise ValueError(f"recipe {name}: {error}") from error


def from_mapping(cls: type, described: dict, where: str = "") -> typing.Any:
    """A dataclass of nested mappings, as YAML gives them.

    Raises:
        ValueError: an unknown or missing key, or a value of another type; named with its path.
    """
    hints = typing.get_type_hints(cls)
    for key in described:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"; did you mean {where}{near[0]}?" if near else f"; known: {', '.join(hints)}"
            raise ValueError(f"unknown key {where}{key}{hint}")
    missing = dataclasses.MISSING
    for entry in dataclasses.fields(cls):
        needed = entry.default is missing and entry.default_factory is missing
        if needed and entry.name not in described:
            raise ValueError(f"{where}{entry.name} is missing")
    return cls(**{k: _typed(hints[k], v, f"{where}{k}") for k, v in described.items()})


def to_mapping(recipe: Recipe) -> dict:
    """The recipe as JSON and YAML can hold it; `from_mapping(Recipe, ...)` gives it back."""
    return _plain(dataclasses.asdict(recipe))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as a YAML file."""
    return _yaml().safe_dump(to_mapping(recipe), sort_keys=False)


def with_defaults(cls: type, described: dict) -> dict:
    """A saved recipe with the defaults of the keys and sections that are younger than it."""
    found, hints = dict(described), typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    for entry in dataclasses.fields(cls):
        name, hint = entry.name, hints[entry.name]
        if name not in found:
            default = entry.default
            if entry.default_factory is not missing:
                default = entry.default_factory()
            if default is not missing:
                section = dataclasses.is_dataclass(default)
                found[name] = _plain(dataclasses.asdict(default) if section else default)
        elif dataclasses.is_dataclass(hint) and isinstance(found[name], dict):
            found[name] = with_defaults(hint, found[name])
    return found


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """`optim.lr: 0.1, now 0.2` for every value in which two recipes differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key}: {a!r}, now {b!r}")
    return found


def _typed(hint: typing.Any, value: typing.Any, where: str) -> typing.Any:
    if typing.get_origin(hint) is types.UnionType:
        if value is None:
            return None
        hint, *others = (kind for kind in typing.get_args(hint) if kind is not type(None))
        if isinstance(value, tuple(others)):
            return value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected keys and values, got {value!r}")
        return from_mapping(hint, value, f"{where}.")
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        counts = (len(value),) if kinds[-1] is ... else (len(kinds),)
        if not isinstance(value, list | tuple) or len(value) not in counts:
            raise ValueError(f"{where}: expected a list like {_name(hint)}, got {value!r}")
        return tuple(_typed(kinds[0], entry, where) for entry in value)
    if hint is float and isinstance(value, str):
        # YAML 1.1 takes 5e-5 for a string, since it has no dot.
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {_name(hint)}, got {value!r}")
    return value


def _name(hint: typing.Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, "keys and values" if hint is dict else str(hint))


def _pairs(arguments: list[str]) -> list[tuple[str, object]]:
    """--key value and --key=value, values read as YAML."""
    pairs, rest = [], list(arguments)
    while rest:
        key, equals, text = rest.pop(0).partition("=")
        if not key.startswith("--") or len(key) < 3:
            raise ValueError(f"expected --some.key VALUE, got {key!r}")
        if not equals:
            if not rest:
                raise ValueError(f"{key}: expected a value after it")
            text = rest.pop(0)
        pairs.append((key[2:], _parse_yaml(text, key)))
    return pairs


def _set(described: dict, key: str, value: object) -> None:
    *above, last = key.split(".")
    at = described
    for name in above:
        if at.get(name) is None:
            at[name] = {}
        at = at[name]
        if not isinstance(at, dict):
            raise ValueError(f"--{key}: {name} is not a group of settings")
    at[last] = value


def _parse_yaml(text: str, where: str) -> typing.Any:
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {one_line(error)}") from error


def _yaml() -> types.ModuleType:
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "recipes need PyYAML, which is not installed: pip install 'vqkern[train]'"
        ) from error
    return yaml


def _plain(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
