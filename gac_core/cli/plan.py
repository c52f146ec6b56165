"""``gac plan``: shows where models would be placed, without loading weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gac_core.cli.errors import reported
from gac_core.config import EnsembleConfig
from gac_core.loading import configured
from gac_core.placement.sizes import format_bytes
from gac_core.placement.values import Device, Placement, Plan


def plan(
    models: Annotated[list[str], typer.Argument(help="Folders, GGUF files or hub names. No weights are loaded.")],
    devices: Annotated[
        str | None,
        typer.Option(help="For example cuda:0,cuda:1, or cuda:0=80GiB,cuda:1=80GiB for a machine that has them."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. Default: as stored.")] = None,
    quantization: Annotated[str | None, typer.Option(help="8bit or 4bit. Default: none.")] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens per request whose KV cache must fit. Default: as --cache-gib.", min=1),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Requests at once. Default: 16, one of which may be as long as --context.", min=1),
    ] = None,
    cache_gib: Annotated[float | None, typer.Option(help="KV cache per member, in GiB. Default: 1.", min=0)] = None,
    document_cache_gib: Annotated[
        float | None, typer.Option(help="Memory per member for documents, in GiB. Default: 0.5.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show which devices models would be placed on, and the memory that they need there."""
    with reported("plan"):
        settings: dict[str, Any] = {"dtype": dtype, "quantization": quantization}
        settings |= {"max_batch_size": batch, "cache_gib": cache_gib, "document_cache_gib": document_cache_gib}
        config = configured(models, **settings)
        result = planned(config, None if devices is None else devices.split(","), context, batch or 1)
    if as_json:
        typer.echo(json.dumps(as_dict(result), indent=1))
    else:
        show(result, Console())


def planned(
    config: EnsembleConfig, devices: Sequence[str] | None = None, tokens: int | None = None, requests: int = 1
) -> Plan:
    """Returns the plan of an ensemble that is not loaded.

    Args:
        config: The ensemble.
        devices: Names of devices, each with the memory that it has (``"cuda:0=80GiB"``) or of this machine. Default:
            those of the configuration, else all visible GPUs, else the CPU.
        tokens: Tokens per request whose KV cache must fit. Default: ``config.cache_gib`` decides.
        requests: Requests of that length that must fit at once.

    Raises:
        ModelLoadError: The files of a member cannot be used.
        ConfigError: A device cannot be used.
        PlacementError: A member does not fit.
    """
    from gac_core.model.checkpoint import Checkpoint
    from gac_core.model.memory import default_devices, local_devices
    from gac_core.model.placing import plan_members

    given = devices or config.devices or default_devices()
    sized = [Device.parse(text) or local_devices([text.strip()])[0] for text in given]
    return plan_members(config, [Checkpoint.find(member) for member in config.members], sized, tokens, requests)


def as_dict(result: Plan) -> dict[str, Any]:
    """Returns a plan as plain values, sizes in bytes."""
    return {
        "members": [_member(placement) for placement in result.placements],
        "devices": [
            {**asdict(use.device), "reserve": use.reserve, "used": use.used, "left": use.left, "members": use.members}
            for use in result.devices
        ],
    }


def _member(placement: Placement) -> dict[str, Any]:
    need = placement.need
    sizes = {"weights": need.weights, "kv_cache": need.kv_cache, "activations": need.activations}
    return {
        "name": need.name,
        **sizes,
        "devices": {share.device: share.total for share in placement.shares},
        "device_map": placement.device_map,
    }


def show(result: Plan, console: Console) -> None:
    """Prints a plan as tables."""
    members = Table("member", "weights", "KV cache", "activations", "devices")
    for placement in result.placements:
        need = placement.need
        sizes = map(format_bytes, (need.weights, need.kv_cache, need.activations))
        members.add_row(need.name, *sizes, _places(placement))
    console.print(members)
    devices = Table("device", "total", "free", "used", "left", "reserve")
    for use in result.devices:
        memory = (use.device.total, use.device.free, use.used, use.left, use.reserve)
        devices.add_row(use.device.name, *map(format_bytes, memory))
    console.print(devices)


def _places(placement: Placement) -> str:
    if len(placement.shares) == 1:
        return placement.shares[0].device
    return "\n".join(f"{share.device}: {format_bytes(share.total)}" for share in placement.shares)
