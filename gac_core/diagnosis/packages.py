"""Which packages are installed, and whether their versions are those that this library needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from gac_core.errors import quote

DISTRIBUTION = "gac-ensemble"
_EXTRAS = (
    *("langchain", "llamaindex", "vision", "quantized", "gguf", "ray"),
    *("inspect", "server", "otel", "eval", "lm-eval"),
)


@dataclass(frozen=True)
class Package:
    """A package that this library uses.

    Attributes:
        name: Its name.
        version: The installed version; None if it is not installed.
        needed: The versions that this library needs, such as ``">=2.6"``.
        extra: The extra of this library that installs it; None if it is always needed.
        problem: What is wrong with it, with the remedy; None if nothing is, or it is optional and not installed.
    """

    name: str
    version: str | None
    needed: str = ""
    extra: str | None = None
    problem: str | None = None

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        wanted = f"{DISTRIBUTION}[{self.extra}]" if self.extra else f"{self.name}{self.needed}"
        return f"pip install '{wanted}'"


def packages() -> list[Package]:
    """Returns Python, this library and the packages that it declares, optional ones after the others."""
    # A dependency of transformers.
    from packaging.requirements import Requirement

    own = _version(DISTRIBUTION)
    found = [Package("python", platform.python_version())]
    if own is None:
        problem = f"{DISTRIBUTION} is not installed, only importable, so that versions cannot be checked: pip install ."
        return [*found, Package(DISTRIBUTION, None, problem=problem)]
    found.append(Package(DISTRIBUTION, own))
    seen: set[str] = {DISTRIBUTION}
    declared = [Requirement(text) for text in requires(DISTRIBUTION) or ()]
    for extra in (None, *_EXTRAS):
        for each in declared:
            wanted = each.marker is None if extra is None else each.marker is not None and _belongs(each.marker, extra)
            if wanted and each.name not in seen:
                seen.add(each.name)
                found.append(_package(each.name, str(each.specifier), extra))
    return found


def _belongs(marker: object, extra: str) -> bool:
    return bool(marker.evaluate({"extra": extra})) and not marker.evaluate({"extra": ""})  # type: ignore[attr-defined]


def _package(name: str, needed: str, extra: str | None) -> Package:
    from packaging.specifiers import SpecifierSet

    found = Package(name, _version(name), needed, extra)
    if found.version is None:
        problem = None if extra else f"{name} is not installed: {found.remedy}"
    elif SpecifierSet(needed).contains(found.version, prereleases=True):
        problem = None
    else:
        problem = f"{name} {found.version} is installed, but {quote(needed)} is needed: {found.remedy}"
    return Package(name, found.version, needed, extra, problem)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
