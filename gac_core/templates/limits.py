"""Limits on rendering one chat template: processor time, and the size of computed values.

- One value may have at most `_MIN_SIZE` plus `_GROWTH` times the size of the template's input,
- all values together at most `_MIN_TOTAL` plus `_TOTAL_GROWTH` times that size,
- rendering may take `SECONDS` of processor time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from types import GeneratorType
from typing import Any

from jinja2.utils import Namespace

SECONDS = 5.0
"""Processor time for rendering one conversation, in seconds."""

_MIN_SIZE, _GROWTH = 2**22, 16
_MIN_TOTAL, _TOTAL_GROWTH = 2**29, 2**10
_MAX_BITS = 2**12
# Filters that take quadratic time, and the longest text that each may be applied to, in characters.
_QUADRATIC = {"urlize": 2**14, "striptags": 2**14, "wordwrap": 2**16, "pprint": 2**16, "unescape": 2**16}
_PADDING = {"center", "ljust", "rjust", "zfill", "to_bytes", "round"}
_PRODUCTS = {"indent", "expandtabs", "tojson", "wordwrap", "translate", "sum", "batch", "slice"}
_FORMATTING = {"format", "format_map", "%"}
# Iterations and calls between two readings of the clock.
_TICKS = 16


class TemplateLimitError(Exception):
    """A template reached a limit."""


class Budget:
    """The time and size used by one rendering.

    Args:
        given: The template's input.

    Attributes:
        limit: Largest size of one value, in characters.
    """

    def __init__(self, given: Any) -> None:
        self._sizes: dict[int, tuple[Any, int]] = {}
        self._ends = time.thread_time() + SECONDS
        self._ticks = self._total = self._written = 0
        self.limit = 2**62
        size = self.size(given)
        self.limit = _MIN_SIZE + _GROWTH * size
        self._most = _MIN_TOTAL + _TOTAL_GROWTH * size

    def tick(self, weight: int = 1) -> None:
        """Counts work, and raises if the time is used up."""
        self._ticks += weight
        if self._ticks >= _TICKS:
            self._ticks = 0
            if time.thread_time() > self._ends:
                raise TemplateLimitError(f"its chat template computes for more than {SECONDS:g} s")

    def size(self, value: Any) -> int:
        """Returns the approximate size of a value as text, in characters; repeated parts count each time."""
        if isinstance(value, (str, bytes)):
            return len(value)
        if isinstance(value, Namespace):
            return self._sum(object.__getattribute__(value, "_Namespace__attrs").values())
        if not isinstance(value, (list, tuple, dict)):
            return 8 + (value.bit_length() // 3 if isinstance(value, int) else 0)
        known = self._sizes.get(id(value))
        if known is None:
            # Templates cannot change lists and mappings. The reference keeps the id from being reused.
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            known = self._sizes[id(value)] = (value, self._sum(parts))
        return known[1]

    def _sum(self, parts: Any) -> int:
        total = 8
        for part in parts:
            total += 8 + self.size(part)
            self.allow(total)
        return total

    def allow(self, size: int) -> None:
        """Raises if the size of a value exceeds the limit."""
        if size > self.limit:
            raise TemplateLimitError(
                f"its chat template computes a value of more than {self.limit} characters, the limit for this "
                "conversation"
            )

    def made(self, value: Any) -> Any:
        """Counts a computed value, and returns it."""
        if isinstance(value, GeneratorType):
            return self._counted(value)
        size = self.size(value)
        self.allow(size)
        self._total += size
        if self._total > self._most:
            raise TemplateLimitError(f"its chat template computes more than {self._most} characters")
        self.tick(1 + size // 1024)
        return value

    def _counted(self, values: Iterator[Any]) -> Iterator[Any]:
        total = 0
        for value in values:
            self.tick()
            total += 8 + self.size(value)
            self.allow(total)
            yield value

    def wrote(self, size: int) -> None:
        """Counts rendered text."""
        self.tick()
        self._written += size
        self.allow(self._written)

    # ---- sizes of results, checked before they are computed

    def allow_call(self, name: str, values: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Raises if the result of a method or filter would be too large, or would take too long."""
        first, *rest = values or [None]
        rest += options.values()
        size = self.size(first)
        if size > _QUADRATIC.get(name, size):
            raise TemplateLimitError(f"its chat template uses {name} on more than {_QUADRATIC[name]} characters")
        numbers = [abs(value) for value in rest if isinstance(value, int)]
        if name in _PADDING:
            self.allow(max(numbers, default=0))
        elif name in _PRODUCTS:
            self.allow((size + 8) * (1 + sum(numbers) + sum(self.size(v) for v in rest if not isinstance(v, int))))
        elif name in _FORMATTING:
            self._allow_format(first, rest, numbers)
        elif name == "lipsum":
            self.allow(2**12 * max((abs(value) for value in (first, *rest) if isinstance(value, int)), default=1))
        elif name == "replace" and len(rest) >= 2:
            self.allow(size + str(first).count(str(rest[0])) * len(str(rest[1])))

    def _allow_format(self, text: Any, values: Sequence[Any], numbers: Sequence[int]) -> None:
        text = str(text)
        widths = sum(int(digits[:20]) for digits in re.findall("[0-9]+", text))
        places = text.count("%") + text.count("{")
        nested = [*numbers, *(n for v in values if isinstance(v, (tuple, dict)) for n in _numbers(v))]
        self.allow(len(text) + widths + places * (max(nested, default=0) if "*" in text or "{" in text else 0))
        self.allow(places * (8 + sum(map(self.size, values))))

    def allow_join(self, separator: Any, parts: Any) -> None:
        """Raises if the joined parts would be too large."""
        if isinstance(parts, (str, list, tuple, dict)):
            self.allow(len(parts) * self.size(separator) + self.size(parts))

    def allow_operator(self, operator: str, left: Any, right: Any) -> None:
        """Raises if the result of an operator would be too large."""
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if isinstance(left, int) and isinstance(right, int):
                bits = left.bit_length(), right.bit_length()
                if (operator == "**" and bits[0] * abs(right) > _MAX_BITS) or max(bits) > _MAX_BITS:
                    raise TemplateLimitError(f"its chat template computes a number of more than {_MAX_BITS} bits")
        elif operator == "*":
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.allow(self.size(value) * abs(times) if isinstance(times, int) else 0)
        elif operator == "+":
            self.allow(self.size(left) + self.size(right))
        elif operator == "%" and isinstance(left, (str, bytes)):
            self._allow_format(left, [right], _numbers(right if isinstance(right, (tuple, dict)) else (right,)))


def _numbers(values: Any) -> list[int]:
    return [abs(v) for v in (values.values() if isinstance(values, dict) else values) if isinstance(v, int)]
