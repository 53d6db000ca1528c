"""Taps models of timm, torchvision and Hugging Face and writes what was taken or refused into docs/feature_tap.md.

`python tools/feature_tap_table.py [NAME ..]`, where the libraries are installed; with names, prints those alone.
Weights are random: what is looked for is the layout of a model, not what it has learnt. Every model that is taken makes
an optimiser step, and is then run in training mode, dropout aside: the head of the mean must give its logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn

from icd_kernels import FeatureTap, NetworkOutput
from icd_kernels.heads import head_parameters, is_linear
from icd_kernels.tap import TapError

DOCUMENT = Path(__file__).parents[1] / "docs/feature_tap.md"
BEGIN, END = "<!-- feature-tap: begin -->", "<!-- feature-tap: end -->"
MOST_OFF = 1e-3
"""Of the largest logit: how far the head of the mean may be from the logits, in float32 and training mode."""


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
HUGGING_FACE = _names("""
ResNet RegNet ConvNext ConvNextV2 MobileNetV1 MobileNetV2 EfficientNet Swin Swinv2 PoolFormer Pvt PvtV2 Levit FocalNet
Cvt ViT DeiT Beit Dinov2 MobileViT""")


class Model(NamedTuple):
    """A model of the table."""

    name: str
    make: Callable[[], nn.Module]


def models() -> Iterator[Model]:
    for name in TIMM:
        yield Model(f"timm `{name}`", lambda name=name: timm.create_model(name, num_classes=1000))  # type: ignore[misc]
    for name in TORCHVISION:
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield Model(
            f"torchvision `{name}`",
            lambda name=name, options=options: torchvision.models.get_model(name, **options),  # type: ignore[misc]
        )
    for name in HUGGING_FACE:
        yield Model(f"transformers `{name}`", lambda name=name: _hugging_face(name))  # type: ignore[misc]


def _hugging_face(name: str) -> nn.Module:
    kind = getattr(transformers, f"{name}ForImageClassification")
    return kind(kind.config_class(num_labels=10))


def image_side(model: nn.Module) -> int:
    """The side of the images a model is made for."""
    configuration = getattr(model, "pretrained_cfg", None)
    if configuration:
        return configuration["input_size"][-1]
    if isinstance(model, torchvision.models.Inception3):
        return 299
    side = getattr(getattr(model, "config", None), "image_size", 224)
    return side if isinstance(side, int) else 224


class Verdict(NamedTuple):
    """A line of the table, but for the model's name."""

    is_taken: bool
    text: str


def verdict(make: Callable[[], nn.Module], tokens: str) -> Verdict:
    """The map and where it was found, or the reason of the refusal."""
    torch.manual_seed(0)
    model = make()
    side = image_side(model)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        model.train()(images)  # statistics for the norms: without any, the map of a deep network may be 0
    try:
        tap = FeatureTap(model, images, tokens=tokens)
    except TapError as error:
        return Verdict(False, f"refused | | {error}")
    assert tap.found is not None
    for module in model.modules():
        for name in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    nn.functional.cross_entropy(tap(images).logits, torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    with torch.no_grad():
        out = tap(images)
        off = _off(out)
    assert out.features is not None
    shape = " x ".join(map(str, out.features.shape[1:]))
    view = "" if str(tap.found.view) == "channels first" else f" ({tap.found.view})"
    head = ", ".join(f"`{name}`" for name in tap.found.tail_names) or "the logits"
    is_right = off <= MOST_OFF or tokens == "patches"
    said = f"{off:.0e}" if tokens == "mean" else "by choice"
    return Verdict(is_right, f"{shape} | {said} | `{tap.found.map_name}`{view} → {head}")


def _off(out: NetworkOutput) -> float:
    """How far the head of the mean of the map is from the logits, over their largest."""
    assert out.features is not None
    mean = out.features.mean((2, 3))
    head: Callable[[Tensor], Tensor] = out.head  # type: ignore[assignment]
    if is_linear(out.head):
        weight, bias = head_parameters(out.head)  # type: ignore[arg-type]
        logits = nn.functional.linear(mean, weight, bias)
    else:
        logits = head(mean)
    return float((logits - out.logits).abs().max() / out.logits.abs().max())


def table(chosen: list[Model]) -> str:
    """Every model; those that are refused again with the patches in the class token's place."""
    lines = []
    counts = {name: [0, 0, 0] for name in ("vision", "transformers")}
    for model in chosen:
        found = verdict(model.make, "mean")
        count = counts["transformers" if model.name.startswith("transformers") else "vision"]
        count[0] += 1
        count[1] += found.is_taken
        text = found.text
        if text.startswith("refused"):
            found = verdict(model.make, "patches")
            if found.is_taken:
                text = f'{text}. With `tokens="patches"`: {found.text.replace(" | ", ", ")}'
        count[2] += found.is_taken
        lines.append(f"| {model.name} | {text} |")
        print(lines[-1], flush=True)
    said = [
        f'of {all_of_them} models of {what} {taken} are taken, {by_choice} with `tokens="patches"`'
        for what, (all_of_them, taken, by_choice) in zip(
            ("timm and torchvision", "transformers"), counts.values(), strict=True
        )
    ]
    head = (
        f"timm {timm.__version__}, torchvision {torchvision.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}: {'; '.join(said)}.\n\n"
        "| model | map | off | where, or why not |\n|---|---|---|---|\n"
    )
    return head + "\n".join(lines)


def main() -> int:
    chosen = [model for model in models() if not sys.argv[1:] or any(name in model.name for name in sys.argv[1:])]
    written = table(chosen)
    print(written.split("\n", 1)[0])
    if sys.argv[1:]:
        return 0
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{DOCUMENT} must hold {BEGIN} and {END}", file=sys.stderr)
        return 1
    DOCUMENT.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
