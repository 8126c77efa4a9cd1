"""YAML that people write, read without surprises: plain data, no key twice, no alias bombs."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 100_000
"""Values of a document with every alias written out; a bomb of a few lines has billions."""


def parse_yaml(text: str) -> Any:
    """Read a YAML document; tags make no objects.

    Raises:
        ValueError: It is no YAML, nests too deep, has a key twice, refers to itself, or holds more
            than ``MAX_NODES`` values with its aliases written out.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}, loader) > MAX_NODES:
                raise ValueError(f"more than {MAX_NODES:,} values with its aliases written out")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it nests too deep") from None
    # PyYAML of "!!bool x": KeyError; of '!!int ""': IndexError
    except (yaml.YAMLError, AttributeError, LookupError) as fault:
        raise ValueError(str(fault)) from None


def _size(node: yaml.Node, known: dict[int, int], loader: yaml.SafeLoader) -> int:
    """Nodes below and with this one, each alias counted as what it stands for; checks the keys."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias refers to what it stands in")
        return known[id(node)]
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, loader)
        inner = [it for pair in node.value for it in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = 1 + sum(_size(it, known, loader) for it in inner)
    return known[id(node)]


def _check_keys(node: yaml.MappingNode, loader: yaml.SafeLoader) -> None:
    """Refuse keys that a dict would take for one, such as ``1`` and ``0x1``, but not ``"1"``."""
    met: set[Any] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            # << and = stand for no value.
            plain = key.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
            value = key.value if plain else loader.construct_object(key, deep=True)
            if value in met:
                line = node.start_mark.line + 1
                raise ValueError(
                    f"the key {key.value!r} stands twice in what begins in line {line}"
                )
            met.add(value)
