"""Taps models of timm and torchvision and writes what was captured or refused into docs/feature_tap.md.

`python tools/feature_tap_table.py`, where both libraries are installed. Weights are random: what is looked for is the
layout of a model, not what it has learnt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from icd_kernels import FeatureTap
from icd_kernels.tap import TapError

DOCUMENT = Path(__file__).parents[1] / "docs/feature_tap.md"
BEGIN, END = "<!-- feature-tap: begin -->", "<!-- feature-tap: end -->"


def _names(text: str) -> list[str]:
    return text.split()


TIMM = _names("""
resnet18 resnet50d resnetv2_50 wide_resnet50_2 resnext50_32x4d res2net50_26w_4s seresnet50 densenet121 vgg11_bn
mobilenetv2_050 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_b0 efficientnetv2_rw_t regnety_004
convnext_atto convnextv2_atto dla34 hrnet_w18_small repvgg_a0 dm_nfnet_f0 inception_v3 inception_v4 xception41
cspresnet50 mnasnet_100
rexnet_100 ghostnet_100 edgenext_xx_small efficientformer_l1 levit_128s fastvit_t8 mobileone_s0 poolformer_s12
resmlp_12_224 mixer_s32_224 vit_tiny_patch16_224 vit_base_patch16_rpn_224 deit_tiny_patch16_224
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 maxvit_tiny_rw_224 coatnet_0_rw_224 cait_xxs24_224
xcit_nano_12_p16_224 beit_base_patch16_224 eva02_tiny_patch14_224 pvt_v2_b0 tiny_vit_5m_224 visformer_tiny
vit_relpos_small_patch16_224 gmlp_s16_224 nest_tiny twins_svt_small crossvit_tiny_240""")
TORCHVISION = _names("""
resnet18 resnext50_32x4d wide_resnet50_2 densenet121 vgg11_bn mobilenet_v2 mobilenet_v3_small
shufflenet_v2_x1_0 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny mnasnet0_5 googlenet inception_v3
squeezenet1_0 vit_b_16 swin_t maxvit_t""")


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for name in TIMM:
        yield f"timm `{name}`", lambda name=name: timm.create_model(name, num_classes=1000)


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for name in TORCHVISION:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield f"torchvision `{name}`", lambda name=name, options=options: torchvision.models.get_model(name, **options)


def image_side(model: nn.Module) -> int:
    """The side of the images a model is made for."""
    configuration = getattr(model, "pretrained_cfg", None)
    return configuration["input_size"][-1] if configuration else 224


def verdict(make: Callable[[], nn.Module]) -> tuple[str, bool]:
    """The captured map and where it was found, or the reason of the refusal."""
    torch.manual_seed(0)
    model = make().eval()
    side = image_side(model)
    images = torch.randn(2, 3, side, side)
    try:
        with FeatureTap(model) as tap, torch.no_grad():
            out = tap(images)
            assert tap.found is not None
            assert out.features is not None
            shape = " x ".join(map(str, out.features.shape[1:]))
            view = "" if str(tap.found.view) == "channels first" else f" ({tap.found.view})"
            return f"{shape} | `{tap.found.map_name}`{view} → `{tap.found.head_name}`", True
    except TapError as error:
        return f"refused | {error}", False


def table() -> str:
    lines, captured = [], 0
    models = [*timm_models(), *torchvision_models()]
    for name, make in models:
        found, is_captured = verdict(make)
        captured += is_captured
        lines.append(f"| {name} | {found} |")
        print(lines[-1], flush=True)
    head = (
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, torch {torch.__version__}: of {len(models)} "
        f"models {captured} are captured and {len(models) - captured} refused.\n\n"
        "| model | map | where, or why not |\n|---|---|---|\n"
    )
    return head + "\n".join(lines)


def main() -> int:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{DOCUMENT} must hold {BEGIN} and {END}", file=sys.stderr)
        return 1
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
