"""Opens the ensemble of a command that holds conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from gac_core.cli.evaluation_inputs import configuration
from gac_core.ensemble import Ensemble
from gac_core.templates.plain import PLAIN


@contextmanager
def opened(models: Sequence[str], dtype: str | None = None, plain: bool = False) -> Iterator[Ensemble]:
    """Opens an ensemble and closes it at the end.

    Args:
        models: As in `configuration`.
        dtype: As there.
        plain: Whether members without a chat template get the plain one.

    Raises:
        ConfigError: A setting is wrong.
        ModelLoadError: A model cannot be loaded.
    """
    with ExitStack() as stack:
        ensemble = stack.enter_context(Ensemble.from_config(configuration(models, dtype)))
        without = ensemble.without_chat_template() if plain else []
        if without:
            # The second ensemble shares the models of the first.
            members = tuple(
                replace(member, chat_template=PLAIN) if member.called in without else member
                for member in ensemble.config.members
            )
            ensemble = stack.enter_context(Ensemble.from_config(replace(ensemble.config, members=members)))
        yield ensemble
