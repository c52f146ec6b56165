"""The settings of one member of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gac_core.checks import (
    check_flag,
    check_int,
    check_list,
    check_number,
    check_option,
    check_text,
    count_mismatch,
)
from gac_core.errors import ConfigError, listed, quote
from gac_core.fieldnames import check_names, checked_names
from gac_core.templates.plain import check_template

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")

Weights = Sequence[float] | Mapping[str, float] | str
"""Weights of an ensemble's members: one each, by name, or where they come from."""


@checked_names
@dataclass(frozen=True)
class MemberConfig:
    """One model of an ensemble.

    Attributes:
        model: Name on a model hub, a folder, or the path of a GGUF file (``.gguf``).
        name: What the member is called; default the stem of a GGUF file, else the last part of ``model``.
        weight: Its share in the average, relative to the others'; above 0. Default 1.
        dtype: ``"auto"`` (default: as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: For example ``"cpu"`` or ``"cuda:1"``. Default: placed by its size among `EnsembleConfig.devices`.
        device_map: How accelerate spreads the model over devices (``"auto"`` or a mapping); excludes ``device``.
        revision: Version on the hub.
        tokenizer: Name, folder or GGUF file of the tokenizer; default where the weights come from.
        chat_template: A Jinja chat template in place of the tokenizer's own; or ``"plain"``: turns as text under
            ``System:``, ``User:``, ``Assistant:`` and ``Tool:``, for models without a template, such as base models.
            Answers then also end where a line begins with one of these, unless the request has a grammar.
        context: The longest text it may read, in tokens; default what the model's config says.
        trust_remote_code: Run code that the model's folder brings along. Default False.
        quantization: ``"8bit"`` or ``"4bit"`` packs the weights through bitsandbytes (the extra ``quantized``). None
            (default) leaves them as they are.
        compile: Compile the forwards of a few tokens, for CUDA graphs on a GPU; each shape takes seconds to minutes
            when it is first met. Default False.
        gguf_file: A GGUF file in the folder or hub repository ``model`` (the extra ``gguf``). Its weights stay packed
            where transformers has a kernel for them, and are dequantised into ``dtype`` otherwise; ``"auto"`` means
            float32 for a file of packed weights. Its tokenizer and chat template are used. Default None.
        allow_pickle: Load weights that exist only as pickle (``pytorch_model.bin``), a format that can carry code;
            False (default) loads safetensors only.
        num_gpus: GPUs that Ray reserves for it with ``executor="ray"``; a fraction lets members share one. Default 1
            where the cluster has GPUs and ``device`` is not ``"cpu"``, else 0. It is placed on those
            as in this process.
        num_cpus: CPU cores that Ray reserves for it, and threads that its forwards use on a CPU. Default: none are
            reserved, and it uses as many threads as its node has cores, divided by the number of members; or the
            environment variable ``OMP_NUM_THREADS`` of this process, if that is set.
        resources: Custom resources of Ray that it needs, such as ``{"big_memory": 1}``; they select nodes. Default
            none.
        temperature: Temperature scaling (Guo et al. 2017): its logits are divided by this, after a request's
            ``repetition_penalty`` and before anything else. Above 1 its distributions become flatter, which corrects a
            model that is surer than it is right; `gac calibrate` finds the value. It changes how much the member's
            preferences count, not which token the member itself prefers. Above 0. Default 1: unchanged.
    """

    model: str
    name: str | None = None
    weight: float = 1.0
    dtype: str = "auto"
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    revision: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    context: int | None = None
    trust_remote_code: bool = False
    quantization: str | None = None
    compile: bool = False
    gguf_file: str | None = None
    allow_pickle: bool = False
    num_gpus: float | None = None
    num_cpus: float | None = None
    resources: Mapping[str, float] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        model = str(self.model) if isinstance(self.model, Path) else self.model
        self._set("model", check_text(ConfigError, "a member's model", model, "give a name on a hub, or a folder"))
        if isinstance(self.tokenizer, Path):
            self._set("tokenizer", str(self.tokenizer))
        for field in ("name", "tokenizer", "revision", "chat_template"):
            if getattr(self, field) is not None:
                self._set(field, check_text(ConfigError, self._label(field), getattr(self, field)))
        if not isinstance(self.weight, bool) and self.weight == 0:
            raise ConfigError(
                f"{self._label('weight')} must be above 0, not {quote(self.weight)}; leave the member out, or give it "
                "the weight 0 in the weights of a request"
            )
        self._set("weight", check_number(ConfigError, self._label("weight"), self.weight, 0, low_open=True))
        temperature = check_number(ConfigError, self._label("temperature"), self.temperature, 0, 1e6, low_open=True)
        self._set("temperature", temperature)
        self._set("dtype", check_option(ConfigError, self._label("dtype"), self.dtype, DTYPES))
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"{self._label('quantization')} must be {', '.join(map(quote, QUANTIZATIONS))} or None, not "
                f"{quote(self.quantization)}"
            )
        for field in ("compile", "trust_remote_code", "allow_pickle"):
            check_flag(ConfigError, self._label(field), getattr(self, field))
        if self.context is not None:
            self._set("context", check_int(ConfigError, self._label("context"), self.context, 1))
        self._check_source()
        check_template(self._label("chat_template"), self.chat_template)
        self._check_device()
        self._check_resources()

    def _check_resources(self) -> None:
        for field in ("num_gpus", "num_cpus"):
            if getattr(self, field) is not None:
                self._set(field, check_number(ConfigError, self._label(field), getattr(self, field), 0, 2**20))
        if self.num_gpus is not None and self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ConfigError(
                f"{self._label('num_gpus')} must be at most 1 or a whole number, not {quote(self.num_gpus)}: Ray "
                "shares single GPUs alone"
            )
        if self.resources is None:
            return
        label = self._label("resources")
        if not isinstance(self.resources, Mapping):
            raise ConfigError(
                f"{label} must map names to amounts, for example {{'big_memory': 1}}, not {quote(self.resources)}"
            )
        amounts: dict[str, float] = {}
        for name, amount in self.resources.items():
            name = check_text(ConfigError, f"a name in {label}", name)
            if name in ("CPU", "GPU"):
                raise ConfigError(f"{label} contain {quote(name)}; set num_cpus or num_gpus instead")
            amounts[name] = check_number(ConfigError, f"{label}, {quote(name)},", amount, 0, 2**20, low_open=True)
        self._set("resources", amounts)

    def _check_device(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise ConfigError(f"member {quote(self.called)} has both device and device_map; give one of them")
        if self.device is not None:
            if not isinstance(self.device, str):
                raise ConfigError(
                    f"{self._label('device')} must be a string such as 'cpu' or 'cuda:1', not {quote(self.device)}; "
                    "several devices are set by one device for each member, or by device_map"
                )
            self._set("device", check_text(ConfigError, self._label("device"), self.device))
        places = self.device_map
        if isinstance(places, Mapping):
            if not places or not all(
                isinstance(module, str) and isinstance(place, (str, int)) and not isinstance(place, bool)
                for module, place in places.items()
            ):
                raise ConfigError(
                    f"{self._label('device_map')} must map names of modules to devices, for example {{'': 'cuda:0'}}, "
                    f"not {quote(places)}"
                )
            self._set("device_map", dict(places))
        elif places is not None:
            remedy = "give 'auto' or a mapping of modules to devices"
            self._set("device_map", check_text(ConfigError, self._label("device_map"), places, remedy))
        if "meta" in (self.device_map.values() if isinstance(self.device_map, Mapping) else [self.device_map]):
            raise ConfigError(
                f"{self._label('device_map')} names 'meta', where torch keeps shapes alone; give devices with memory"
            )

    def _label(self, field: str) -> str:
        return f"the {field} of member {quote(self.called)}"

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _check_source(self) -> None:
        file = self.gguf_file
        if file is not None:
            if not (isinstance(file, str) and file.endswith(".gguf")):
                raise ConfigError(f"{self._label('gguf_file')} must name a .gguf file, not {quote(file)}")
            self._set("gguf_file", check_text(ConfigError, self._label("gguf_file"), file))
        if file is not None and self.model.endswith(".gguf"):
            raise ConfigError(
                f"member {quote(self.called)} names two GGUF files, {quote(self.model)} and {quote(file)}; give one"
            )
        if self.is_gguf and self.quantization is not None:
            raise ConfigError(
                f"{self._label('quantization')} cannot be combined with a GGUF file, whose weights are quantized "
                "already; leave it out, or set it for the other members alone"
            )

    @property
    def reserves(self) -> list[str]:
        """The names of the fields that say what Ray reserves for it, of those that are set."""
        return [field for field in ("num_gpus", "num_cpus", "resources") if getattr(self, field) is not None]

    @property
    def is_gguf(self) -> bool:
        """Whether the weights come from a GGUF file."""
        return self.gguf_file is not None or self.model.endswith(".gguf")

    @property
    def called(self) -> str:
        """The member's name."""
        if isinstance(self.name, str):
            return self.name
        path = Path(self.gguf_file if isinstance(self.gguf_file, str) else self.model)
        return (path.stem if path.suffix == ".gguf" else path.name) or self.model


def with_weights(members: Sequence[MemberConfig], weights: object) -> tuple[MemberConfig, ...]:
    """Returns members with other weights.

    Args:
        members: The members.
        weights: One number per member, or a mapping of names to numbers; members that are not in it keep theirs.

    Raises:
        ConfigError: They do not fit the members.
    """
    if isinstance(weights, Mapping):
        names = [member.called for member in members]
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ConfigError(f"weights names {quote(unknown[0])}, which is not a member; members are: {listed(names)}")
        given = [weights.get(member.called, member.weight) for member in members]
    else:
        remedy = f"give one number per member, a mapping of names to numbers, {quote('auto')} or {quote('perplexity')}"
        if isinstance(weights, Set):
            raise ConfigError(f"weights must have an order, not {quote(weights)}; {remedy}")
        given = list(check_list(ConfigError, "weights", weights, "numbers", remedy))
        if len(given) != len(members):
            raise ConfigError(count_mismatch(given, len(members)))
    try:
        return tuple(replace(member, weight=weight) for member, weight in zip(members, given, strict=True))
    except ConfigError as error:
        error.args = (f"{error}; in weights={quote(weights)}",)
        raise


def as_member(value: str | Path | Mapping[str, Any] | MemberConfig) -> MemberConfig:
    """Returns a member's configuration from a name, a folder, a mapping or a configuration."""
    if isinstance(value, MemberConfig):
        return value
    if isinstance(value, (str, Path)):
        return MemberConfig(str(value))
    if isinstance(value, Mapping):
        check_names(value, MemberConfig)
        if "model" not in value:
            raise ConfigError("a member needs the key 'model': a name on a hub, or a folder")
        return MemberConfig(**value)
    raise ConfigError(f"each of members must be a name, a folder, a mapping or a MemberConfig, not {quote(value)}")
