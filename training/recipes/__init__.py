"""Recipes: JSON files with options by their names, read as if they stood first on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import UsageError

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Those that come with the example: data, teacher and student of a column of the paper's tables."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def recipe_arguments(recipe: str) -> tuple[str, ...]:
    """A recipe as arguments.

    Args:
        recipe: one of `recipe_names()`, or the path of a file that ends in .json.

    Raises:
        UsageError: there is no such recipe, or it is not an object of options.
    """
    path = Path(recipe) if recipe.endswith(".json") else FOLDER / f"{recipe}.json"
    if not path.is_file():
        raise UsageError(
            f"--recipe must be a path that ends in .json or one of {', '.join(recipe_names())}, got {recipe!r}"
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"--recipe: {path} is not JSON ({error})") from error
    if not isinstance(content, dict) or "recipe" in content:
        raise UsageError(f'--recipe: {path} must hold one object of options, such as {{"epochs": 240}}, no recipe')
    return tuple(argument for name, value in content.items() for argument in _option(name, value))


def _option(name: str, value: Any) -> tuple[str, ...]:
    """One option: true and false for switches, lists for values with commas."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{dashed}" if value else f"--no-{dashed}",)
    return (f"--{dashed}", ",".join(map(str, value)) if isinstance(value, list) else str(value))
