"""Memory: what a member's weights need, by the headers of their files, and what a device has free."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from gac_core.errors import ConfigError, ModelLoadError, quote
from gac_core.member_config import MemberConfig
from gac_core.model.cgroup import control_group
from gac_core.model.places import Source, unusable
from gac_core.placement.sizes import format_bytes
from gac_core.placement.values import Device

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# The memory of a device that torch cannot tell.
_UNLIMITED = 2**60
_PACKED = {"8bit": 1.0, "4bit": 0.5}


def weight_bytes(config: MemberConfig, source: Source, stored: torch.dtype | None = None) -> int | None:
    """Estimates the memory of a member's weights from the headers of its files.

    Args:
        config: The member's settings.
        source: Where its weights are.
        stored: The dtype that ``dtype="auto"`` stands for, from the model's configuration. Default: that of each
            tensor.

    Returns:
        Bytes; None unless the weights are local files of a known format.
    """
    dtype = stored if config.dtype == "auto" else getattr(torch, config.dtype)
    folder = Path(source.path)
    try:
        if source.gguf_file is not None:
            from gguf import GGUFReader

            elements = sum(int(tensor.n_elements) for tensor in GGUFReader(folder / source.gguf_file).tensors)
            return elements * (dtype or torch.float32).itemsize
        total = 0.0
        for tensor in _tensors(folder):
            start, end = tensor["data_offsets"]
            width = _FLOATS.get(tensor["dtype"])
            if width is None:
                total += end - start
            elif config.quantization is not None and len(tensor["shape"]) == 2:
                total += prod(tensor["shape"]) * _PACKED[config.quantization]
            else:
                total += prod(tensor["shape"]) * (width if dtype is None else dtype.itemsize)
        return int(total) or None
    except (OSError, ValueError, KeyError, TypeError, ImportError, struct.error):
        # Loading reports damaged files.
        return None


def stored_dtype(source: Source) -> torch.dtype | None:
    """Returns the dtype of the first floating-point tensor in a folder of safetensors; None if there is none."""
    names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        return next(
            (names[tensor["dtype"]] for tensor in _tensors(Path(source.path)) if tensor["dtype"] in names), None
        )
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def weight_files(source: Source) -> list[Path]:
    """Returns the local files that hold a member's weights; empty if they are elsewhere or in another format."""
    folder = Path(source.path)
    try:
        return [folder / source.gguf_file] if source.gguf_file is not None else _safetensors(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _safetensors(folder: Path) -> list[Path]:
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _tensors(folder: Path) -> Iterator[dict[str, Any]]:
    for path in _safetensors(folder):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        yield from (tensor for name, tensor in header.items() if name != "__metadata__")


def check_dimensions(name: str, source: Source, architecture: Any) -> None:
    """Raises if a configuration has far more layers or wider ones than its weights files.

    transformers would build such a model, for minutes or until memory is full, before it compares tensors.

    Args:
        name: The model, for errors.
        source: Where its weights are; anything but a local folder of safetensors is not checked.
        architecture: The model's configuration.

    Raises:
        ModelLoadError: A dimension does not fit the weights.
    """
    try:
        shapes = [tensor["shape"] for tensor in _tensors(Path(source.path))]
        widest = max(size for shape in shapes for size in shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        # Not local, or damaged, which loading reports.
        return
    config = architecture.get_text_config(decoder=True)
    # A packed element holds up to 8 values, and a fused tensor several matrices.
    limits = {"num_hidden_layers": 1000 + len(shapes), "hidden_size": 16 * widest, "vocab_size": 16 * widest}
    limits |= {"intermediate_size": 16 * widest, "num_attention_heads": 16 * widest, "head_dim": 16 * widest}
    for field, most in limits.items():
        value = getattr(config, field, None)
        if isinstance(value, int) and not 0 < value <= most:
            raise ModelLoadError(
                name,
                f"its config.json has {field} {quote(value)}, but its weights are {len(shapes)} tensors of up to "
                f"{widest} rows or columns; the file is damaged or belongs to another model",
            )


def free_bytes(device: str) -> int | None:
    """Returns the free memory of a device in bytes, swap space included; None if it is unknown.

    That of the CPU is at most what the limit of this process's control group leaves.
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        return int(torch.cuda.mem_get_info(kind)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if kind.type == "cpu" else []
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("MemAvailable:", "SwapFree:"))]
    left = control_group().memory_free
    return None if not free else sum(free) if left is None else min(sum(free), left)


def local_devices(names: Sequence[str]) -> list[Device]:
    """Returns devices of this process with the memory that they have free.

    Memory that torch holds without using it counts as free. Several names of the CPU, such as ``"cpu:0"`` and
    ``"cpu:1"``, have equal parts of its memory. A device whose memory torch cannot tell has no limit.

    Args:
        names: As torch names them.

    Raises:
        ConfigError: A device cannot be used.
    """
    for name in names:
        reason = unusable(name)
        if reason is not None:
            raise ConfigError(f"devices names {quote(name)}, which cannot be used: {reason}")
    cpus = sum(torch.device(name).type == "cpu" for name in names)
    devices = []
    for name in names:
        kind = torch.device(name)
        free, total = free_bytes(name), None
        if kind.type == "cuda":
            total = int(torch.cuda.mem_get_info(kind)[1])
            held = torch.cuda.memory_reserved(kind) - torch.cuda.memory_allocated(kind)
            free = None if free is None else free + held
        elif kind.type == "cpu" and free is not None:
            free //= cpus
        free = _UNLIMITED if free is None else free
        devices.append(Device(name, free if total is None else total, free))
    return devices


def default_devices() -> tuple[str, ...]:
    """Returns all visible GPUs; without any, the CPU."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(f"cuda:{index}" for index in range(gpus)) or ("cpu",)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError))
        and any(words in text for words in ("not enough memory", "can't allocate memory", "cannot allocate memory"))
    )


def out_of_memory(
    config: MemberConfig, source: Source, device: str | None, stored: torch.dtype | None = None
) -> ModelLoadError:
    """Returns the error for a member whose weights do not fit into memory.

    Args:
        config: The member's settings.
        source: Where its weights are.
        device: The device that lacks memory; None for a device map.
        stored: As in `weight_bytes`.
    """
    need = weight_bytes(config, source, stored)
    free = None if device is None else free_bytes(device)
    needs = "" if need is None else f"; its weights need about {format_bytes(need)}"
    frees = "" if free is None else f", {format_bytes(free)} are free"
    dtype = stored if config.dtype == "auto" else getattr(torch, config.dtype)
    how = ", ".join([*smaller(config, dtype), "another device", "device_map='auto'"])
    place = "" if device is None else f" on {device!r}"
    return ModelLoadError(config.model, f"out of memory{place}{needs}{frees}; use {how} or a smaller model")


def smaller(config: MemberConfig, dtype: torch.dtype | None) -> tuple[str, ...]:
    """Returns the settings that would make a member's weights smaller, for errors.

    Args:
        config: The member's settings.
        dtype: The dtype of its weights; None if it is unknown.
    """
    how = ["dtype='bfloat16'"] if dtype is None or dtype.itemsize > 2 else []
    return (*how, *([] if config.quantization is not None or config.is_gguf else ["quantization='4bit'"]))
