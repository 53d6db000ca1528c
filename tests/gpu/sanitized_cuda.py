"""Every kernel of the CUDA backend on small tensors: what compute-sanitizer runs (test_cuda_gpu.py)."""

import os

import torch

from icd_kernels import gram_kl, icd_loss, region_logits


def main() -> None:
    torch.manual_seed(0)
    for dtype, size in ((torch.float32, 5), (torch.bfloat16, 8)):
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = torch.randn(18, 40, size, size, device="cuda", dtype=dtype).to(memory_format=layout).requires_grad_()
            teacher_maps = torch.randn(18, 24, 8, 8, device="cuda", dtype=dtype).to(memory_format=layout)
            weight = torch.randn(300, 40, device="cuda", dtype=dtype, requires_grad=True)
            bias = torch.randn(300, device="cuda", dtype=dtype, requires_grad=True)
            teacher_weight = torch.randn(300, 24, device="cuda", dtype=dtype)
            for gram in ("class", "spatial", "sample"):
                for reduction in ("mean", "none"):
                    loss = icd_loss(
                        maps, weight, teacher_maps, teacher_weight, bias, backend="cuda", gram=gram,
                        normalize="zscore", scales=(1, 2, 5) if gram == "spatial" else (1, 2), reduction=reduction,
                    )  # fmt: skip
                    loss.sum().backward()
            region_logits(maps, weight, bias, backend="cuda").sum().backward()
    logits = torch.randn(2, 2, 30, 21, device="cuda", requires_grad=True)
    for sums in ("exact", "linear"):
        os.environ["ICD_KERNELS_CLASS_SUM"] = sums
        gram_kl(logits[0], logits[1], backend="cuda").backward()
    torch.cuda.synchronize()


main()
