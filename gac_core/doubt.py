"""`Doubt`: how sure an answer is, and the calibrated probability that the documents do not contain it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gac_core.checks import check_int, check_number, check_text
from gac_core.errors import ConfigError, quote
from gac_core.fieldnames import check_names

FEATURES = ("share", "agreement", "entropy", "lift", "logprob")
"""The fields of `Doubt` from which `AbsenceCalibration` predicts."""

REMEDY = "make one with: gac calibrate-documents ENSEMBLE.yaml --data QUESTIONS.jsonl --out absence.json"


@dataclass(frozen=True)
class Doubt:
    """How sure a text is: an answer, a span of it, or a tool call. Means are over its tokens.

    Attributes:
        agreement: Mean of `TokenStats.agreement`; None where no step combined several distributions.
        entropy: Mean of `TokenStats.entropy`, in nats; None without documents.
        share: Posterior share of the winning document, 0 to 1 (`Citation.share`); None without documents.
        lift: Mean logarithm of the ratio of the winning document's probability to the prior's, in nats: what the
            document adds to what the members know without it. None without a prior.
        not_in_documents: Probability that the documents do not contain the answer; None without a calibration
            (`EnsembleConfig.absence`), and where a value that it needs is missing.
        logprob: Mean log-probability that the winning document gives, in nats; None without documents.
        least_agreement: Smallest agreement at one token: a tool's name on which members disagree is one token of many.
    """

    agreement: float | None = None
    entropy: float | None = None
    share: float | None = None
    lift: float | None = None
    not_in_documents: float | None = None
    logprob: float | None = None
    least_agreement: float | None = None


@dataclass(frozen=True)
class FeatureScale:
    """The part that one feature has in a prediction.

    Attributes:
        mean: Its mean over the questions of the fit.
        deviation: Its standard deviation over them, above 0.
        coefficient: What one standard deviation adds to the log odds.
    """

    mean: float
    deviation: float
    coefficient: float

    @classmethod
    def of(cls, name: str, values: object) -> FeatureScale:
        """Returns the part of one feature, given as plain values; raises a `ConfigError` if one is wrong."""
        label = f"in the calibration of absence, the feature {quote(name)}"
        if not isinstance(values, Mapping):
            raise ConfigError(f"{label} must be a mapping, not {quote(values)}; {REMEDY}")
        check_names(values, cls, f"key of the feature {quote(name)}")
        bound = 1e12
        return cls(
            check_number(ConfigError, f"{label}: mean", values.get("mean"), -bound, bound),
            check_number(ConfigError, f"{label}: deviation", values.get("deviation"), 0, bound, low_open=True),
            check_number(ConfigError, f"{label}: coefficient", values.get("coefficient"), -bound, bound),
        )


@dataclass(frozen=True)
class AbsenceCalibration:
    """Predicts from an answer's doubt whether the documents contain it: a logistic regression.

    It holds for the ensemble, the settings and the kind of prompt that it was fitted with, and for answers as a whole;
    for a span of a longer answer it is an indication.

    Attributes:
        features: By field of `Doubt`, its part in the prediction.
        intercept: Log odds of absence where every feature has its mean.
        questions: How many questions it was fitted on.
        version: Version of the format: 1.
    """

    features: Mapping[str, FeatureScale]
    intercept: float
    questions: int = 0
    version: int = 1

    def probability(self, doubt: Doubt) -> float | None:
        """Returns the probability that the documents do not contain an answer; None if a feature is missing."""
        odds = self.intercept
        for name, scale in self.features.items():
            value = getattr(doubt, name)
            if value is None:
                return None
            odds += scale.coefficient * (value - scale.mean) / scale.deviation
        # The argument is bounded, so that the exponential does not overflow.
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, odds))))

    def applied(self, doubt: Doubt) -> Doubt:
        """Returns a doubt with this calibration's `Doubt.not_in_documents`."""
        return replace(doubt, not_in_documents=self.probability(doubt))

    @classmethod
    def of(cls, source: AbsenceCalibration | Mapping[str, Any] | str | Path) -> AbsenceCalibration:
        """Returns a calibration as it is, of plain values, or read from a JSON file.

        Raises:
            ConfigError: The file cannot be read, or a key or a value is wrong.
        """
        if isinstance(source, AbsenceCalibration):
            return source
        if isinstance(source, Mapping):
            return cls._of_values(source)
        path = source if isinstance(source, Path) else check_text(ConfigError, "absence", source, "give a path")
        try:
            return cls._of_values(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                error.args = (f"{error}; in {quote(str(path))}",)
                raise
            raise ConfigError(f"absence={quote(str(path))} cannot be read: {error}; {REMEDY}") from error

    @classmethod
    def _of_values(cls, values: object) -> AbsenceCalibration:
        if not isinstance(values, Mapping) or not isinstance(values.get("features"), Mapping):
            raise ConfigError(
                f"a calibration of absence must be a mapping with the key 'features', not {quote(values)}; {REMEDY}"
            )
        check_names(values, cls, "key of the calibration of absence")
        if values.get("version") != 1:
            raise ConfigError(f"a calibration of absence has version 1, not {quote(values.get('version'))}; {REMEDY}")
        unknown = [name for name in values["features"] if name not in FEATURES]
        if unknown or not values["features"]:
            raise ConfigError(
                f"the features of a calibration of absence are some of {', '.join(FEATURES)}, not "
                f"{quote(unknown[0]) if unknown else 'none'}; {REMEDY}"
            )
        return cls(
            features={name: FeatureScale.of(name, own) for name, own in values["features"].items()},
            intercept=check_number(ConfigError, "its intercept", values.get("intercept"), -1e12, 1e12),
            questions=check_int(ConfigError, "its number of questions", values.get("questions", 0), 0),
        )

    def to_json(self) -> str:
        """Returns the content of a file that `of` reads."""
        values = asdict(self)
        return json.dumps({"version": values.pop("version"), **values}, indent=1) + "\n"
