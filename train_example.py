"""Distils a small CNN from a larger one on real images, by any method of the paper's table. See --help."""

from __future__ import annotations

import shlex
import signal
import sys
from types import FrameType

from training.errors import UsageError
from training.options import parse

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    options = parse(arguments)
    try:
        from training.experiment import run  # here, so that --help and wrong options need no PyTorch

        run(options)
    except ModuleNotFoundError as error:
        return _failed(f"{error}. Install it: python -m pip install {error.name}")
    except (UsageError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        same = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
        command = shlex.join(["python", sys.argv[0], *same, "--resume"])
        print(f"\nInterrupted. Every finished epoch is saved. Go on with:\n  {command}")
        return INTERRUPTED
    return 0


def _failed(message: str) -> int:
    print(f"train_example.py: error: {message}", file=sys.stderr)
    return 2


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # a polite kill ends like Ctrl-C
    sys.exit(main(sys.argv[1:]))
