"""Strict YAML: duplicate keys are errors, and size, aliases and merges are bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gac_core.checks import check_tree
from gac_core.errors import ConfigError, quote, shorten

MAX_BYTES = 2**20
MAX_ALIASES = 256
MAX_KEYS = 1000


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with errors for duplicate keys and a limit on aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.YAMLError(f"it has more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                # The key itself is not quoted: aliases may expand it to any length.
                raise yaml.YAMLError(
                    f"a key of a mapping must be a plain value; in line {line} it is a list or mapping"
                )
            name = (key.tag, key.value)
            if name in seen:
                raise yaml.YAMLError(
                    f"the key {quote(key.value)} occurs twice in one mapping, again in line {line}; remove one"
                )
            seen.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.YAMLError(f"a mapping has more than {MAX_KEYS} keys")


def read_yaml(path: str | Path) -> Any:
    """Returns the content of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is too large, or is not valid YAML.
    """
    if not isinstance(path, (str, Path)):
        raise ConfigError(f"the path of a configuration must be a string or a Path, not {quote(path)}")
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise yaml.YAMLError(f"it is larger than {MAX_BYTES} bytes")
        values = yaml.load(data.decode("utf-8"), _StrictLoader)
        check_tree(ConfigError, "its aliases", values)
        return values
    except RecursionError:
        raise ConfigError(f"cannot read the configuration {quote(str(path))}: it is nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {quote(str(path))}: {error.strerror or error}") from error
    except Exception as error:
        # PyYAML also raises ValueError, KeyError, AttributeError and others for tags that do not fit their value.
        raise ConfigError(f"cannot read the configuration {quote(str(path))}: {shorten(_reason(error))}") from error


def _reason(error: Exception) -> str:
    """Returns why YAML cannot be read, in one line with the places in the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        parts = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
        return ": ".join(f"{text}{_place(mark)}" for text, mark in parts if text)
    return str(error) if isinstance(error, (yaml.YAMLError, ConfigError)) else f"{type(error).__name__}: {error}"


def _place(mark: Any) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
