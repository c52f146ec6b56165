"""`PortableError`: an exception that crosses between processes, whatever it holds."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from typing import Any

from gac_core.errors import shorten


@dataclass(frozen=True)
class PortableError:
    """The class, text and attributes of an exception, which may itself not be picklable.

    Attributes:
        module: The module of its class.
        name: The name of its class.
        text: ``str`` of it.
        attributes: Those of its attributes that can be pickled.
        process: Where it was raised, for its note.
    """

    module: str
    name: str
    text: str
    attributes: dict[str, bytes]
    process: str

    @classmethod
    def of(cls, error: BaseException, process: str) -> PortableError:
        """Returns what crosses of an exception; never raises.

        Args:
            error: The exception.
            process: Where it was raised, such as ``"pid 7 on node 10.0.0.2"``.
        """
        attributes: dict[str, bytes] = {}
        for name, value in vars(error).items():
            try:
                attributes[name] = pickle.dumps(value)
            except Exception:
                continue
        kind = type(error)
        return cls(kind.__module__, kind.__qualname__, _text(error), attributes, process)

    def rebuild(self) -> BaseException:
        """Returns an exception of the same class, or of one with the same name where this process lacks the class."""
        error = self._of_known_class()
        if error is None:
            error = type(self.name.rpartition(".")[2], (Exception,), {"__module__": self.module})(self.text)
        error.add_note(f"raised by {self.process}")
        return error

    def _of_known_class(self) -> BaseException | None:
        found: Any = sys.modules.get(self.module)
        for part in self.name.split("."):
            found = getattr(found, part, None)
        if not (isinstance(found, type) and issubclass(found, BaseException)):
            return None
        try:
            # Constructors take other arguments than the text.
            error = found.__new__(found)
            error.args = (self.text,)
            for name, value in self.attributes.items():
                setattr(error, name, pickle.loads(value))
        except Exception:
            return None
        return error if _text(error) == self.text else None


def _text(error: BaseException) -> str:
    try:
        return shorten(str(error), 4000)
    except Exception:
        return f"<a {type(error).__name__} without a text>"
