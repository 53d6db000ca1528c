"""Archives of data sets as their authors publish them: found in the user's folder, and checked before they are read."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import NamedTuple

from training.errors import UsageError

CHUNK = 1 << 20  # bytes


class Archive(NamedTuple):
    """A file and where to get it."""

    name: str
    md5: str
    url: str
    size: str

    def checked(self, folder: Path) -> Path:
        """Its path in `folder`.

        Raises:
            UsageError: it is not there, or it is another file; the message has the commands that get it.
        """
        path = folder / self.name
        if not path.is_file():
            raise UsageError(f"{path} is missing. {self.how_to_get(folder)}")
        md5 = _md5(path)
        if md5 != self.md5:
            raise UsageError(
                f"{path} is not the published archive, or was cut short: expected MD5 {self.md5}, got {md5}. "
                f"Delete it. {self.how_to_get(folder)}"
            )
        return path

    def how_to_get(self, folder: Path) -> str:
        """The commands that download it into `folder`."""
        place, file = shlex.quote(str(folder)), shlex.quote(str(folder / self.name))
        commands = f"  mkdir -p {place}\n  curl --fail --location --output {file} {self.url}"
        return f"Get it ({self.size}) and start again:\n{commands}"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
