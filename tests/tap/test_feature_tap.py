"""FeatureTap on small models of every kind it takes or refuses; real libraries are in tools/feature_tap_table.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels import FeatureTap, ICDLoss, NetworkOutput, make_objective
from icd_kernels.heads import head_parameters, is_linear
from icd_kernels.tap import TapError
from icd_kernels.tap.compiled import is_compiled
from icd_kernels.tap.views import candidates

CHANNELS, CLASSES = 6, 5


def body(*, inplace: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Conv2d(4, CHANNELS, 3, 2, 1), nn.ReLU(inplace)
    )


class Plain(nn.Module):
    """A CNN with pooling and dropout as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.features = body()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.drop(self.pool(self.features(images)).flatten(1)))


class Functional(Plain):
    """Pooling by a function."""

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.features(images).mean((2, 3)))


class Preactivated(Functional):
    """A ReLU by a function on the last module's output; in place or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(self.features)[:-1])
        self.inplace = inplace

    def forward(self, images: Tensor) -> Any:
        return self.fc(F.relu(self.features(images), inplace=self.inplace).mean((2, 3)))


class ConvolutionHead(Plain):
    """A 1 x 1 convolution as the head, after the pooling or before it."""

    def __init__(self, is_pooled_after: bool) -> None:
        super().__init__()
        self.fc = nn.Conv2d(CHANNELS, CLASSES, 1)  # type: ignore[assignment]
        self.is_pooled_after = is_pooled_after

    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        if self.is_pooled_after:
            return self.pool(self.fc(features)).flatten(1)
        return self.fc(self.pool(features)).flatten(1)


class Returning(Functional):
    """Logits within a tuple, a dict or an object."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        logits = self.fc(features.mean((2, 3)))
        if self.kind == "tuple":
            return logits, {"feats": [features]}
        return {"logits": logits} if self.kind == "dict" else type("Output", (), {"logits": logits})()


class ChannelsLast(Plain):
    """A map (B, H, W, C) out of a norm over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, images: Tensor) -> Any:
        return self.fc(self.norm(self.features(images).permute(0, 2, 3, 1)).mean((1, 2)))


class Transformer(nn.Module):
    """Patch tokens behind prefix tokens; pooled by their mean, or read from the class token."""

    def __init__(self, prefix: int = 1, pool: str = "avg") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, CHANNELS))
        self.block = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.GELU())
        self.norm = nn.LayerNorm(CHANNELS) if pool != "fc_norm" else nn.Identity()
        self.fc_norm = nn.LayerNorm(CHANNELS) if pool == "fc_norm" else nn.Identity()
        self.fc = nn.Linear(CHANNELS, CLASSES)
        self.pool = pool

    def forward(self, images: Tensor) -> Any:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.norm(self.block(torch.cat([self.prefix.expand(len(images), -1, -1), tokens], 1)))
        pooled = tokens[:, 0] if self.pool == "token" else tokens[:, self.prefix.shape[1] :].mean(1)
        return self.fc(self.fc_norm(pooled))


class Between(Plain):
    """Something between the mean and the classifier, or after it."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.norm = nn.LayerNorm(CHANNELS)
        self.hidden = nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.neck = nn.BatchNorm1d(CHANNELS)
        self.other = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        pooled = features.amax((2, 3)) if self.why == "max" else features.mean((2, 3))
        if self.why in ("norm", "hidden", "neck"):
            pooled = getattr(self, self.why)(pooled)
        if self.why == "two heads":
            return (self.fc(pooled) + self.other(pooled)) / 2
        logits = self.fc(pooled.view(pooled.size(0), -1))
        if self.why == "more than the mean":
            return logits + features.amax((1, 2, 3))[:, None]
        if self.why == "another branch":
            return torch.stack((logits, self.other(images.mean((2, 3)).repeat(1, 2)))).mean(0)
        if self.why == "the batch":
            return logits - logits.mean(0)
        return 2 * logits if self.why == "scaled" else logits


