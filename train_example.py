"""Distils a small CNN from a larger one on real images, by any method of the paper's table. See --help."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

from training.errors import UsageError
from training.options import parse
from training.processes import Processes, ToldByFirstError

FAILED = 2  # as argparse has it
INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended
FIRST_SAYS = 5.0  # seconds


def main(arguments: list[str]) -> int:
    """Runs the command line. Returns the exit status."""
    options = parse(arguments)
    try:
        from training.experiment import run  # here, so that --help and wrong options need no PyTorch

        run(options, Processes.from_environment())
    except ModuleNotFoundError as error:
        return _failed(f"{error}. Install it: python -m pip install {error.name}")
    except ToldByFirstError:
        return _wait_to_be_ended()
    except (UsageError, OSError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        _say_how_to_go_on(arguments, Processes.from_environment())
        return INTERRUPTED
    return 0


def _wait_to_be_ended() -> int:
    """Leaves the first process time to say what is wrong: when one has ended, torchrun ends the others."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(FIRST_SAYS)
    return FAILED


def _say_how_to_go_on(arguments: list[str], processes: Processes) -> None:
    if not processes.is_first:
        return
    alone = processes.world_size == 1
    launcher = ["python"] if alone else ["torchrun", "--nproc-per-node", str(processes.local_world_size)]
    same = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    command = shlex.join([*launcher, sys.argv[0], *same, "--resume"])
    print(f"\nInterrupted. Every finished epoch is saved. Go on with:\n  {command}")


def _failed(message: str) -> int:
    print(f"train_example.py: error: {message}", file=sys.stderr)
    return FAILED


def _exit(status: int) -> NoReturn:
    """Ends one of several processes before the interpreter does, where gloo may have a thread and torch then aborts."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # a polite kill ends like Ctrl-C
    _exit(main(sys.argv[1:]))
