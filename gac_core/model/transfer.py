"""Copies of tensors between the CPU and other devices, without a synchronisation more than needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Returns integers as an int64 tensor of shape ``[n]`` on a device, without synchronising with it."""
    return moved(torch.tensor(numbers, dtype=torch.long), device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the CPU on a device, without synchronising with it."""
    # A copy to a GPU from pageable memory would wait for all kernels that were launched before.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Returns tensors of one device on the CPU, with one synchronisation for all of them."""
    if tensors[0].device.type == "cpu":
        return tensors
    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
    if tensors[0].device.type == "cuda":
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies
