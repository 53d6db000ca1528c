"""From the text of an option to its value; a wrong one gets an error that says what it may be."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from training.options.names import DATA, FOLDER_PREFIX, LIBRARIES, METHODS, NETWORKS


def positive_int(text: str) -> int:
    return _checked(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def count_or_all(text: str) -> int | None:
    if text == "all":
        return None
    return _checked(text, int, lambda value: value >= 1, "all, or a whole number of 1 or more")


def data(text: str) -> str:
    is_folder = text.startswith(FOLDER_PREFIX) and text != FOLDER_PREFIX
    if text not in DATA and not is_folder:
        raise argparse.ArgumentTypeError(f"must be {', '.join(DATA)} or {FOLDER_PREFIX}PATH, got {text!r}")
    return text


def network(text: str) -> str:
    library, _, name = text.partition(":")
    if text not in NETWORKS and not (library in LIBRARIES and name):
        raise argparse.ArgumentTypeError(f"must be {', '.join(NETWORKS)}, torchvision:NAME or timm:NAME, got {text!r}")
    return text


def natural(text: str) -> int:
    return _checked(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def batch_size(text: str) -> int:
    return _checked(text, int, lambda value: value >= 2, "a whole number of 2 or more")


def positive(text: str) -> float:
    return _checked(text, float, lambda value: value > 0, "a finite number above 0")


def non_negative(text: str) -> float:
    return _checked(text, float, lambda value: value >= 0, "a finite number of 0 or more")


def share(text: str) -> float:
    return _checked(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _checked(text: str, kind: type, accepted: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not accepted(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return value


def list_of(item: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        return tuple(item(part) for part in text.split(","))

    return parse_list


def methods(text: str) -> tuple[str, ...]:
    chosen = METHODS if text == "all" else tuple(text.split(","))
    if not set(chosen) <= set(METHODS) or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"must be all, or some of {', '.join(METHODS)}, with commas, got {text!r}")
    return chosen


def device(text: str) -> str:
    index = text.removeprefix("cuda:")
    if text in ("auto", "cpu", "cuda") or (index != text and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
