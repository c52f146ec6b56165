"""`Calibration`: what ``gac calibrate`` found for an ensemble, as a value and as a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gac_core.checks import check_flag, check_int, check_number, check_text
from gac_core.errors import ConfigError, listed, quote
from gac_core.fieldnames import check_names
from gac_core.yamlfile import read_yaml

WEIGHT_SOURCES = ("auto", "perplexity")
"""The values of ``weights`` that are not numbers: from a calibration, and from each prompt's perplexity."""

CALIBRATED = ("gate", "threshold", "combine", "gate_rule")
"""Settings of an ensemble that a calibration has besides weights and temperatures."""

REMEDY = "make a calibration with: gac calibrate ENSEMBLE.yaml --data QUESTIONS.jsonl --out calibration.yaml"


@dataclass(frozen=True)
class CalibratedMember:
    """What was found for one member.

    Attributes:
        weight: Its weight; with 0 it takes no part in requests that do not give it another weight.
        temperature: As in `MemberConfig`. Default 1.
        hurts: Whether the ensemble is better without it. Default False.
    """

    weight: float
    temperature: float = 1.0
    hurts: bool = False

    @classmethod
    def of(cls, name: str, values: object) -> CalibratedMember:
        """Returns a member of plain values.

        Raises:
            ConfigError: A key or a value is wrong.
        """
        label = f"in the calibration, member {quote(name)}"
        if not isinstance(values, Mapping):
            raise ConfigError(f"{label} must be a mapping with the key 'weight', not {quote(values)}")
        check_names(values, cls, f"key of member {quote(name)} in the calibration")
        if "weight" not in values:
            raise ConfigError(f"{label} has no weight; {REMEDY}")
        temperature = check_number(
            ConfigError, f"{label}: temperature", values.get("temperature", 1.0), 0, 1e6, low_open=True
        )
        hurts = check_flag(ConfigError, f"{label}: hurts", values.get("hurts", False))
        return cls(check_number(ConfigError, f"{label}: weight", values["weight"], 0), temperature, hurts)


@dataclass(frozen=True)
class MadeFrom:
    """What a calibration was made from, for readers.

    Attributes:
        data: Name of the file of questions.
        questions: How many questions.
        metric: The metric.
        date: The day, as in ``2026-01-31``.
    """

    data: str = ""
    questions: int = 0
    metric: str = ""
    date: str = ""


@dataclass(frozen=True)
class Calibration:
    """Weights, temperatures, gate, threshold and rules of an ensemble.

    Attributes:
        members: By name.
        gate: As in `EnsembleConfig`. Default None.
        threshold: As in `EnsembleConfig`. Default None.
        combine: As in `EnsembleConfig`; None (default): its default.
        gate_rule: As in `EnsembleConfig`; None (default): its default.
        made_from: What it was made from.
        version: Version of the format: 1.
    """

    members: Mapping[str, CalibratedMember]
    gate: str | None = None
    threshold: float | None = None
    combine: str | None = None
    gate_rule: str | None = None
    made_from: MadeFrom = MadeFrom()
    version: int = 1

    def __post_init__(self) -> None:
        if not any(member.weight for member in self.members.values()):
            raise ConfigError(f"the calibration has no member with a weight above 0; {REMEDY}")
        if self.gate is not None and (self.gate not in self.members or not self.members[self.gate].weight):
            raise ConfigError(
                f"the gate {quote(self.gate)} of the calibration is no member of it with a weight above 0; its members "
                f"are: {listed(self.members)}"
            )

    @classmethod
    def of(cls, source: Calibration | Mapping[str, Any] | str | Path) -> Calibration:
        """Returns a calibration as it is, of plain values, or read from a YAML file.

        Raises:
            ConfigError: The file cannot be read, or a key or a value is wrong.
        """
        if isinstance(source, Calibration):
            return source
        if isinstance(source, Mapping):
            return cls._of_values(source)
        if not isinstance(source, Path):
            source = check_text(ConfigError, "calibration", source, f"give the path of a file; {REMEDY}")
        try:
            return cls._of_values(read_yaml(source))
        except ConfigError as error:
            error.args = (f"{error}; in the calibration {quote(str(source))}",)
            raise

    @classmethod
    def _of_values(cls, values: object) -> Calibration:
        if not isinstance(values, Mapping) or not isinstance(values.get("members"), Mapping):
            raise ConfigError(
                f"a calibration must be a mapping with the keys 'version' and 'members', not {quote(values)}; {REMEDY}"
            )
        check_names(values, cls, "key of the calibration")
        check_int(ConfigError, "the calibration's version", values.get("version", 0), 1, 1)
        texts = {
            key: None if values.get(key) is None else check_text(ConfigError, f"the calibration's {key}", values[key])
            for key in ("gate", "combine", "gate_rule")
        }
        gate, combine, gate_rule = texts.values()
        threshold = values.get("threshold")
        if threshold is not None:
            threshold = check_number(ConfigError, "the calibration's threshold", threshold, 0, 1)
        names = [check_text(ConfigError, "a member's name in the calibration", name) for name in values["members"]]
        made_from = values.get("made_from") or {}
        if not isinstance(made_from, Mapping):
            raise ConfigError(f"the calibration's made_from must be a mapping, not {quote(made_from)}")
        check_names(made_from, MadeFrom, "key of made_from in the calibration")
        return cls(
            members={name: CalibratedMember.of(name, values["members"][name]) for name in names},
            gate=gate,
            threshold=threshold,
            combine=combine,
            gate_rule=gate_rule,
            made_from=MadeFrom(**made_from),
        )

    def to_yaml(self) -> str:
        """Returns the content of a file that `of` reads."""
        values = asdict(self)
        return str(yaml.safe_dump({"version": values.pop("version"), **values}, sort_keys=False))

    def check_members(self, names: list[str]) -> None:
        """Raises a `ConfigError` unless the ensemble has the same members."""
        extra = [name for name in self.members if name not in names]
        missing = [name for name in names if name not in self.members]
        if extra:
            raise ConfigError(
                f"the calibration has the member {quote(extra[0])}, which the ensemble lacks; its members are: "
                f"{listed(names)}; name them as in the calibration, or {REMEDY}"
            )
        if missing:
            raise ConfigError(f"the calibration lacks the member {quote(missing[0])} of the ensemble; {REMEDY}")
