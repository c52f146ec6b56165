"""The settings of an ensemble and of its members, in Python or YAML.

Knows nothing of models: it checks and carries values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from gac_core.errors import ConfigError, UnknownArgumentError

COMMITS = ("canonical", "context-free")
ALIGNMENTS = ("token",)
DRAFTS = ("lookup", "ahead")
QUANTIZATIONS = ("8bit", "4bit")


@dataclass(frozen=True)
class MemberConfig:
    """One model of an ensemble.

    Attributes:
        model: Name on a model hub, a folder, or the path of a GGUF file (``.gguf``).
        name: What the member is called; default the stem of a GGUF file, else the last part of ``model``.
        weight: Its share in the average, relative to the others'; above 0. Default 1.
        dtype: ``"auto"`` (default: as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: For example ``"cpu"`` or ``"cuda:1"``. Default: the GPUs in turn if there are any, else the CPU.
        device_map: How accelerate spreads the model over devices (``"auto"`` or a mapping); excludes ``device``.
        revision: Version on the hub.
        tokenizer: Name, folder or GGUF file of the tokenizer; default where the weights come from.
        chat_template: A Jinja chat template in place of the tokenizer's own.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model))
        if not self.model:
            raise ConfigError("a member's model must be a name or a folder, not an empty string")
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ConfigError(f"the weight of member {self.called!r} must be a number above 0, not {weight!r}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(
                f"the dtype of member {self.called!r} must be auto, float32, bfloat16 or float16, not {self.dtype!r}"
            )
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"the quantization of member {self.called!r} must be {' or '.join(QUANTIZATIONS)} or None, "
                f"not {self.quantization!r}"
            )
        if not isinstance(self.compile, bool):
            raise ConfigError(f"compile of member {self.called!r} must be True or False, not {self.compile!r}")
        self._check_source()
        if self.device is not None and not isinstance(self.device, str):
            raise ConfigError(
                f"the device of member {self.called!r} must be a string such as 'cpu' or 'cuda:1', not "
                f"{self.device!r}; several devices are set by one device for each member, or by device_map"
            )
        if self.device is not None and self.device_map is not None:
            raise ConfigError(f"member {self.called!r} has both device and device_map; give one of them")
        if self.context is not None and self.context < 1:
            raise ConfigError(f"the context of member {self.called!r} must be at least 1, not {self.context}")

    def _check_source(self) -> None:
        file = self.gguf_file
        if file is not None and not (isinstance(file, str) and file.endswith(".gguf")):
            raise ConfigError(f"gguf_file of member {self.called!r} must name a .gguf file, not {file!r}")
        if file is not None and self.model.endswith(".gguf"):
            raise ConfigError(f"member {self.called!r} names two GGUF files, {self.model!r} and {file!r}; give one")
        if self.is_gguf and self.quantization is not None:
            raise ConfigError(
                f"quantization of member {self.called!r} cannot be combined with a GGUF file, whose weights are "
                "quantized already; leave it out, or set it for the other members alone"
            )
        if not isinstance(self.allow_pickle, bool):
            raise ConfigError(
                f"allow_pickle of member {self.called!r} must be True or False, not {self.allow_pickle!r}"
            )

    @property
    def is_gguf(self) -> bool:
        """Whether the weights come from a GGUF file."""
        return self.gguf_file is not None or self.model.endswith(".gguf")

    @property
    def called(self) -> str:
        """The member's name."""
        if self.name:
            return self.name
        path = Path(str(self.gguf_file or self.model))
        return (path.stem if path.suffix == ".gguf" else path.name) or self.model


