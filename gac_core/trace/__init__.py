"""Traces of answers: what each member proposed at every token, as an HTML page or JSON."""

from __future__ import annotations

from gac_core.trace.record import Trace, answers_alone, trace, trace_of

__all__ = ["Trace", "answers_alone", "trace", "trace_of"]
