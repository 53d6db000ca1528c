"""A model and the map behind its logits, without a hook in the user's script."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from icd_kernels.network import NetworkOutput
from icd_kernels.tap.search import Found, find, logits_of


class FeatureTap:
    """Runs a model and gives what distillation reads: logits, the map that is pooled before the classifier, and it.

    ```python
    teacher_tap, student_tap = FeatureTap(teacher), FeatureTap(student)
    with torch.no_grad():
        teacher_out = teacher_tap(images)
    objective(student_tap(images), teacher_out, labels).total.backward()
    ```

    The first call looks for classifier and map by one more forward of two images in eval mode, and checks that the
    classifier on the mean of the map gives the model's logits. It takes torchvision and timm CNNs, models that return
    (logits, more), a map laid out (B, H, W, C), and transformers that average their patch tokens; a model that pools
    in another way, or has a norm or a layer after the pooling, is refused with the reason.

    A model wrapped in DDP or nn.DataParallel of one device is looked into and called through its wrapper. A model under
    `torch.compile` is too, if it has not run yet when it is tapped: give `sample` then, or tap it before compiling.

    Args:
        model: returns logits (B, K), or a tuple, dict or object that begins with them ("logits").
        sample: images (B, 3, H, W) to look at now rather than at the first call.

    Raises:
        TypeError: `model` is no module, or `sample` no tensor.
        TapError: (a ValueError) the model's logits are not a linear layer of the mean of a map.
    """

    def __init__(self, model: nn.Module, sample: Tensor | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError("model must not be nn.DataParallel over several devices: use DistributedDataParallel")
        self.model = model
        self.found: Found | None = None
        self._features: Tensor | None = None
        self._is_reading = False
        self._handle: Any = None
        if sample is not None:
            self.probe(sample)

    def probe(self, images: Tensor) -> Found:
        """Looks for classifier and map, and taps them from now on."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor (B, 3, H, W), got {type(images).__name__}")
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must have shape (B, 3, H, W) with B of 1 or more, got {tuple(images.shape)}")
        self.close()
        self.found = find(unwrapped(self.model), images)
        self._handle = self.found.module.register_forward_hook(self._keep)
        return self.found

    def __call__(self, images: Tensor) -> NetworkOutput:
        """Logits (B, K), map (B, C, H, W) and head of the model on `images`, with their history.

        Raises:
            RuntimeError: the map was not seen: the model was compiled, and ran, before it was tapped.
        """
        found = self.found if self.found is not None else self.probe(images)
        self._features, self._is_reading = None, True
        try:
            logits = logits_of(self.model(images))
            features = self._features
        finally:
            self._features, self._is_reading = None, False
        if features is None:
            raise RuntimeError(
                f"the forward did not pass {found.map_name!r}: tap a model before torch.compile has run it"
            )
        return NetworkOutput(logits, found.view(features, (images.shape[-2], images.shape[-1])), found.head)

    def _keep(self, module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        if self.found is None or not self._is_reading:  # a forward that is not the tap's leaves nothing behind
            return
        value = given if self.found.reads_input else returned
        self._features = value[0] if isinstance(value, (tuple, list)) else value

    def close(self) -> None:
        """Takes the hook off the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self.found, self._features = None, None, None

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "not looked at yet"
        if self.found is not None:
            where = f"{self.found.map_name!r} ({self.found.view}) → {self.found.head_name!r}"
        return f"FeatureTap({type(unwrapped(self.model)).__name__}: {where})"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's, DDP's and nn.DataParallel's wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, whose class is slow to import
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
