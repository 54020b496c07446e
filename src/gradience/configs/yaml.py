"""YAML as plain JSON values, and the line on which a key stands.

The document is composed to nodes and converted here: aliases are counted as written out (a billion laughs stops at
50 000 values), duplicate keys and unknown tags are refused, and only the YAML 1.1 scalars that JSON has are converted.
"""

from __future__ import annotations

from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode
from yaml.error import MarkedYAMLError, YAMLError

from gradience.configs.values import MAX_DIGITS, Malformed
from gradience.io.reading import MAX_DEPTH, check_depth
from gradience.schema import Json

MAX_VALUES = 50_000  # values after aliases are written out: what stops a billion laughs

_PREFIX = "tag:yaml.org,2002:"
_AS_TEXT = {"str", "timestamp", "value"}
_CONTAINERS = {"map", "seq"}
_CONVERTED = {"int", "float", "bool", "null"}


def parse_yaml(text: str) -> Json:
    """Return the plain value of one YAML document; raise Malformed with the line where it is not one."""
    check_depth(text)
    try:
        loader = SafeLoader(text)
        node = loader.get_single_node()
    except MarkedYAMLError as error:  # never its text: that quotes the file, secrets and all
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise Malformed(f"not YAML: {error.problem}{place}") from None
    except YAMLError:
        raise Malformed("not YAML: it holds characters that YAML does not allow") from None
    return None if node is None else _Plain(loader).value(node, 0)


class _Plain:
    """Converts nodes, counting each value as often as it is written out."""

    def __init__(self, loader: SafeLoader) -> None:
        self._loader = loader
        self._left = MAX_VALUES

    def value(self, node: Node, depth: int) -> Json:
        self._left -= 1
        if self._left < 0:
            raise Malformed(f"more than {MAX_VALUES} values once its aliases are written out")
        if depth > MAX_DEPTH:
            raise RecursionError
        if not isinstance(node, ScalarNode) and node.tag.removeprefix(_PREFIX) not in _CONTAINERS:
            raise Malformed(_at(node, f"the tag {node.tag!r} is not plain data"))
        if isinstance(node, MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self._scalar(node)

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Json]:
        own: dict[str, Json] = {}
        merged: dict[str, Json] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                raise Malformed(_at(key, "a key that is not text"))
            if key.tag == f"{_PREFIX}merge":
                merged |= self._merged(item, depth)
                continue
            if key.value in own:
                raise Malformed(_at(key, f"the key {key.value!r} appears twice in one mapping"))
            own[key.value] = self.value(item, depth + 1)
        return {**merged, **own}

    def _merged(self, node: Node, depth: int) -> dict[str, Json]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Json] = {}
        for source in reversed(sources):
            value = self.value(source, depth + 1)
            if not isinstance(value, dict):
                raise Malformed(_at(node, "`<<` wants a mapping"))
            merged |= value
        return merged

    def _scalar(self, node: Node) -> Json:
        kind = node.tag.removeprefix(_PREFIX)
        if kind in _AS_TEXT:
            return node.value
        if kind not in _CONVERTED:
            raise Malformed(_at(node, f"the tag {node.tag!r} is not plain data"))
        if len(node.value) > MAX_DIGITS and kind in {"int", "float"}:
            raise Malformed(_at(node, f"a number of {len(node.value)} digits, over the limit of {MAX_DIGITS}"))
        try:
            return self._loader.construct_object(node)
        except (ValueError, OverflowError, KeyError):
            return node.value  # for example `!!int x`: the field that reads it reports what it expected


def _at(node: Node, text: str) -> str:
    return f"{text} (line {node.start_mark.line + 1})"
