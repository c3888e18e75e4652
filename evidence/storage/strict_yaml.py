"""Strict YAML parser for untrusted settings files.

Refused are aliases (exponential expansion), tags (Python types), keys that are not strings and
deep nesting.
"""

from pathlib import Path
from typing import Any

import yaml

from evidence.errors import InputError
from evidence.storage.regular_files import read_text

MAX_BYTES = 1 << 14
MAX_DEPTH = 10


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of at most ``MAX_BYTES`` bytes.

    Raises:
        InputError: as ``evidence.storage.regular_files.read_text``; or the file is not YAML, has
            aliases, tags, duplicate keys or keys that are not strings, or exceeds ``MAX_DEPTH``.
    """
    text = read_text(path, MAX_BYTES)
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid YAML",
            expected="lines such as 'size: small'",
            got=" ".join(str(error).split()),
        ) from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and keys that are not strings."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [self.construct_object(key) for key, _ in node.value]
        seen: set[str] = set()
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text")
            if key in seen:
                raise ValueError(f"the key {key!r} occurs twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Check the stream of parser events before any value is built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("an alias or an anchor, which is not allowed")
        if getattr(event, "tag", None):
            raise ValueError(f"the tag {event.tag}, which is not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested more than {MAX_DEPTH} deep")
