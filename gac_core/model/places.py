"""Where models are read from (folders, GGUF files, model hubs) and run (devices), and errors of loading."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gac_core.errors import ModelLoadError


@dataclass(frozen=True)
class Source:
    """Where transformers reads a model or a tokenizer from.

    Attributes:
        path: A folder, or a name on a model hub.
        gguf_file: The name of a GGUF file in this folder; None if the files are in the format of transformers.
    """

    path: str
    gguf_file: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``from_pretrained``; a GGUF file as an absolute path, for an unambiguous lookup."""
        if self.gguf_file is None:
            return {"pretrained_model_name_or_path": self.path}
        file = str(Path(self.path, self.gguf_file).absolute())
        return {"pretrained_model_name_or_path": self.path, "gguf_file": file}


def find_source(model: str, path: str, gguf_file: str | None = None, revision: str | None = None) -> Source:
    """Returns the source of a model or tokenizer; downloads a GGUF file from a hub.

    Args:
        model: The model, for errors.
        path: A folder, the path of a GGUF file, or a name on a hub.
        gguf_file: A GGUF file in ``path``.
        revision: Version on the hub.

    Raises:
        ModelLoadError: A folder or file does not exist, or a download fails.
    """
    if path.endswith(".gguf"):
        file = Path(path)
        if not os.path.isfile(path):
            raise ModelLoadError(
                model,
                f"there is no file {_spelled(path)}; for a file on a model hub give the repository as model and the "
                "file as gguf_file",
            )
        return Source(str(file.parent), file.name)
    check_folder(model, path)
    if gguf_file is None:
        return Source(path)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, gguf_file)):
            found = ", ".join(sorted(file.name for file in Path(path).glob("*.gguf"))) or "none"
            raise ModelLoadError(model, f"the folder {path!r} has no file {gguf_file!r}; GGUF files in it: {found}")
        return Source(path, gguf_file)
    from transformers.utils import cached_file

    try:
        downloaded = cached_file(path, gguf_file, revision=revision)
    except Exception as error:
        raise load_error(model, error) from error
    return Source(str(Path(str(downloaded)).parent), Path(gguf_file).name)


def check_folder(model: str, path: str) -> None:
    """Raises if a path is a file, or looks local and is no directory: transformers would look it up on a hub.

    Args:
        model: The model, for errors.
        path: The folder of a model or tokenizer, or its name on a hub, which has one slash at most.

    Raises:
        ModelLoadError: The folder does not exist, or is a file.
    """
    if os.path.isfile(path):
        raise ModelLoadError(
            model, "this is a file; a model is a folder or a file that ends in .gguf, a configuration ends in .yaml"
        )
    is_path = Path(path).is_absolute() or path.startswith(".") or path.count("/") > 1
    if is_path and not os.path.isdir(path):
        raise ModelLoadError(model, f"there is no folder {_spelled(path)}")


def _spelled(path: str) -> str:
    """Returns a path for an error, with what it is relative to."""
    return repr(path) if os.path.isabs(path) else f"{path!r}, relative to {str(Path.cwd())!r}"


def check_files(model: str, source: Source, allow_pickle: bool) -> None:
    """Raises unless a folder contains a model that may be loaded; names on a hub are not checked.

    Args:
        model: The model, for errors.
        source: Where its weights are.
        allow_pickle: Whether to accept weights that exist only as pickle.

    Raises:
        ModelLoadError: The configuration or the weights are missing, or the weights exist only as pickle.
    """
    folder = Path(source.path)
    if source.gguf_file is not None or not os.path.isdir(folder):
        return
    names = sorted(file.name for file in folder.iterdir())
    if "config.json" not in names:
        if not names:
            reason = "the folder is empty"
        elif "adapter_config.json" in names:
            reason = "the folder holds an adapter alone; merge it into its base model and save the result"
        else:
            held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            reason = f"the folder has no config.json; it holds {held}"
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = f" (a GGUF file is loaded by gguf_file={ggufs[0]!r})" if ggufs else ""
        raise ModelLoadError(
            model, f"{reason}{hint}; the folder must hold config.json, safetensors weights and a tokenizer"
        )
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return
    pickled = [name for name in names if name.endswith((".bin", ".bin.index.json"))]
    if not pickled:
        raise ModelLoadError(
            model, "the folder has no weights; it must hold model.safetensors, or its index and all of its parts"
        )
    if not allow_pickle:
        raise ModelLoadError(
            model,
            f"its weights exist only as pickle ({pickled[0]}), a format that can carry code; save the model with "
            "save_pretrained as safetensors, or set allow_pickle=True in its MemberConfig if you trust the file",
        )


def check_device(model: str, device: str) -> None:
    """Raises if torch cannot use a device.

    Args:
        model: The model, for errors.
        device: The device, such as ``"cuda:1"``.

    Raises:
        ModelLoadError: The device cannot be used.
    """
    reason = unusable(device)
    if reason is not None:
        raise ModelLoadError(model, f"its device {device!r} cannot be used: {reason}")


def unusable(device: str) -> str | None:
    """Returns why torch cannot use a device, and which ones there are; None if it can."""
    try:
        if torch.device(device).type == "meta":
            return "torch's meta device holds shapes alone; give a device with memory, such as 'cpu'"
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0].rstrip(":. ")
        return f"{reason}; this machine has {', '.join(here)}"
    return None


def load_error(model: str, error: Exception) -> ModelLoadError:
    """Returns the error for a model or tokenizer that transformers could not load, with a remedy if one is known.

    Args:
        model: The model's folder, file or name.
        error: The exception of transformers.
    """
    reason = " ".join(str(error).split()).rstrip(":. ") or type(error).__name__
    kind = type(error).__name__
    if kind == "SafetensorError" or "Unable to load weights" in reason:
        reason = f"a weights file is damaged or incomplete ({reason}); download or copy it again"
    elif isinstance(error, ImportError):
        package = "pip install 'gac-ensemble[gguf]'" if "gguf" in reason.lower() else "install the package it names"
        reason += f"; {package}"
    elif "use_safetensors" in reason:
        reason = (
            "its repository has no safetensors weights; convert them, or set allow_pickle=True in its MemberConfig "
            "if you trust its pickle files, a format that can carry code"
        )
    elif not os.path.exists(model):
        reason += " (no such folder exists here, so it was looked up on the model hub)"
    elif isinstance(error, (OSError, ValueError)):
        reason += "; the folder must hold config.json, safetensors weights and a tokenizer"
    return ModelLoadError(model, reason)
