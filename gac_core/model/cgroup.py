"""Limits of this process's control group (versions 1 and 2), such as those of a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Version 1 writes the largest number of pages where there is no limit.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class ControlGroup:
    """Limits of a control group.

    Attributes:
        memory_limit: Bytes; None without a limit.
        memory_used: Of them, bytes in use, without files that the system can drop from its cache.
        cpu_limit: Processor time per time, in cores; None without a limit.
    """

    memory_limit: int | None
    memory_used: int
    cpu_limit: float | None

    @property
    def memory_free(self) -> int | None:
        """Bytes that are left; None without a limit."""
        return None if self.memory_limit is None else max(0, self.memory_limit - self.memory_used)


def control_group(root: Path = ROOT) -> ControlGroup:
    """Returns the limits of a control group; where nothing can be read there are none.

    Args:
        root: Where its files are. Default: as a container sees its own.
    """
    if (root / "memory.max").exists():
        limit, used, dropped = _number(root / "memory.max"), _number(root / "memory.current"), "inactive_file"
        memory, cpu = root, _words(root / "cpu.max")
    else:
        memory, dropped = root / "memory", "total_inactive_file"
        limit, used = _number(memory / "memory.limit_in_bytes"), _number(memory / "memory.usage_in_bytes")
        cpu = [*_words(root / "cpu" / "cpu.cfs_quota_us"), *_words(root / "cpu" / "cpu.cfs_period_us")]
    stat = _words(memory / "memory.stat")
    cached = int(stat[stat.index(dropped) + 1]) if dropped in stat else 0
    cores = int(cpu[0]) / int(cpu[1]) if len(cpu) == 2 and all(word.isdigit() for word in cpu) else None
    limited = limit if limit is not None and limit < _UNLIMITED else None
    return ControlGroup(limited, max(0, (used or 0) - cached), cores)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else None
