"""What users reported of taps: checkpointing, copies, replicas, threads, layouts, and clear errors."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tapped import CLASSES, images_of, net, off, train
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from icd_kernels import FeatureTap
from icd_kernels.tap import TapError
from icd_kernels.tap.feature_tap import check_same_gpu


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Stages(nn.Module):
    """As timm's networks do with gradient checkpointing: blocks are called in place of their stage."""

    def __init__(self, *, use_reentrant: bool = False, pools_within: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()))
        self.fc = nn.Linear(8, CLASSES)
        self.is_checkpointed = False
        self.use_reentrant = use_reentrant
        self.pools_within = pools_within

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        if not self.is_checkpointed:
            maps = self.stage(maps).mean((2, 3))
        elif self.pools_within:
            maps = checkpoint(lambda x: self.stage(x).mean((2, 3)), maps, use_reentrant=self.use_reentrant)
        else:
            for block in self.stage:
                maps = checkpoint(block, maps, use_reentrant=self.use_reentrant)
            maps = maps.mean((2, 3))
        out: Tensor = self.fc(maps)
        return out


class TestCheckpointing:
    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_switched_on_after_the_probe(self, use_reentrant: bool) -> None:
        model = Stages(use_reentrant=use_reentrant)
        tap = FeatureTap(model, images_of())
        model.is_checkpointed = True
        out = tap(images_of())
        assert off(out) < 1e-5
        assert out.features is not None
        assert out.features.requires_grad

    def test_not_reentrant_around_the_pooling(self) -> None:
        model = Stages(pools_within=True)
        model.is_checkpointed = True
        out = FeatureTap(model)(images_of())
        assert out.features is not None
        (gradient,) = torch.autograd.grad(out.features.sum(), model.stem.weight)
        assert gradient.abs().sum() > 0

    def test_reentrant_around_the_pooling_is_an_error(self) -> None:
        """The map would have no history, and iCD would train the head alone."""
        model = Stages(use_reentrant=True, pools_within=True)
        model.is_checkpointed = True
        with pytest.raises(RuntimeError, match=r"the map has no history .* pass use_reentrant=False"):
            FeatureTap(model)(images_of())
        with torch.no_grad():
            assert off(FeatureTap(model)(images_of())) < 1e-5

    def test_a_frozen_body_is_none(self) -> None:
        model = net(nn.Linear(8, CLASSES))
        model[0].requires_grad_(False)
        out = FeatureTap(model)(images_of())
        assert out.features is not None
        assert not out.features.requires_grad
        assert out.logits.requires_grad


@pytest.mark.parametrize("conversion", ["sync", "frozen", "eval of norms"])
def test_norms_that_are_converted_after_the_probe(conversion: str) -> None:
    model: nn.Module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    tap = FeatureTap(model, images_of())
    if conversion == "sync":
        tap.model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    elif conversion == "frozen":
        model.get_submodule("1").requires_grad_(False).eval()
    else:
        model.set_submodule("1", nn.Identity())
    assert off(tap(images_of())) < 1e-5


class TestCopies:
    """EMA and best checkpoints copy the inner model; nothing of a tap may hang in it."""

    @pytest.fixture(scope="class")
    def process_group(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        file = tmp_path_factory.mktemp("group") / "file"
        torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    def check(self, model: nn.Module) -> None:
        copied = copy.deepcopy(model)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (copied, loaded):
            assert_close(other(images_of()), model(images_of()))
            assert off(FeatureTap(other)(images_of())) < 1e-5

    def test_of_a_plain_model(self) -> None:
        model = net(nn.Linear(8, CLASSES)).eval()
        FeatureTap(model)(images_of())
        self.check(model)

    def test_inside_ddp(self, process_group: None) -> None:
        model = net(nn.Linear(8, CLASSES))
        wrapped = nn.parallel.DistributedDataParallel(model)
        out = FeatureTap(wrapped)(images_of())
        assert off(out) < 1e-5
        out.logits.sum().backward()
        self.check(wrapped.module)

    def test_inside_compile(self) -> None:
        torch._dynamo.reset()
        model = net(nn.Linear(8, CLASSES)).eval()
        wrapped: Any = torch.compile(model, backend="eager")
        tap = FeatureTap(wrapped, images_of())
        assert off(tap(images_of())) < 1e-5
        torch._dynamo.reset()
        self.check(model)
        assert off(tap(images_of())) < 1e-5

    def test_a_head_of_two_layers_inside_compile(self) -> None:
        torch._dynamo.reset()
        model = net(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES)))
        tap = FeatureTap(torch.compile(model, backend="eager"), images_of())  # type: ignore[arg-type]
        train(model, tap)
        assert off(tap(images_of())) < 1e-5


