"""Where models lie and run: what a name cannot be, told before anything is loaded, and why loading failed.

Knows names, folders and devices; knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gac_core.errors import ModelLoadError


def check_folder(model: str, path: str) -> None:
    """Refuses a path that can only be a folder, and is none; transformers would look for it on a hub.

    Args:
        model: The model that is to be loaded.
        path: Where it, or its tokenizer, is said to be: a folder or a name on a hub, which has one slash at most.

    Raises:
        ModelLoadError: There is no such folder.
    """
    is_path = Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1
    if is_path and not Path(path).is_dir():
        raise ModelLoadError(model, f"there is no folder {path!r}, seen from {str(Path.cwd())!r}")


def check_device(model: str, device: str) -> None:
    """Refuses a device that torch does not know or find.

    Raises:
        ModelLoadError: The device cannot be used.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        reason = f"its device {device!r} cannot be used: {_first_line(error)}; this machine has {', '.join(here)}"
        raise ModelLoadError(model, reason) from error


def load_error(model: str, error: Exception) -> ModelLoadError:
    """Returns what to raise where a model, or its tokenizer, could not be loaded.

    Args:
        model: Its folder or name.
        error: What transformers raised: OSError, ValueError, ImportError, RuntimeError and more.
    """
    reason = _first_line(error)
    if not Path(model).is_dir():
        reason += " (there is no such folder here, so that it was taken for a name on a model hub)"
    elif isinstance(error, (OSError, ValueError)):
        reason += " (the folder must hold a tokenizer, and a model where it shall be one)"
    return ModelLoadError(model, reason)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(": ")
