"""`ModelKey`: identifies a loaded model by the settings and files that decide what is loaded."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gac_core.member_config import MemberConfig


@dataclass(frozen=True)
class FileState:
    """A file at one time; a file that is written again has another state."""

    name: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class ModelKey:
    """Models with equal keys are the same in memory.

    Attributes:
        settings: The member's settings with resolved paths, without name, weight, context, compile and placement, which
            do not change what is loaded.
        placement: The device with its index, or the device map as JSON.
        files: The files of local folders. Empty for names on a model hub, of which one version per ``revision`` is
            loaded in a process.
    """

    settings: MemberConfig
    placement: str
    files: tuple[FileState, ...]

    @classmethod
    def of(cls, config: MemberConfig, device: str) -> ModelKey:
        """Returns the key of a member's model.

        Args:
            config: The member's settings.
            device: Where to put the model if these name neither device nor device map.
        """
        if config.device_map is None:
            placement = _with_index(config.device or device)
        else:
            placement = json.dumps(config.device_map, sort_keys=True)
        paths = [config.model] if config.tokenizer is None else [config.model, config.tokenizer]
        settings = replace(
            config,
            model=_resolved(config.model),
            tokenizer=None if config.tokenizer is None else _resolved(config.tokenizer),
            name=None,
            weight=1.0,
            context=None,
            compile=False,
            device=None,
            device_map=None,
        )
        return cls(settings, placement, tuple(state for path in paths for state in _files(Path(path))))


def _resolved(path: str) -> str:
    return os.path.realpath(path) if os.path.exists(path) else path


def _files(path: Path) -> list[FileState]:
    """The state of a file, or of the files of a folder; empty for anything else."""
    found = [path] if os.path.isfile(path) else sorted(path.iterdir()) if os.path.isdir(path) else []
    states = [(file.name, file.stat()) for file in found if file.is_file()]
    return [FileState(name, stat.st_size, stat.st_mtime_ns) for name, stat in states]


def _with_index(device: str) -> str:
    """A device with its index; unchanged if torch does not know it, which `Checkpoint.find` reports."""
    try:
        found = torch.device(device)
    except RuntimeError:
        return device
    if found.type == "cuda" and found.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(found)
