"""The values of placement: devices, what members need, and which device holds what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gac_core.errors import ConfigError, quote
from gac_core.placement.sizes import parse_bytes


@dataclass(frozen=True)
class Device:
    """A device and its memory.

    Attributes:
        name: As torch names it, such as ``"cuda:0"``.
        total: Its memory, in bytes.
        free: What of it is free, in bytes.
    """

    name: str
    total: int
    free: int

    @classmethod
    def parse(cls, text: str) -> Device | None:
        """Returns the device of a text such as ``"cuda:0=80GiB"``, all of its memory free; None without a size.

        Raises:
            ConfigError: The size is not one.
        """
        name, separator, size = text.partition("=")
        if not separator:
            return None
        if not name.strip():
            raise ConfigError(f"{quote(text)} has no name of a device; give for example cuda:0=80GiB")
        total = parse_bytes(size)
        return cls(name.strip(), total, total)


@dataclass(frozen=True)
class Block:
    """Modules of a model that stay on one device, such as a decoder layer, or embeddings with the head tied to them.

    Attributes:
        modules: Their names, as in a device map.
        weights: Bytes of their parameters and buffers.
        kv_cache: Bytes of the keys and values that they produce.
    """

    modules: tuple[str, ...]
    weights: int
    kv_cache: int = 0

    @property
    def total(self) -> int:
        """Bytes of weights, keys and values."""
        return self.weights + self.kv_cache


@dataclass(frozen=True)
class MemberNeed:
    """The memory that a member needs.

    Attributes:
        name: The member's name.
        weights: Bytes of its parameters and buffers.
        kv_cache: Bytes reserved for its keys and values.
        activations: Bytes of intermediate results, on every device that it uses.
        blocks: How it can be divided, in the order of the forward; empty: not at all.
        fixed: The devices that its own settings name, each with its fraction of the member; empty: the plan decides.
        remedies: What would make it smaller, for errors.
    """

    name: str
    weights: int
    kv_cache: int = 0
    activations: int = 0
    blocks: tuple[Block, ...] = ()
    fixed: tuple[tuple[str, float], ...] = ()
    remedies: tuple[str, ...] = ()

    def with_copies(self, count: int) -> MemberNeed:
        """Returns the need of weights that ``count`` members use, each with a KV cache of its own."""
        blocks = tuple(replace(block, kv_cache=block.kv_cache * count) for block in self.blocks)
        return replace(self, kv_cache=self.kv_cache * count, blocks=blocks)

    @property
    def total(self) -> int:
        """Bytes on one device that holds all of it."""
        return self.weights + self.kv_cache + self.activations


@dataclass(frozen=True)
class Share:
    """What a member takes of one device.

    Attributes:
        device: The device's name.
        weights: Bytes of weights.
        kv_cache: Bytes reserved for keys and values.
        activations: Bytes of intermediate results.
        modules: The modules that are there; empty: the whole model, or unknown ones of a member with a device map.
    """

    device: str
    weights: int
    kv_cache: int
    activations: int
    modules: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.kv_cache + self.activations


@dataclass(frozen=True)
class Placement:
    """Where a member runs.

    Attributes:
        need: The member.
        shares: What it takes of each device, one or more.
    """

    need: MemberNeed
    shares: tuple[Share, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of its devices."""
        return tuple(share.device for share in self.shares)

    @property
    def device_map(self) -> dict[str, str] | None:
        """The device of each module, as accelerate takes it; None if all of the model is on one device."""
        if len(self.shares) == 1:
            return None
        return {module: share.device for share in self.shares for module in share.modules}


@dataclass(frozen=True)
class DeviceUse:
    """What a plan takes of a device.

    Attributes:
        device: The device.
        reserve: Bytes that the plan leaves free.
        used: Bytes that members take.
        members: Their names.
    """

    device: Device
    reserve: int
    used: int
    members: tuple[str, ...]

    @property
    def left(self) -> int:
        """Bytes that remain free, without the reserve; negative if members with a device of their own exceed it."""
        return self.device.free - self.reserve - self.used


@dataclass(frozen=True)
class Plan:
    """Which member runs where.

    Attributes:
        placements: One per member, in the order in which these were given.
        devices: What each device holds, in the order in which these were given.
    """

    placements: tuple[Placement, ...]
    devices: tuple[DeviceUse, ...]

    def placement(self, name: str) -> Placement:
        """Returns the placement of a member."""
        return next(placement for placement in self.placements if placement.need.name == name)


def uses(placements: Sequence[Placement], devices: Sequence[Device], reserve: float) -> tuple[DeviceUse, ...]:
    """Returns what placements take of each device; ``reserve`` is a fraction of its memory."""
    shares = [(placement.need.name, share) for placement in placements for share in placement.shares]
    return tuple(
        DeviceUse(
            device,
            reserve=int(reserve * device.total),
            used=sum(share.total for _, share in shares if share.device == device.name),
            members=tuple(name for name, share in shares if share.device == device.name),
        )
        for device in devices
    )
