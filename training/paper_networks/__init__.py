"""The networks of the paper's tables, untrained, for images of 32 x 32 (or about) and of 224 x 224.

Each is made from the images' channels and side as a body and the channels of its map; the head comes with `Network`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from training.paper_networks.mobilenet_v2 import mobilenet_v2
from training.paper_networks.resnet import resnet32x4, resnet50
from training.paper_networks.shufflenet_v1 import shufflenet_v1
from training.paper_networks.shufflenet_v2 import shufflenet_v2
from training.paper_networks.vgg import vgg8, vgg13
from training.paper_networks.wide_resnet import wide_resnet_40_2

BODIES: dict[str, Callable[[int, int], tuple[nn.Module, int]]] = {
    "resnet32x4": resnet32x4,
    "resnet50": resnet50,
    "wrn-40-2": wide_resnet_40_2,
    "vgg13": vgg13,
    "vgg8": vgg8,
    "mobilenetv2": mobilenet_v2,
    "shufflenetv1": shufflenet_v1,
    "shufflenetv2": shufflenet_v2,
}
"""By the names of --teacher and --student."""
