"""Options of the teacher."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.options import values
from training.options.names import SMALL


def add_teacher(group: argparse._ArgumentGroup) -> None:
    """Its network, its training, and where it is kept."""
    add = group.add_argument
    add(
        "--teacher",
        type=values.network,
        default=SMALL,
        metavar="NAME",
        help="the teacher's network: small (240,000 weights), or another as for --student (default: %(default)s)",
    )
    add(
        "--pretrained",
        action="store_true",
        help="the teacher, of timm or torchvision, starts from the weights that they publish, which the machine has or "
        "can fetch; a head for other classes is new; it sees images as these weights want them normalised (default: "
        "off)",
    )
    add(
        "--teacher-mean",
        type=values.list_of(values.share),
        metavar="LIST",
        help="what the teacher's images are normalised by, one value a channel or one for all, black 0 and white 1 "
        "(default: as the student's; with --pretrained as its weights want it)",
    )
    add(
        "--teacher-std",
        type=values.list_of(values.positive),
        metavar="LIST",
        help="as --teacher-mean, the deviation; both or neither (default: as there)",
    )
    add(
        "--teacher-epochs",
        type=values.natural,
        default=12,
        metavar="N",
        help="passes of the teacher over all training images; 0 takes --pretrained weights as they are (default: "
        "%(default)s epochs)",
    )
    add(
        "--teacher-lr",
        type=values.positive,
        default=0.1,
        metavar="X",
        help="as --lr, always along a cosine (default: %(default)s)",
    )
    add(
        "--teacher-seed",
        type=values.natural,
        default=0,
        metavar="N",
        help="the teacher's own seed (default: %(default)s)",
    )
    add(
        "--teacher-checkpoint",
        type=Path,
        metavar="FILE",
        help="the teacher's trained weights, as torch.save or safetensors writes a state_dict, by itself or under "
        "model, state_dict or network; it is not trained then, and --teacher says which network it is; mdistiller's of "
        "resnet32x4, resnet50, wrn-40-2 and vgg13 are taken too (default: none)",
    )
    add(
        "--cache-teacher",
        action="store_true",
        help="run the teacher once on every training image and keep its logits and local logits, in float16, beside it "
        "in --cache; students then see the images unchanged: not moved, cropped at random or mirrored. Not for sp and "
        "crd, which read its maps (default: off)",
    )
    add(
        "--cache",
        type=Path,
        default=Path("runs/teachers"),
        metavar="FOLDER",
        help="where trained teachers are kept, one file for each set of settings (default: %(default)s)",
    )