def test_replicas_of_data_parallel_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"images are on cuda:1 and the tapped model on cuda:0: inside nn.Data"):
        check_same_gpu(torch.device("cuda:1"), torch.device("cuda:0"))
    check_same_gpu(torch.device("cuda:1"), torch.device("cuda:1"))
    check_same_gpu(torch.device("cpu"), torch.device("cuda:0"))


def test_four_threads_call_one_tap() -> None:
    model = net(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES))).eval()
    tap = FeatureTap(model, images_of())
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(30):
                images = images_of() * (1 + number)
                with torch.no_grad():
                    out = tap(images)
                    expected = model(images)
                assert_close(out.logits, expected)
                assert off(out) < 1e-4
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class TestScripted:
    def model(self, place: int) -> nn.Sequential:
        scripted: Any = torch.jit.script(Activation())
        layers: list[Any] = [
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ]
        layers.insert(place, scripted)
        return nn.Sequential(*layers)

    def test_before_the_map(self) -> None:
        assert off(FeatureTap(self.model(1))(images_of())) < 1e-5

    def test_after_the_pooling_is_refused_and_leaves_no_hook(self) -> None:
        model = self.model(4)
        with pytest.raises(TapError, match="not made of the pooled vector by PyTorch's functions alone"):
            FeatureTap(model)(images_of())
        assert not any(module._forward_hooks for module in model.modules())


class Patches(nn.Module):
    """A transformer whose tokens average; its norm's bias is not 0, its patches need not be square."""

    def __init__(self, patch: tuple[int, int] = (4, 4), pool: str = "mean") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        nn.init.normal_(self.norm.bias, 3.0)
        self.fc_norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, CLASSES)
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat((self.token.expand(len(images), -1, -1), tokens), 1))
        pooled = tokens[:, 0] if self.pool == "token" else tokens[:, 1:].mean(1)
        out: Tensor = self.fc(self.fc_norm(pooled))
        return out


class TestTokens:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_prefix_that_fits_best(self, dtype: torch.dtype) -> None:
        """With a bias the tokens are alike, and in bfloat16 the mean with the class token is within the tolerance."""
        model = Patches().eval().to(dtype)
        tap = FeatureTap(model, images_of(4, 32, 32).to(dtype))
        assert tap.found is not None
        assert tap.found.view.prefix == 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_so_it_does_where_no_embedding_tells(self, dtype: torch.dtype) -> None:
        """Patches that are unfolded rather than convolved."""

        class Unfolded(Patches):
            def forward(self, images: Tensor) -> Tensor:
                tokens = F.unfold(images[:, :, :16, :16], 4, stride=4)[:, :8].transpose(1, 2)
                tokens = self.norm(torch.cat((self.token.expand(len(images), -1, -1), tokens), 1))
                out: Tensor = self.fc(tokens[:, 1:].mean(1))
                return out

        tap = FeatureTap(Unfolded().eval().to(dtype), images_of(4, 32, 32).to(dtype))
        assert tap.found is not None
        assert tap.found.view.prefix == 1

    @pytest.mark.parametrize(("patch", "size", "grid"), [((8, 16), (224, 224), (28, 14)), ((2, 4), (16, 16), (8, 4))])
    def test_patches_that_are_not_square(
        self, patch: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]
    ) -> None:
        model = Patches(patch).eval()
        tap = FeatureTap(model)
        images = images_of(2, *size)
        out = tap(images)
        assert out.features is not None
        assert out.features.shape[2:] == grid
        expected = model.patches(images)
        tokens = model.norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert_close(out.features, tokens)
        assert tap(images_of(2, 2 * size[0], size[1])).features.shape[2:] == (2 * grid[0], grid[1])  # type: ignore[union-attr]

    def test_patches_for_the_class_token(self) -> None:
        """The network's own head on the mean of the patches, in training mode too."""
        model = Patches(pool="token")
        with pytest.raises(TapError, match=r'reads one token.*tokens="patches"'):
            FeatureTap(model, images_of())
        tap = FeatureTap(model, tokens="patches")
        train(model, tap)
        out = tap(images_of())
        assert out.features is not None
        head: Any = out.head
        assert out.features.shape == (4, 8, 4, 4)
        assert_close(head(out.features.mean((2, 3))), model.fc(model.fc_norm(out.features.mean((2, 3)))))
        assert_close(out.logits, model(images_of()))

    def test_the_choice_is_checked(self) -> None:
        with pytest.raises(ValueError, match=r"tokens must be one of \('mean', 'patches'\), got 'all'"):
            FeatureTap(Patches(), tokens="all")


