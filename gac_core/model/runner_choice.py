"""Chooses the runner of a model: batched if that reproduces its plain forward, else row by row."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from gac_core.images import Image
from gac_core.model.compiled import CompiledRunner
from gac_core.model.loaded import LoadedModel
from gac_core.model.runner import Row, Runner, SlotRunner, layer_windows, same_logits
from gac_core.model.vision_runner import VisionRowRunner, VisionRunner, model_inputs, row_runner
from gac_core.tokenization.vision import EncodedPrompt, VisionProcessor

logger = logging.getLogger(__name__)

Batched = TypeVar("Batched", bound=SlotRunner)

_SAMPLE_SIZE = (224, 160)
"""Width and height of the image of the trial."""


@dataclass(frozen=True)
class ChosenRunner:
    """How a model runs.

    Attributes:
        runner: Its runner.
        vision: Encodes prompts with images; None if the model, or the runner, reads text alone.
    """

    runner: Runner
    vision: VisionProcessor | None = None


def choose_runner(loaded: LoadedModel, name: str, compile: bool = False) -> ChosenRunner:
    """Returns a batched runner if its logits equal the model's plain forward in a short trial, else a `RowRunner`.

    A vision-language model reads images if the logits after one equal those of its plain forward.

    Args:
        loaded: The model.
        name: The member's name, for warnings about running without batching, without compiling or without images.
        compile: Whether to compile forwards of a few tokens.
    """
    if loaded.vision is None:
        kind = CompiledRunner if compile else SlotRunner
        return ChosenRunner(_batched(loaded.model, name, kind) or row_runner(loaded.model))
    if compile:
        logger.warning("member %s reads images and runs without compiled forwards", name)
    runner = _batched(loaded.model, name, VisionRunner) or VisionRowRunner(loaded.model)
    reason = _unreadable(loaded, loaded.vision, runner)
    if reason is None:
        return ChosenRunner(runner, loaded.vision)
    logger.warning("member %s reads text alone, without images: %s", name, reason)
    return ChosenRunner(runner)


def _batched(model: Any, name: str, kind: type[Batched]) -> Batched | None:
    """A batched runner; None, with a warning, if its logits differ from the model's plain forward."""
    reason = _unsupported(model)
    if reason is None:
        runner = kind(model)
        try:
            if _trial(model, runner):
                runner.shrink(0, 0)
                return runner
            reason = "its batched logits differ from its plain forward"
        except Exception as error:
            # An unknown architecture may raise anything; running row by row still works.
            reason = f"its batched forward failed ({type(error).__name__}: {error})"
    logger.warning("member %s runs row by row, without batching: %s", name, reason)
    return None


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
    for logits, ids in zip(got, (a, b[:3]), strict=True):
        if not same_logits(model, logits[-1], _plain(model, ids)[-1]):
            return False
    return True


def _plain(model: Any, ids: list[int], **inputs: Tensor) -> Tensor:
    """The logits of the model's plain forward, shape ``[tokens, vocab_size]``."""
    device = model.get_input_embeddings().weight.device
    logits: Tensor = model(input_ids=torch.tensor([ids], device=device), use_cache=False, **inputs).logits[0]
    return logits


def _unreadable(loaded: LoadedModel, vision: VisionProcessor, runner: VisionRunner | VisionRowRunner) -> str | None:
    """Why a vision-language model cannot read images in a runner; None if it can."""
    try:
        from PIL import Image as Pillow

        gradient = Pillow.linear_gradient("L").resize(_SAMPLE_SIZE)
        image = Pillow.merge("RGB", (gradient, gradient.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT), gradient))
        sample = vision.sample(loaded.tokenizer, Image.open(image))
        if _image_trial(loaded.model, runner, sample):
            return None
        return "its logits after an image differ from those of its plain forward"
    except Exception as error:
        # Its template, its processor and its model may raise anything; text can still be read.
        return f"the trial failed ({type(error).__name__}: {error})"
    finally:
        runner.shrink(0, 0)


@torch.inference_mode()
def _image_trial(model: Any, runner: VisionRunner | VisionRowRunner, sample: EncodedPrompt) -> bool:
    """Whether an image and what follows it, in two rows, give the logits of a plain forward."""
    ids, images = sample.token_ids, sample.images
    assert images is not None
    runner.forward([Row(0, 0, tuple(ids[: images.end]), 0, images)])
    offset, rest = runner.position_offset(images, ids), tuple(ids[images.end :])
    (logits,) = runner.forward([Row(0, images.end, rest, len(rest), offset=offset)])
    plain = _plain(model, ids, **model_inputs(model, {**images.tensors, **images.token_types}))
    return same_logits(model, logits, plain[images.end :])
