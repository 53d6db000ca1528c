"""A figure's file."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from training import checkpoint


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    checkpoint.write(path, buffer.getvalue())