class PooledScores(nn.Module):
    """As torchvision's SqueezeNet: a classifier of every pixel, then a ReLU of its scores, then the pooling."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.features = body()
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(CHANNELS, CLASSES, 1), relu, nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, images: Tensor) -> Any:
        return self.classifier(self.features(images)).flatten(1)


class FunctionalPooledScores(ConvolutionHead):
    """The ReLU by a function, in place."""

    def __init__(self) -> None:
        super().__init__(is_pooled_after=True)

    def forward(self, images: Tensor) -> Any:
        return F.relu(self.fc(self.features(images)), inplace=True).mean((2, 3))


class CalledTwice(Plain):
    """The classifier is called once more, for other logits."""

    def forward(self, images: Tensor) -> Any:
        features = self.features(images)
        others = self.fc(features.amax((2, 3)))
        return self.fc(features.mean((2, 3))), others


CAPTURED: dict[str, tuple[Any, tuple[int, int]]] = {
    "plain": (Plain, (4, 6)),
    "functional pooling": (Functional, (4, 6)),
    "functional relu": (lambda: Preactivated(False), (4, 6)),
    "functional relu in place": (lambda: Preactivated(True), (4, 6)),
    "convolution head": (lambda: ConvolutionHead(False), (4, 6)),
    "convolution head pooled after": (lambda: ConvolutionHead(True), (4, 6)),
    "classifier called twice": (CalledTwice, (4, 6)),
    "tuple": (lambda: Returning("tuple"), (4, 6)),
    "dict": (lambda: Returning("dict"), (4, 6)),
    "object": (lambda: Returning("object"), (4, 6)),
    "channels last": (ChannelsLast, (4, 6)),
    "transformer": (Transformer, (4, 6)),
    "transformer with registers": (lambda: Transformer(prefix=5), (4, 6)),
    "transformer without prefix": (lambda: Transformer(prefix=0), (4, 6)),
    "transformer with a norm after": (lambda: Transformer(pool="fc_norm"), (4, 6)),
    "norm": (lambda: Between("norm"), (4, 6)),
    "hidden": (lambda: Between("hidden"), (4, 6)),
    "neck": (lambda: Between("neck"), (4, 6)),
    "scaled": (lambda: Between("scaled"), (4, 6)),
    "two heads": (lambda: Between("two heads"), (4, 6)),
    "scores of pixels": (lambda: PooledScores(nn.ReLU()), (4, 6)),
    "scores of pixels in place": (lambda: PooledScores(nn.ReLU(inplace=True)), (4, 6)),
    "scores of pixels by a function": (FunctionalPooledScores, (4, 6)),
}


def logits_of_means(out: NetworkOutput, features: Tensor | None = None) -> Tensor:
    """What the head says of the mean of the map, or of another."""
    assert out.features is not None
    assert out.head is not None
    mean = (out.features if features is None else features).mean((2, 3))
    if is_linear(out.head):
        return F.linear(mean, *head_parameters(out.head))
    head: Any = out.head
    return head(mean)


def images_of(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module, backend: str) -> nn.Module:
    made: Any = torch.compile(model, backend=backend)
    return made


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("name", CAPTURED)
class TestCaptured:
    def test_the_head_on_the_mean_of_the_map_gives_the_logits(self, name: str) -> None:
        make, grid = CAPTURED[name]
        model = make().eval()
        out = FeatureTap(model)(images_of())
        assert out.features is not None
        channels = CLASSES if name.startswith("scores") else CHANNELS
        assert out.features.shape == (3, channels, *grid)
        torch.testing.assert_close(logits_of_means(out), out.logits)

    def test_so_it_does_in_training_after_a_step(self, name: str) -> None:
        """Also where a part was the identity when it was fresh, and where it has statistics of the batch."""
        model = CAPTURED[name][0]()
        tap = FeatureTap(model, sample=images_of())
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        out = tap(images_of())
        after = {key: value.clone() for key, value in model.named_buffers()}
        torch.testing.assert_close(logits_of_means(out), out.logits)
        for key, value in model.named_buffers():
            assert torch.equal(value, after[key])
        assert not buffers or any(not torch.equal(after[key], value) for key, value in buffers.items())

    def test_gradients_reach_the_whole_model(self, name: str) -> None:
        model = CAPTURED[name][0]()
        out = FeatureTap(model)(images_of())
        assert out.features is not None
        loss = ICDLoss.released()(out.features, out.head, out.features.detach().roll(1, 0), out.head)
        loss.backward()
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        assert first.weight.grad is not None
        assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            Between("max"),
            r"no vector between the last map, 'features' .* is its mean; after it there is 'fc' \(Linear\)",
        ),
        (
            Between("more than the mean"),
            "between the mean of 'features' and the logits: the logits depend on more than",
        ),
        (Transformer(pool="token"), r"reads one token of the last map, 'norm'.*tokens=\"patches\""),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, CLASSES)), "no output of more than one pixel"),
    ],
)
def test_refused_with_the_reason(model: nn.Module, reason: str) -> None:
    with pytest.raises(TapError, match=reason):
        FeatureTap(model, sample=images_of())


def test_a_map_of_one_pixel_asks_for_larger_images() -> None:
    with pytest.raises(TapError, match="may leave one pixel: try larger ones"):
        FeatureTap(Plain(), sample=torch.randn(2, 3, 4, 4))


class TestTheProbeLeavesNoTrace:
    def test_modes_buffers_and_random_state(self) -> None:
        model = Plain()
        model.features[1].eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        FeatureTap(model, sample=images_of())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_hooks(self) -> None:
        model = Plain()

        def hooks() -> int:
            return sum(len(module._forward_hooks) for module in model.modules())

        with FeatureTap(model, sample=images_of()) as tap:
            assert hooks() == 0
            tap(images_of())
            assert hooks() == 0
            assert "'features' (channels first) → fc" in repr(tap)
        refused = Between("max")
        with pytest.raises(TapError):
            FeatureTap(refused, sample=images_of())
        assert not any(module._forward_hooks for module in refused.modules())


def test_every_view_of_tokens_leaves_one() -> None:
    views = candidates(torch.zeros(1, 3, 5), (8, 8), lambda count: None)
    assert {view.prefix for view in views} == {0, 1, 2}


class TestWrapped:
    def test_data_parallel_is_looked_into(self) -> None:
        model = Plain().eval()
        out = FeatureTap(nn.DataParallel(model))(images_of())
        assert out.head is model.fc
        torch.testing.assert_close(out.logits, model(images_of()))

    @pytest.mark.parametrize("is_tapped_first", [True, False])
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiled(self, backend: str, is_tapped_first: bool) -> None:
        torch._dynamo.reset()
        model = Functional().eval()
        expected = FeatureTap(model)(images_of())
        if is_tapped_first:
            tap = FeatureTap(model, sample=images_of())
            tap.model = compiled(model, backend)
        else:
            tap = FeatureTap(compiled(model, backend), sample=images_of())
        for _ in range(2):
            out = tap(images_of())
            torch.testing.assert_close(out.features, expected.features)
            torch.testing.assert_close(out.logits, expected.logits)

    def test_either_way_of_compiling_is_seen(self) -> None:
        in_place = Plain()
        assert not is_compiled(nn.Sequential(in_place))
        assert is_compiled(compiled(Plain(), "eager"))
        in_place.compile(backend="eager")
        assert is_compiled(nn.Sequential(in_place))

    def test_a_module_used_twice_is_no_map_before_its_last_call(self) -> None:
        class Shared(Functional):
            def forward(self, images: Tensor) -> Any:
                features = self.features(images)
                logits = self.fc(features.mean((2, 3)))
                self.features(images * 2)
                return logits

        with pytest.raises(TapError):
            FeatureTap(nn.Sequential(Shared()), sample=images_of()).probe(images_of())


class TestInUse:
    def test_a_training_step_equals_one_with_hooks_by_hand(self) -> None:
        teacher, student = Plain().eval(), Plain().eval()
        target = torch.tensor([0, 1, 2])
        objective = make_objective("icd-kd", num_classes=CLASSES)
        with torch.no_grad():
            teacher_out = FeatureTap(teacher)(images_of())
        objective(FeatureTap(student)(images_of()), teacher_out, target).total.backward()
        gradients = [parameter.grad.clone() for parameter in student.parameters() if parameter.grad is not None]
        student.zero_grad()
        features = student.features(images_of())
        logits = student.fc(features.mean((2, 3)))
        by_hand = type(teacher_out)(logits, features, student.fc)
        objective(by_hand, teacher_out, target).total.backward()
        for gradient, parameter in zip(gradients, student.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)

    def test_autocast(self) -> None:
        tap = FeatureTap(Plain(), sample=images_of())
        with torch.autocast("cpu", torch.bfloat16):
            out = tap(images_of())
        assert out.features is not None
        assert out.features.dtype == torch.bfloat16

    def test_a_model_with_an_autocast_of_its_own(self) -> None:
        class Cast(Plain):
            def forward(self, images: Tensor) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(images)

        model = Cast().eval()
        out = FeatureTap(model)(images_of())
        assert out.features is not None
        assert out.features.dtype == torch.bfloat16
        assert out.head is model.fc

    def test_other_sizes_than_the_probe(self) -> None:
        tap = FeatureTap(Transformer().eval(), sample=images_of())
        out = tap(torch.randn(1, 3, 32, 8))
        assert out.features is not None
        assert out.features.shape[2:] == (8, 2)


@pytest.mark.parametrize(
    ("model", "sample", "error", "message"),
    [
        ("resnet", None, TypeError, "model must be an nn.Module, got str"),
        (Plain(), "image", TypeError, "images must be a torch.Tensor"),
        (Plain(), torch.randn(3, 16, 24), ValueError, r"images must have shape \(B, 3, H, W\)"),
        (body(), images_of(), TapError, "model must return logits"),
    ],
)
def test_wrong_arguments(model: Any, sample: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FeatureTap(model, sample=sample)
