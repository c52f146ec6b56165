"""Chooses the runner of a model: batched if that reproduces its plain forward, else row by row."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from gac_core.model.runner import Row, RowRunner, Runner, SlotRunner, layer_windows, same_logits

logger = logging.getLogger(__name__)


def choose_runner(model: Any, name: str, kind: type[SlotRunner] | None = None) -> Runner:
    """Returns a batched runner if its logits equal the model's plain forward in a short trial, else a `RowRunner`.

    Args:
        model: A causal LM of transformers, in eval mode.
        name: The member's name, for the warning about running without batching.
        kind: The batched runner to try; default `SlotRunner`.
    """
    reason = _unsupported(model)
    if reason is None:
        runner = (kind or SlotRunner)(model)
        try:
            if _trial(model, runner):
                runner.shrink(0, 0)
                return runner
            reason = "its batched logits differ from its plain forward"
        except Exception as error:
            # An unknown architecture may raise anything; running row by row still works.
            reason = f"its batched forward failed ({type(error).__name__}: {error})"
    logger.warning("member %s runs row by row, without batching: %s", name, reason)
    return RowRunner(model)


def _unsupported(model: Any) -> str | None:
    """Why a model cannot run in a `SlotRunner`; None if it may."""
    config = model.config.get_text_config(decoder=True)
    try:
        layer_windows(config)
    except TypeError as error:
        return str(error)
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    if model.get_output_embeddings() is None:
        return "it has no output head that can be found"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention implementation is {config._attn_implementation!r}; load it with 'sdpa'"
    return None


@torch.inference_mode()
def _trial(model: Any, runner: SlotRunner) -> bool:
    """Whether rows of different lengths and a truncation give the logits of a plain forward."""
    rows = int(model.get_output_embeddings().weight.shape[0])
    a, b = ([(7 * i + shift) % rows for i in range(6)] for shift in (3, 5))
    # Eagerly also for a compiled runner, which compares its first compiled forwards with eager ones.
    SlotRunner.forward(runner, [Row(0, 0, tuple(a[:4])), Row(1, 0, tuple(b[:2]))])
    SlotRunner.forward(runner, [Row(1, 2, (a[0], a[1], a[2]))])
    got = SlotRunner.forward(runner, [Row(0, 4, tuple(a[4:])), Row(1, 2, tuple(b[2:3]))])
    device = model.get_input_embeddings().weight.device
    for logits, ids in zip(got, (a, b[:3]), strict=True):
        plain = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
        if not same_logits(model, logits[-1], plain):
            return False
    return True