class Conditioned(nn.Module):
    """A model with further inputs, which returns an object with logits as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.embedding = nn.Embedding(4, 8)
        self.act = nn.ReLU()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, pixel_values: Tensor, domain: Tensor, *, scale: float = 1.0) -> Any:
        maps = scale * self.body(pixel_values) + self.embedding(domain)[:, :, None, None]
        return type("Output", (), {"logits": self.fc(self.act(maps).mean((2, 3)))})()


def test_further_inputs() -> None:
    model, domain = Conditioned(), torch.tensor([0, 1, 2, 3])
    out = FeatureTap(model)(images_of(), domain=domain, scale=2.0)
    assert off(out) < 1e-5
    assert_close(out.logits, model(images_of(), domain, scale=2.0).logits)


class WithinDevice(nn.Module):
    """A model that has a mode of PyTorch's functions on while it makes its map, and leaves it after."""

    def __init__(self, *, is_around_all: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES))
        self.is_around_all = is_around_all

    def forward(self, images: Tensor) -> Tensor:
        with torch.device("cpu"):
            maps = self.body(images)
            out: Tensor
            if self.is_around_all:
                out = self.head(maps.mean((2, 3)))
                return out
        out = self.head(maps.mean((2, 3)))
        return out


@pytest.mark.parametrize("is_around_all", [False, True])
def test_a_model_with_a_mode_of_its_own(is_around_all: bool) -> None:
    before = torch._C._len_torch_function_stack()
    model = WithinDevice(is_around_all=is_around_all)
    tap = FeatureTap(model, images_of())
    for _ in range(2):
        assert off(tap(images_of())) < 1e-5
    assert torch._C._len_torch_function_stack() == before
    with torch.device("cpu"):
        assert off(tap(images_of())) < 1e-5


def test_a_forward_that_fails_leaves_no_hook_and_no_mode() -> None:
    model = net(nn.Linear(8, CLASSES))
    tap = FeatureTap(model, images_of())
    model[4].register_forward_hook(_fail)
    with pytest.raises(RuntimeError, match="fails"):
        tap(images_of())
    assert torch._C._len_torch_function_stack() == 0
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1


def _fail(*_: Any) -> None:
    raise RuntimeError("fails")


class ReturnsADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(nn.Linear(8, CLASSES))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scores": self.net(images)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (ReturnsADict, r"in a dict under 'logits', got the keys \['scores'\]"),
        (lambda: net(nn.Linear(8, CLASSES)).to("meta"), "must hold values to be looked at, got meta tensors"),
        (lambda: _with_nan(net(nn.Linear(8, CLASSES))), "the logits are not finite for the probed images"),
    ],
)
def test_messages_name_the_cause(make: Any, message: str) -> None:
    with pytest.raises(TapError, match=message):
        FeatureTap(make())(images_of())


def _with_nan(model: nn.Sequential) -> nn.Sequential:
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    return model


def test_a_quantised_head() -> None:
    """Of a teacher: its layer is called as it is."""
    model = net(nn.Linear(8, CLASSES)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        out = FeatureTap(quantised)(images_of())
        assert_close(out.logits, quantised(images_of()))
        assert off(out) < 0.02 * float(
            out.logits.abs().max()
        )  # its input is rounded to eight bits by the batch's range
