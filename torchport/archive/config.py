"""Reads an archive's `model-config.yaml` without trust.

    parse_config("minWorkers: 2")        # {'minWorkers': 2}

A few lines of YAML can stand for a billion values, by aliases and merge keys, or for a number that takes
minutes to compute. So a document's size is counted before its values are made.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000
"""Maximum number of values in a config. An alias counts as all that it stands for."""

MAX_DEPTH = 100
"""Maximum depth of lists and mappings in each other."""

MAX_NUMBER = 64
"""Maximum characters of a number. Numbers in base 60 take quadratic time, and keys that are huge numbers
can be chosen to have the same hash."""

_OF_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError)
"""What the library raises for `!!timestamp soon`, `!!bool 3` and the like."""


def parse_config(text: str) -> Any:
    """Parse a config.

    Raises:
        ValueError, yaml.YAMLError: it is no YAML, has tags of Python, or is beyond one of the limits.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_expansion(node)
        return loader.construct_document(node)
    except _OF_VALUES as err:
        raise ValueError(f"a value that its tag does not allow ({err!r})") from err
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Stops at the limits, while it still reads."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count += 1
        self._depth += 1
        if self._count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        if self._depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and mappings in each other")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def number_of(self, node: yaml.ScalarNode) -> int | float:
        """A whole or broken number of bounded length."""
        if len(node.value) > MAX_NUMBER:
            raise ValueError(f"a number of over {MAX_NUMBER} characters")
        whole = node.tag == "tag:yaml.org,2002:int"
        number: int | float = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        return number


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number_of)


def _refuse_expansion(document: yaml.Node) -> None:
    """Count the values of a document, aliases and merged mappings as often as they are named.

    Raises:
        ValueError: there are too many. A node in itself has infinitely many.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in open_:
            raise ValueError(f"more than {MAX_VALUES} values, because one contains itself")
        open_.add(id(node))
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        total = 1 + sum(map(size, inner))
        if total > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        sizes[id(node)] = total
        return total

    size(document)
