"""The machine: devices with their memory, processor, memory limits, and environment variables that matter."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gac_core.errors import ConfigError
from gac_core.loading import CONFIG_VARIABLE, DEVICE_VARIABLE
from gac_core.model.cgroup import control_group
from gac_core.model.memory import default_devices, local_devices
from gac_core.model.places import unusable

VARIABLES = (
    *(CONFIG_VARIABLE, DEVICE_VARIABLE, "GAC_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"),
    *("TRANSFORMERS_OFFLINE", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "RAY_ADDRESS"),
)
"""Environment variables whose values are shown, user names and passwords in URLs left out."""

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GAC_API_KEYS", "RAY_AUTH_TOKEN")
"""Environment variables of which is shown only that they are set."""

_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class DeviceFacts:
    """A device that models can be placed on.

    Attributes:
        name: As torch names it.
        model: What the hardware is called.
        total: Its memory in bytes.
        free: Of it, what is free, swap space and cgroup limits included.
    """

    name: str
    model: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """The machine as this process sees it.

    Attributes:
        system: Operating system and architecture.
        cores: Processor cores that this process may use.
        threads: Threads that torch uses for one forward on the CPU.
        memory_limit: Memory limit of its control group in bytes; None without one.
        cpu_limit: Processor limit of its control group, in cores; None without one.
        cuda: Version of CUDA that torch is built for; None if it is built for the CPU alone.
        driver: Version of the NVIDIA driver; None if there is none.
        devices: Those that models are placed on by default, and the CPU.
        environment: Environment variables that matter and are set, without secrets.
        secrets: Names of the environment variables with secrets that are set.
        problems: What is wrong, each with its remedy.
    """

    system: str
    cores: int
    threads: int
    memory_limit: int | None
    cpu_limit: float | None
    cuda: str | None
    driver: str | None
    devices: tuple[DeviceFacts, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    problems: tuple[str, ...]


def machine(variables: Mapping[str, str] = os.environ) -> Machine:
    """Returns the facts of this machine.

    Args:
        variables: The environment variables.
    """
    driver = nvidia_driver()
    group = control_group()
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_limit=group.memory_limit,
        cpu_limit=group.cpu_limit,
        cuda=torch.version.cuda,
        driver=driver,
        devices=_devices(),
        environment=environment(variables),
        secrets=tuple(name for name in SECRETS if variables.get(name)),
        problems=tuple(_problems(driver, variables)),
    )


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that matter and are set, without user names and passwords in URLs."""
    return {name: _USERINFO.sub("", variables[name]) for name in VARIABLES if name in variables}


def nvidia_driver() -> str | None:
    """Returns the version of the NVIDIA driver as its own command reports it; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _problems(driver: str | None, variables: Mapping[str, str]) -> list[str]:
    problems = []
    if driver is not None and torch.version.cuda is None:
        problems.append(
            f"this machine has an NVIDIA GPU (driver {driver}), but torch {torch.__version__} is built for the CPU "
            "alone; install a build for CUDA as https://pytorch.org/get-started describes"
        )
    elif driver is not None and not torch.cuda.is_available() and "CUDA_VISIBLE_DEVICES" not in variables:
        problems.append(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the NVIDIA GPU with driver {driver}; "
            "update the driver, or install torch for an older CUDA"
        )
    device = variables.get(DEVICE_VARIABLE)
    reason = unusable(device) if device else None
    if reason is not None:
        problems.append(f"{DEVICE_VARIABLE}={device!r} cannot be used: {reason}")
    return problems


def _devices() -> tuple[DeviceFacts, ...]:
    names = [*default_devices()]
    if torch.backends.mps.is_available():
        names.append("mps")
    if "cpu" not in names:
        names.append("cpu")
    try:
        found = local_devices(names)
    except ConfigError:
        # A GPU that is seen and cannot be used.
        found = local_devices(["cpu"])
    totals = {each.name: each.total if each.name.startswith("cuda") else _total_memory(each.free) for each in found}
    return tuple(DeviceFacts(each.name, _model(each.name), totals[each.name], each.free) for each in found)


def _total_memory(free: int) -> int:
    """The memory of this machine in bytes; where it cannot be read, what is free of it."""
    words = _read(Path("/proc/meminfo")).split()
    total = int(words[words.index("MemTotal:") + 1]) * 1024 if "MemTotal:" in words else free
    return max(total, free)


def _model(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
