"""Configurations of pooled members, their models, and the models that are loaded meanwhile."""

from __future__ import annotations

import weakref

from transformers import AutoModelForCausalLM

from gac_core import EnsembleConfig, MemberConfig
from gac_core.model.member import Member


def config(*models, **settings) -> EnsembleConfig:
    members = [model if isinstance(model, MemberConfig) else MemberConfig(model, dtype="float32") for model in models]
    return EnsembleConfig(tuple(members), **settings)


def model_of(member: Member):
    return member._runner._model


def recorded_loads(monkeypatch) -> list[weakref.ref]:
    """Models as they are loaded, without keeping them alive."""
    found: list[weakref.ref] = []
    load = AutoModelForCausalLM.from_pretrained

    def recorded(*given, **named):
        result = load(*given, **named)
        found.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", recorded)
    return found
