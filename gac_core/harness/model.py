"""`GaCLM`: an ensemble as a model of lm-evaluation-harness."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, RequestError, quote
from gac_core.harness.chats import Turn, read_context, write_chat
from gac_core.harness.generation import sampling_params
from gac_core.harness.windows import windows
from gac_core.sampling import SamplingParams

logger = logging.getLogger(__name__)

R = TypeVar("R")


@register_model("gac")
class GaCLM(LM):  # type: ignore[misc]  # lm_eval has no types
    """An ensemble as a model of lm-evaluation-harness, registered as ``gac``.

    Log-likelihoods are those of `Ensemble.score`. Whitespace at the end of a context is moved to the continuation, as
    lm-evaluation-harness does for its own models. Contexts are never truncated: one that is too long is an error.

    Args:
        pretrained: The members: names or folders, joined by ``+`` or as a list. None: ``config`` or ``ensemble``.
        config: A YAML file with the ensemble's configuration, instead of ``pretrained``.
        ensemble: A loaded ensemble, instead of ``pretrained``; it is not closed.
        weights: One number per member, joined by ``+`` or as a list; or what else `Ensemble.load` takes.
        batch_size: Requests that run at once, 1 or more. ``"auto"`` (default): `EnsembleConfig.max_batch_size`.
        max_batch_size: Ignored: memory does not depend on the batch size as it does for other models.
        device: As in `Ensemble.load`. lm-evaluation-harness passes ``"cuda:0"`` if none is given; without a GPU it is
            ignored.
        params: Parameters of all requests (threshold, gate, combination rule, ...). Default `SamplingParams()`.
        seed: Added to a request's index to give the seed of a sampled answer. Default 0.
        **settings: Further arguments of `Ensemble.load`, such as ``dtype``, ``threshold``, ``gate``, ``combine``.

    Attributes:
        ensemble: The ensemble.

    Raises:
        ConfigError: An argument is wrong.
        ModelLoadError: A model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str | Sequence[str] | None = None,
        config: str | None = None,
        ensemble: Ensemble | None = None,
        weights: Any = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        params: SamplingParams | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        given = [
            name for name, value in [("pretrained", pretrained), ("config", config), ("ensemble", ensemble)] if value
        ]
        if len(given) != 1:
            raise ConfigError(
                f"give one of pretrained, config and ensemble, not {', '.join(given) or 'none'}; for example "
                "--model_args pretrained=model-a+model-b"
            )
        if not pretrained and (settings or weights is not None):
            raise ConfigError(f"{given[0]} has its own settings; leave out {', '.join(settings) or 'weights'}")
        self.ensemble = ensemble or self._loaded(pretrained, config, weights, device, settings)
        self._params = params or SamplingParams()
        self._seed = seed
        self._workers = _workers(batch_size, self.ensemble.config.max_batch_size)

    @staticmethod
    def _loaded(
        pretrained: str | Sequence[str] | None, config: str | None, weights: Any, device: str | None, settings: Any
    ) -> Ensemble:
        if config is not None:
            return Ensemble.from_config(config)
        models = pretrained.split("+") if isinstance(pretrained, str) else list(pretrained or ())
        placed = None if device == "cuda:0" and not torch.cuda.is_available() else device
        return Ensemble.load(models, weights=_weights(weights), device=placed, **settings)

    # ---- requests

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns for each (context, continuation) the log-probability, and whether greedy decoding would write it."""

        def score(index: int, request: Instance) -> tuple[float, bool]:
            context, continuation = request.args
            prompt = read_context(context)
            if isinstance(prompt, str):
                kept = prompt.rstrip()
                prompt, continuation = kept, prompt[len(kept) :] + continuation
            found = self.ensemble.score(prompt, continuation, self._params)
            return found.logprob, found.greedy

        return self._answers("loglikelihood", requests, score, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probability of whole texts, long ones in windows (`gac_core.harness.windows`)."""

        def score(index: int, request: Instance) -> float:
            [text] = request.args
            params, one = self._params, self.ensemble
            parts = windows(one.cut(text, params), one.context_for(params), lambda part: one.count_tokens(part, params))
            scores = [one.score(part.context, part.tokens, params) for part in parts]
            return math.fsum(part.logprob for part in scores)

        return self._answers("loglikelihood_rolling", requests, score, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the answer to each (context, generation arguments), without the stop string and without reasoning."""

        def generate(index: int, request: Instance) -> str:
            context, arguments = request.args
            if not isinstance(arguments, Mapping):
                raise RequestError(f"generation arguments must be a mapping, not {quote(arguments)}")
            params = sampling_params(arguments, self._params, self._seed + index)
            return self.ensemble.generate(read_context(context), params).text

        return self._answers("generate_until", requests, generate, disable_tqdm)

    def _answers(
        self, kind: str, requests: Sequence[Instance], answer: Callable[[int, Instance], R], disable_tqdm: bool
    ) -> list[R]:
        """Runs requests side by side, in their order; the first error ends them all."""
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="gac-harness")
        try:
            futures = [pool.submit(answer, index, request) for index, request in enumerate(requests)]
            results = []
            for request, future in zip(requests, tqdm(futures, desc=kind, disable=disable_tqdm), strict=True):
                results.append(future.result())
                self.cache_hook.add_partial(kind, request.args, results[-1])
            return results
        finally:
            pool.shutdown(cancel_futures=True)

    # ---- conversations

    def apply_chat_template(self, chat_history: list[Turn], add_generation_prompt: bool = True) -> str:
        """Returns a string that stands for a conversation; each member renders it with its own template.

        Raises:
            RequestError: The task begins the assistant's answer.
        """
        if not add_generation_prompt:
            raise RequestError(
                "the task begins the assistant's answer (gen_prefix), which chat templates of an ensemble do not "
                "support; run it without --apply_chat_template"
            )
        return write_chat(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the members' chat templates as JSON, by name, for the log; None without one."""
        if not chat_template:
            return None
        templates = {member.name: member.tokenizer.hf.chat_template for member in self.ensemble._members}
        return json.dumps(templates)

    @property
    def tokenizer_name(self) -> str:
        """Names the members in keys of lm-evaluation-harness's request cache."""
        return "gac-" + "-".join(name.replace("/", "__") for name in self.ensemble.names)


def _weights(given: Any) -> Any:
    """Returns weights as `Ensemble.load` takes them: ``1+2+4``, and a single number, as a list."""
    if isinstance(given, (int, float)):
        return [given]
    if not isinstance(given, str):
        return given
    try:
        return [float(part) for part in given.split("+")]
    except ValueError:
        return given


def _workers(batch_size: int | str | None, default: int) -> int:
    """Returns how many requests run at once."""
    if batch_size is None or str(batch_size).startswith("auto"):
        return default
    try:
        workers = int(batch_size)
    except ValueError:
        workers = 0
    if workers < 1:
        raise ConfigError(f"batch_size must be a number of 1 or more, or 'auto', not {quote(batch_size)}")
    return workers