@dataclass(frozen=True)
class EnsembleConfig:
    """A whole ensemble.

    Attributes:
        members: The members, at least one; names must differ.
        gate: Name of the gate of thresholded mode. Default: the member with the largest weight; among equal weights the
            largest model; among equal sizes the first.
        threshold: None (default) ensembles every step; a number in [0, 1] lets the gate decide alone at or above it.
        max_batch_size: Requests that run at once; more wait their turn. Default 16.
        commit: How a picked token enters a member that did not choose it. ``"canonical"`` cuts the member's text anew
            since the last safe boundary, so that it only sees text tokenized as in its training; ``"context-free"``
            encodes the token's bytes alone.
        alignment: How the members' distributions are compared. ``"token"`` (default, and the only rule): the paper's,
            union tokens compete one against the other.
        drafts: Where tokens may be drafted that are then checked several at once; changes the cost, never the text.
            ``"lookup"``: what followed the same words before, in the prompt or the text. ``"ahead"``: the gate, or the
            cheapest member, writes on, and the others check. Default both, and none with ``deterministic``. An empty
            tuple drafts nothing. In bfloat16 and float16 see ``deterministic``.
        max_queue: Requests that may wait for their turn; more are refused. Default 1024.
        prefill_tokens: Tokens of long prompts that a member reads between two steps of what runs. Default 512.
        deterministic: Compute each request by itself: one request per forward, prompts in fixed parts, no drafts and no
            reuse of prompt prefixes. Texts then do not depend on what else runs or ran, in any dtype, bit for bit on
            one machine with one number of threads; batches gain no speed. Default False: in float32 batching, drafts
            and prefix reuse change results by rounding alone (about 1e-6, which practically never changes a text); in
            bfloat16 and float16 they may change a token whose probability is nearly that of another one, and with it
            all that follows. Excludes ``drafts`` and members with ``compile``.
        cache_gib: Memory per member, in GiB, for the keys and values of running requests and of finished ones; those of
            finished ones are kept for prompts that begin alike, and the least recently used given up beyond this.
            Running ones are never given up. 0 keeps nothing. Default 1.
    """

    members: tuple[MemberConfig, ...]
    gate: str | None = None
    threshold: float | None = None
    max_batch_size: int = 16
    commit: str = "canonical"
    alignment: str = "token"
    drafts: tuple[str, ...] | None = None
    max_queue: int = 1024
    prefill_tokens: int = 512
    cache_gib: float = 1.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(as_member(member) for member in self.members))
        names = self.names
        if not names:
            raise ConfigError("an ensemble needs at least one member")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two members are called {twice[0]!r}; give them different MemberConfig.name")
        if self.gate is not None and self.gate not in names:
            raise ConfigError(f"the gate {self.gate!r} is not a member; members are: {', '.join(names)}")
        threshold = self.threshold
        if threshold is not None and (
            isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1
        ):
            raise ConfigError(f"threshold must be a number from 0 to 1 or None, not {threshold!r}")
        if isinstance(self.max_batch_size, bool) or self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size must be at least 1, not {self.max_batch_size!r}")
        if self.commit not in COMMITS:
            raise ConfigError(f"commit must be one of {', '.join(COMMITS)}, not {self.commit!r}")
        if self.alignment not in ALIGNMENTS:
            raise ConfigError(f"alignment must be one of {', '.join(ALIGNMENTS)}, not {self.alignment!r}")

        self._check_engine()

    def _check_engine(self) -> None:
        if not isinstance(self.deterministic, bool):
            raise ConfigError(f"deterministic must be True or False, not {self.deterministic!r}")
        if self.drafts is None:
            object.__setattr__(self, "drafts", () if self.deterministic else DRAFTS)
        if isinstance(self.drafts, str) or not set(self.drafts or ()) <= set(DRAFTS):
            raise ConfigError(f"drafts must be a list of some of {', '.join(DRAFTS)}, not {self.drafts!r}")
        object.__setattr__(self, "drafts", tuple(self.drafts or ()))
        if self.deterministic:
            self._check_deterministic()
        for name, least in (("max_queue", 0), ("prefill_tokens", 16)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if isinstance(self.cache_gib, bool) or not 0 <= self.cache_gib < math.inf:
            raise ConfigError(f"cache_gib must be a number of at least 0, not {self.cache_gib!r}")

    def _check_deterministic(self) -> None:
        if self.drafts:
            raise ConfigError(f"deterministic=True computes no drafts, not {', '.join(self.drafts)}; give drafts=()")
        compiled = [member.called for member in self.members if member.compile]
        if compiled:
            raise ConfigError(
                f"deterministic=True runs one request per forward, but member {compiled[0]!r} has compile=True, which "
                "batches; set it to False"
            )

    @property
    def names(self) -> list[str]:
        """The members' names, in order."""
        return [member.called for member in self.members]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnsembleConfig:
        """Builds a configuration from plain values; members may be strings or mappings.

        Raises:
            UnknownArgumentError: A key is not known.
            ConfigError: A value is wrong.
        """
        _check_keys(values, cls)
        members = values.get("members") or ()
        if isinstance(members, (str, Mapping)) or not isinstance(members, Sequence):
            raise ConfigError(f"members must be a list, not {type(members).__name__}")
        return cls(**{**values, "members": tuple(as_member(member) for member in members)})

    @classmethod
    def from_yaml(cls, path: str | Path) -> EnsembleConfig:
        """Reads a configuration from a YAML file.

        Raises:
            ConfigError: The file cannot be read, is not a mapping, or holds wrong values.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error
        if not isinstance(values, Mapping):
            raise ConfigError(f"the configuration {str(path)!r} must be a mapping with the key 'members'")
        return cls.from_dict(values)

    def to_yaml(self) -> str:
        """Writes the configuration as YAML; values that are defaults are left out of members."""
        values = asdict(self)
        defaults = {field.name: field.default for field in fields(MemberConfig)}
        values["drafts"] = list(self.drafts or ())
        values["members"] = [
            {key: value for key, value in member.items() if key == "model" or value != defaults[key]}
            for member in values["members"]
        ]
        return str(yaml.safe_dump(values, sort_keys=False))


def as_member(value: str | Path | Mapping[str, Any] | MemberConfig) -> MemberConfig:
    """Returns a member's configuration from a name, a folder, a mapping or a configuration."""
    if isinstance(value, MemberConfig):
        return value
    if isinstance(value, (str, Path)):
        return MemberConfig(str(value))
    if isinstance(value, Mapping):
        _check_keys(value, MemberConfig)
        if "model" not in value:
            raise ConfigError("a member needs the key 'model': a name on a hub, or a folder")
        return MemberConfig(**value)
    raise ConfigError(f"a member is a name, a folder or a MemberConfig, not a {type(value).__name__}")


def _check_keys(values: Mapping[str, Any], kind: type) -> None:
    known = {field.name for field in fields(kind)}
    unknown = {str(key) for key in values} - known
    if unknown:
        raise UnknownArgumentError(unknown, known)
