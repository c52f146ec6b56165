"""`WeightsKey` and `ModelKey`: identify weights, and weights with a tokenizer, by what decides their content."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from gac_core.member_config import DTYPES, MemberConfig


@dataclass(frozen=True)
class FileState:
    """A file at one time; a file that is written again has another state."""

    name: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class WeightsKey:
    """Weights with equal keys are the same in memory.

    Attributes:
        settings: The member's settings with a resolved path and dtype, without tokenizer, chat template, name, weight,
            temperature, context, compile, placement and resources, which do not change the weights.
        device: The device with its index; None if a device map places the weights.
        device_map: The device map as JSON; None without one.
        files: The files of a local folder. Empty for names on a model hub, of which one version per ``revision`` is
            loaded in a process.
    """

    settings: MemberConfig
    device: str | None
    device_map: str | None
    files: tuple[FileState, ...]

    @classmethod
    def of(cls, config: MemberConfig, device: str) -> WeightsKey:
        """Returns the key of a member's weights.

        Args:
            config: The member's settings.
            device: Where to put the weights if these name neither device nor device map.
        """
        mapped = config.device_map is not None
        model, gguf_file = config.model, config.gguf_file
        if model.endswith(".gguf"):
            model, gguf_file = os.path.dirname(model) or os.curdir, os.path.basename(model)
        settings = replace(
            config,
            model=_resolved(model),
            gguf_file=gguf_file,
            dtype=_dtype(config),
            tokenizer=None,
            chat_template=None,
            name=None,
            weight=1.0,
            temperature=1.0,
            context=None,
            compile=False,
            device=None,
            device_map=None,
            num_gpus=None,
            num_cpus=None,
            resources=None,
        )
        return cls(
            settings,
            device=None if mapped else with_index(config.device or device),
            device_map=json.dumps(config.device_map, sort_keys=True) if mapped else None,
            files=_files(model),
        )

    @property
    def devices(self) -> set[str]:
        """The devices that hold the weights, as far as the settings name them."""
        if self.device is not None:
            return {self.device}
        device_map = json.loads(str(self.device_map))
        return {str(place) for place in device_map.values()} if isinstance(device_map, dict) else {str(device_map)}

    def placed(self, config: MemberConfig) -> MemberConfig:
        """Returns a member's settings with the device or device map of these weights."""
        device_map = None if self.device_map is None else json.loads(self.device_map)
        return replace(config, device=self.device, device_map=device_map)


@dataclass(frozen=True)
class ModelKey:
    """Models with equal keys have the same weights and the same tokenizer in memory.

    Attributes:
        weights: The weights.
        tokenizer: The tokenizer's name or resolved path; None if it comes with the weights.
        chat_template: The chat template in place of the tokenizer's own.
        files: The tokenizer's files, if it does not come with the weights.
    """

    weights: WeightsKey
    tokenizer: str | None
    chat_template: str | None
    files: tuple[FileState, ...]

    @classmethod
    def of(cls, config: MemberConfig, device: str) -> ModelKey:
        """Returns the key of a member's model; arguments as in `WeightsKey.of`."""
        weights = WeightsKey.of(config, device)
        tokenizer = None if config.tokenizer is None else _resolved(config.tokenizer)
        if tokenizer is None or (tokenizer == weights.settings.model and weights.settings.gguf_file is None):
            return cls(weights, None, config.chat_template, ())
        return cls(weights, tokenizer, config.chat_template, _files(tokenizer))


def _dtype(config: MemberConfig) -> str:
    """A member's dtype; for ``"auto"`` the one that its config.json states, if that is what transformers loads."""
    if config.dtype != "auto" or config.is_gguf or config.quantization is not None:
        return config.dtype
    try:
        path = (
            Path(config.model, "config.json")
            if os.path.isdir(config.model)
            else _hub_file(config.model, config.revision)
        )
        stated = json.loads(path.read_text(encoding="utf-8"))
        # transformers may load the text model alone, in the dtype that its part of the file states.
        parts = [part for part in (stated, stated.get("text_config")) if part is not None]
        dtypes = {part.get("dtype") or part.get("torch_dtype") for part in parts}
    except Exception:
        # `Checkpoint.find` reports files that are missing or damaged.
        return "auto"
    (dtype,) = dtypes if len(dtypes) == 1 else ("auto",)
    return dtype if dtype in DTYPES and "quantization_config" not in stated else "auto"


@lru_cache(maxsize=1024)
def _hub_file(model: str, revision: str | None) -> Path:
    """The config.json of a name on a hub, downloaded if it is not there; looked up once per process."""
    from transformers.utils import cached_file

    return Path(str(cached_file(model, "config.json", revision=revision)))


def _resolved(path: str) -> str:
    return os.path.realpath(path) if os.path.exists(path) else path


def _files(name: str) -> tuple[FileState, ...]:
    """The state of a file, or of the files of a folder; empty for anything else."""
    path = Path(name)
    found = [path] if os.path.isfile(path) else sorted(path.iterdir()) if os.path.isdir(path) else []
    states = [(file.name, file.stat()) for file in found if file.is_file()]
    return tuple(FileState(name, stat.st_size, stat.st_mtime_ns) for name, stat in states)


def with_index(device: str) -> str:
    """A device with its index; unchanged if torch does not know it, which `Checkpoint.find` reports."""
    try:
        found = torch.device(device)
    except RuntimeError:
        return device
    if found.type == "cuda" and found.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(found)
