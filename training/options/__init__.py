"""The command line: every option, its default, its unit and what it is for."""

from training.options.command_line import make_parser, parse
from training.options.names import (
    DATA,
    FOLDER_PREFIX,
    LIBRARIES,
    METHODS,
    NETWORKS,
    NO_DISTILLATION,
    PACKAGED_DATA,
    PRESETS,
    SMALL,
)
from training.options.namespace import Options

__all__ = [
    "DATA",
    "FOLDER_PREFIX",
    "LIBRARIES",
    "METHODS",
    "NETWORKS",
    "NO_DISTILLATION",
    "PACKAGED_DATA",
    "PRESETS",
    "SMALL",
    "Options",
    "make_parser",
    "parse",
]
