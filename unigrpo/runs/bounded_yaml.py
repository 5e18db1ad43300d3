"""YAML from anywhere: safe, strict, and no larger than its text: what has an alias is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml


MAX_TEXT = 100_000
"""Characters of a text; the longest shipped recipe has 3,000."""

MAX_DEPTH = 32
"""Mappings and lists inside each other."""

MAX_INTEGER = 2**63
"""Whole numbers are smaller: no setting is larger, and Python does not print numbers of thousands of digits."""

SHOWN = 300
"""Characters of a value that a message quotes."""


class YamlError(ValueError):
    """A text that is not YAML, or not of the kind read here."""


def quoted(value: Any) -> str:
    """``repr`` of a value, cut where it is long."""
    text = repr(value)
    return _cut(text, SHOWN) + (f" ({len(text):,} characters)" if len(text) > SHOWN else "")


class _Loader(yaml.SafeLoader):
    """Safe YAML with three surprises removed: ``5e-6`` is a number, ``no`` is a word, a key written twice is an error."""

    depth = 0

    def compose_node(self, parent, index):
        """Refuses nesting before Python's stack does, and aliases, which can contain themselves and multiply what they name."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            name, line = _cut(alias.anchor, SHOWN), alias.start_mark.line + 1
            raise YamlError(f"*{name}: write it out, aliases are not read (line {line})")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise YamlError(
                f"more than {MAX_DEPTH} levels inside each other (line {self.peek_event().start_mark.line + 1})"
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        """Refuses keys that are no words, and one that is given twice."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(f"a key must be a word (line {key_node.start_mark.line + 1})")
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise YamlError(f"key {quoted(key)} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        """Refuses numbers that no setting has."""
        value = super().construct_yaml_int(node)
        if abs(value) >= MAX_INTEGER:
            raise YamlError(f"{_cut(node.value, SHOWN)} is too large a number (line {node.start_mark.line + 1})")
        return value


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(text: str) -> Any:
    """The one document of a text: mappings, lists, text, numbers, booleans, dates and null.

    Raises:
        YamlError: anything else; the message is short whatever the text is.
    """
    if len(text) > MAX_TEXT:
        raise YamlError(f"{len(text):,} characters, and at most {MAX_TEXT:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except YamlError:
        raise
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {_cut(str(error), 2 * SHOWN)}") from error
    except Exception as error:
        # Constructors of explicit tags: '!!int ""' is an IndexError, '!!timestamp x' an AttributeError.
        raise YamlError(f"not valid YAML: {type(error).__name__}: {_cut(str(error), 2 * SHOWN)}") from error


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
