"""Places the members of an ensemble: which models are loaded already, and where the others go."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from gac_core.config import EnsembleConfig
from gac_core.member_config import MemberConfig
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.memory import default_devices, local_devices
from gac_core.model.model_key import ModelKey, WeightsKey, with_index
from gac_core.model.needs import Workload, fixed_devices, member_need
from gac_core.model.options import MemberOptions
from gac_core.model.places import unusable
from gac_core.placement.planner import RESERVE, plan
from gac_core.placement.values import Device, MemberNeed, Placement, Plan

UNPLACED = ""
"""The device in the key of weights that have none yet."""


@dataclass(frozen=True)
class MemberKey:
    """Identifies a member of a pool.

    Attributes:
        model: Its model.
        options: How it runs it.
        copy: 0 for the first member of an ensemble with these; a further one needs a KV cache of its own.
    """

    model: ModelKey
    options: MemberOptions
    copy: int


@dataclass(frozen=True)
class PlacedMember:
    """A member and where it runs.

    Attributes:
        config: Its settings.
        key: Identifies it.
        checkpoint: Its files; None if its model is loaded.
    """

    config: MemberConfig
    key: MemberKey
    checkpoint: Checkpoint | None


def place_members(config: EnsembleConfig, models: Sequence[ModelKey]) -> list[PlacedMember]:
    """Returns the members of an ensemble with their devices and files, in its order.

    Members with a device or device map of their own are there. Others use their model wherever it is loaded, if that is
    one of ``config.devices``. What remains is planned by `gac_core.placement`.

    Args:
        config: The ensemble.
        models: The models that are loaded.

    Raises:
        ModelLoadError: The files of a member cannot be used.
        ConfigError: A device cannot be used.
        PlacementError: A member does not fit.
    """
    weights = list(dict.fromkeys(model.weights for model in models))
    devices = None if config.devices is None else tuple(map(with_index, config.devices))
    keys = [_located(member, devices, weights) for member in config.members]
    checkpoints: dict[ModelKey, Checkpoint] = {}
    for member, key in zip(config.members, keys, strict=True):
        if key not in models and key not in checkpoints:
            checkpoints[key] = Checkpoint.find(member)
    users: dict[WeightsKey, list[tuple[MemberConfig, Checkpoint]]] = {}
    for member, key in zip(config.members, keys, strict=True):
        if key.weights not in weights:
            users.setdefault(key.weights, []).append((member, checkpoints[key]))
    places = _planned(config, users, devices or default_devices()) if users else {}
    placed: list[PlacedMember] = []
    for member, key in zip(config.members, keys, strict=True):
        model = replace(key, weights=places.get(key.weights, key.weights))
        options = MemberOptions.of(member, config)
        copies = sum((each.key.model, each.key.options) == (model, options) for each in placed)
        found = checkpoints.get(key)
        checkpoint = None if found is None else replace(found, config=member).placed(model.weights.placed(member))
        placed.append(PlacedMember(member, MemberKey(model, options, copies), checkpoint))
    return placed


def plan_members(
    config: EnsembleConfig,
    checkpoints: Sequence[Checkpoint],
    devices: Sequence[Device],
    tokens: int | None = None,
    requests: int = 1,
) -> Plan:
    """Returns the plan of an ensemble none of whose members is loaded.

    Args:
        config: The ensemble.
        checkpoints: The members' files, in its order.
        devices: The devices.
        tokens: As in `Workload`; default the ``context`` of each member's settings.
        requests: As in `Workload`.

    Raises:
        PlacementError: A member does not fit.
    """
    names = [device.name for device in devices]
    workload = replace(_workload(config, checkpoints), tokens=tokens, requests=requests)
    needs = [
        _need([(member, checkpoint)], member.device, workload, names)
        for member, checkpoint in zip(config.members, checkpoints, strict=True)
    ]
    return plan(needs, devices)


# ---- internal


def _located(member: MemberConfig, devices: Sequence[str] | None, loaded: Collection[WeightsKey]) -> ModelKey:
    """A member's model: where its settings say, else where it is loaded, else with the device `UNPLACED`."""
    model = ModelKey.of(member, UNPLACED)
    if member.device is not None or member.device_map is not None:
        return model
    wanted = model.weights
    for key in loaded:
        same = replace(key, device=wanted.device, device_map=wanted.device_map) == wanted
        if same and (devices is None or key.devices <= set(devices)):
            return replace(model, weights=key)
    return model


def _planned(
    config: EnsembleConfig, users: Mapping[WeightsKey, Sequence[tuple[MemberConfig, Checkpoint]]], names: Sequence[str]
) -> dict[WeightsKey, WeightsKey]:
    """Weights that are not loaded, with their places.

    Args:
        config: The ensemble.
        users: The members of these weights, with their files.
        names: The devices for members without places of their own.
    """
    devices = local_devices(names)
    # A CPU lends memory as it is used, and swaps: only what is needed for certain is asked of it.
    on_cpu = all(torch.device(name).type == "cpu" for name in names)
    workload = None if on_cpu else _workload(config, [each for group in users.values() for _, each in group])
    needs = {key: _need(group, key.device or None, workload, names) for key, group in users.items()}
    elsewhere = {name for need in needs.values() for name, _ in need.fixed} - set(names)
    plan([need for need in needs.values() if need.fixed], local_devices(sorted(filter(_usable, elsewhere))) or devices)
    result = plan(list(needs.values()), devices, 0.0 if on_cpu else RESERVE)
    return {
        key: _placed(key, placement)
        for key, placement in zip(needs, result.placements, strict=True)
        if not placement.need.fixed
    }


def _placed(key: WeightsKey, placement: Placement) -> WeightsKey:
    device_map = placement.device_map
    if device_map is None:
        return replace(key, device=placement.shares[0].device)
    return replace(key, device=None, device_map=json.dumps(device_map, sort_keys=True))


def _usable(device: str) -> bool:
    return unusable(device) is None


def _workload(config: EnsembleConfig, checkpoints: Sequence[Checkpoint]) -> Workload:
    return Workload(
        cache_bytes=int(config.cache_gib * 2**30),
        document_cache_bytes=0 if config.deterministic else int(config.document_cache_gib * 2**30),
        prefill_tokens=config.prefill_tokens,
        max_batch_size=config.max_batch_size,
        union=sum(each.vocab_size for each in checkpoints),
    )


def _need(
    users: Sequence[tuple[MemberConfig, Checkpoint]],
    device: str | None,
    workload: Workload | None,
    devices: Sequence[str],
) -> MemberNeed:
    """What weights need with the KV caches of all members that use them; without a workload, the weights alone."""
    member, checkpoint = users[0]
    if workload is not None:
        workload = replace(workload, tokens=workload.tokens or member.context)
    need = member_need(checkpoint, member.called, workload).with_copies(len(users))
    if device is None and member.device_map is None:
        return need
    return fixed_devices(need, device, member.device_map, devices)
