"""Models: what loading would find out about their files, without reading weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gac_core.chat.template import traits_of
from gac_core.config import EnsembleConfig
from gac_core.errors import GaCError, ModelLoadError
from gac_core.member_config import MemberConfig
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.checkpoint_checks import member_tokenizer
from gac_core.model.memory import default_devices, local_devices
from gac_core.model.placing import plan_members


@dataclass(frozen=True)
class ModelFacts:
    """A model as loading would find it.

    Attributes:
        name: The member's name.
        path: Folder, file, or name on a hub.
        architecture: Its class; None if its files cannot be used.
        weights: Bytes of its weights in memory.
        dtype: Their dtype once they are loaded.
        quantization: How they are quantized; None if they are not.
        context: The longest text that it can read, in tokens; None if its configuration does not tell.
        chat_template: Whether it has a chat template.
        tools: ``"native"``: its chat template renders tools. ``"described"``: tools are described in the system
            message. None without a chat template.
        vision: Whether it reads images.
        placement: Where it would be placed by itself, with its KV cache; None if it does not fit.
        problem: Why it cannot be used, with the remedy; None if it can.
    """

    name: str
    path: str
    architecture: str | None = None
    weights: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    context: int | None = None
    chat_template: bool = False
    tools: str | None = None
    vision: bool = False
    placement: str | None = None
    problem: str | None = None


def model_facts(member: MemberConfig, config: EnsembleConfig | None = None) -> ModelFacts:
    """Returns what loading would find out about a member's files.

    Args:
        member: The member.
        config: The ensemble whose limits it has. Default: the default limits.
    """
    limits = config or EnsembleConfig((member,))
    try:
        checkpoint = Checkpoint.find(member)
        if os.path.isdir(checkpoint.weights.path) and checkpoint.stored_bytes() is None:
            raise ModelLoadError(
                member.model, "its weights cannot be read: a file is missing or damaged; download or copy them again"
            )
        tokenizer = member_tokenizer(
            member.called, checkpoint.load_tokenizer(checkpoint.load_processor()), (), checkpoint.vocab_size
        )
    except GaCError as error:
        return ModelFacts(member.called, _path(member), problem=str(error))
    has_template = bool(tokenizer.hf.chat_template)
    tools = None if not has_template else "native" if traits_of(tokenizer).tools else "described"
    own = EnsembleConfig((member,), cache_gib=limits.cache_gib, document_cache_gib=limits.document_cache_gib)
    placement, problem = _placement(own, [checkpoint], limits.devices)
    text = checkpoint.architecture.get_text_config(decoder=True)
    return ModelFacts(
        name=member.called,
        path=_path(member),
        architecture=next(iter(checkpoint.architecture.architectures or ()), checkpoint.architecture.model_type),
        weights=_weights(checkpoint),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        quantization=_quantization(member, checkpoint.architecture),
        context=member.context or getattr(text, "max_position_embeddings", None),
        chat_template=has_template,
        tools=tools,
        vision=checkpoint.reads_images,
        placement=placement,
        problem=problem,
    )


def ensemble_problem(config: EnsembleConfig) -> str | None:
    """Returns why the members of an ensemble do not fit together on its devices; None if they do."""
    try:
        checkpoints = [Checkpoint.find(member) for member in config.members]
    except GaCError as error:
        return str(error)
    return _placement(config, checkpoints, config.devices)[1]


def cached_models(cache: Path | None = None) -> list[MemberConfig]:
    """Returns the models in the cache of the model hub, newest revision each; does not use the network.

    Args:
        cache: The folder of the cache. Default: that of huggingface_hub.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir(cache).repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda repo: str(repo.repo_id)):
        revisions = sorted(repo.revisions, key=lambda revision: float(revision.last_modified))
        if repo.repo_type == "model" and revisions:
            folder = Path(revisions[-1].snapshot_path)
            if (folder / "config.json").exists():
                found.append(MemberConfig(str(folder), name=str(repo.repo_id)))
    return found


def _path(member: MemberConfig) -> str:
    return member.model if member.gguf_file is None else f"{member.model}/{member.gguf_file}"


def _weights(checkpoint: Checkpoint) -> int | None:
    try:
        return checkpoint.stored_bytes() if checkpoint.is_packed else checkpoint.skeleton().weights
    except Exception:
        # A model that cannot be built without storage counts by the headers of its files.
        return checkpoint.stored_bytes()


def _quantization(member: MemberConfig, architecture: Any) -> str | None:
    if member.is_gguf:
        return "GGUF"
    stored = getattr(architecture, "quantization_config", None)
    if stored is None:
        return member.quantization
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    return str(getattr(method, "value", method) or "quantized")


def _placement(
    config: EnsembleConfig, checkpoints: Sequence[Checkpoint], devices: Sequence[str] | None
) -> tuple[str | None, str | None]:
    """Where members would be placed, or why they do not fit."""
    try:
        plan = plan_members(config, checkpoints, local_devices(list(devices or default_devices())))
    except GaCError as error:
        return None, str(error)
    return ", ".join(dict.fromkeys(share.device for each in plan.placements for share in each.shares)), None
