"""YAML files read strictly: no duplicate keys, and bounds on size and on what aliases and merges may expand to."""

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
    """PyYAML's safe loader, with duplicate keys refused and aliases bounded."""

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
                # Its text may be as long as what its aliases expand to.
                raise yaml.YAMLError(
                    f"a key of a mapping must be a plain value; in line {line} it is a list or mapping"
                )
            name = (key.tag, key.value)
            if name in seen:
                raise yaml.YAMLError(
                    f"the key {quote(key.value)} comes twice in one mapping; the second is in line {line}"
                )
            seen.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.YAMLError(f"a mapping has more than {MAX_KEYS} keys")


def read_yaml(path: str | Path) -> Any:
    """Returns the value that a YAML file holds.

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
    except Exception as error:
        # Besides YAMLError, PyYAML raises ValueError, KeyError, AttributeError and more where a tag does not fit.
        reason = (
            f"{type(error).__name__}: {error}"
            if not isinstance(error, (OSError, yaml.YAMLError, ConfigError))
            else str(error)
        )
        raise ConfigError(f"cannot read the configuration {quote(str(path))}: {shorten(reason)}") from error
