"""From the generation arguments of a task to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from gac_core.errors import RequestError, UnknownArgumentError, quote
from gac_core.sampling import SamplingParams

MAX_TOKENS = 256
"""Tokens of an answer where the task does not say, as in lm-evaluation-harness."""

# Those that mean the same in `SamplingParams`.
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_SAME = ("temperature", "top_k", "top_p", "min_p", "seed", *_PENALTIES)
_KNOWN = ("until", "do_sample", "max_gen_toks", *_SAME)


def sampling_params(given: Mapping[str, Any], params: SamplingParams, seed: int) -> SamplingParams:
    """Returns the parameters of a request.

    Args:
        given: The task's generation arguments: ``until``, ``max_gen_toks`` (or ``max_new_tokens``, ``max_tokens``),
            ``do_sample``, and those of `SamplingParams` that have the same name.
        params: The model's own parameters, which they override.
        seed: Seed of a sampled answer whose arguments have none.

    Raises:
        RequestError: An argument is wrong.
        UnknownArgumentError: An argument is not known.
    """
    asked = dict(normalize_gen_kwargs(dict(given), MAX_TOKENS))
    unknown = [name for name in asked if name not in _KNOWN]
    if unknown:
        raise UnknownArgumentError(unknown, _KNOWN, "generation argument")
    until = [text for text in asked["until"] if text] if asked["until"] != [None] else []
    if not all(isinstance(text, str) for text in until):
        raise RequestError(f"until must be a string or a list of strings, not {quote(given['until'])}")
    own = {name: asked[name] for name in _SAME if asked.get(name) is not None}
    if not asked["do_sample"]:
        own["temperature"] = 0.0
    elif "temperature" not in own or own["temperature"] == 0:
        raise RequestError("do_sample=True needs a temperature above 0; give one, or set do_sample=False")
    # A cutoff of 0 means none in transformers.
    if own.get("top_k") == 0:
        own["top_k"] = None
    return params.with_overrides({"seed": seed, **own, "stop": tuple(until), "max_tokens": asked["max_gen_toks"]})
