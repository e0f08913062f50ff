"""Reads YAML (and JSON, which is YAML) so that nothing is guessed and every value knows its line.

Unlike YAML's own rules: a number with a point stays the text it was written as (prices are exact), `010`, `no` and
`2013-01-01` are text, a key that stands there twice is refused, and so are tags and anything nested absurdly deep.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from services.shapes import Fault

SIZE_MAX = 8 * 1024 * 1024
DEPTH_MAX = 64
NODES_MAX = 500_000  # an alias is read again wherever it stands: a short file must not become an endless one
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,30})\Z", re.ASCII)
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}


class Unreadable(Exception):
    """The text is not the YAML we read; `fault` says why, `line` where (1 is the first)."""

    def __init__(self, fault: Fault, line: int) -> None:
        super().__init__(f"line {line}: {fault.detail}")
        self.fault = fault
        self.line = line


@dataclass(slots=True)
class Document:
    """What a file says, and on which line each path of it stands."""

    data: Any
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int:
        """The line of `path`, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)


def load(content: bytes) -> Document:
    """What `content` says.

    Raises:
        Unreadable: it is not UTF-8, not YAML, has a key twice, a tag, or is too large or too deep.
    """
    if len(content) > SIZE_MAX:
        raise Unreadable(Fault("too_large", f"the file is larger than {SIZE_MAX:,} bytes", ""), 1)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise Unreadable(Fault("not_utf8", "the file is not UTF-8 text", ""), line) from e
    if text.lstrip()[:1] in ("{", "["):
        text = text.replace("\t", " ")  # JSON may indent with tabs, and has none inside its texts
    try:
        _check_events(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise Unreadable(Fault("malformed", str(e.problem or e.context), ""), mark.line + 1 if mark else 1) from e
    except yaml.YAMLError as e:
        raise Unreadable(Fault("malformed", " ".join(str(e).split()), ""), 1) from e
    return _Reader().read(root)


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if getattr(event, "tag", None) is not None:
            raise Unreadable(Fault("unexpected_tag", "tags are not read here", ""), _line(event))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX:
            said = f"it is nested deeper than {DEPTH_MAX} levels"
            raise Unreadable(Fault("too_deep", said, ""), _line(event))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.nodes = 0

    def read(self, root: yaml.Node | None) -> Document:
        data = None if root is None else self._value(root, "", 0)
        return Document(data, self.lines)

    def _value(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.nodes += 1
        if depth > DEPTH_MAX:  # an alias may stand inside of what it repeats
            raise Unreadable(Fault("too_deep", f"it is nested deeper than {DEPTH_MAX} levels", path), line)
        if self.nodes > NODES_MAX:
            raise Unreadable(Fault("too_large", f"it has more than {NODES_MAX:,} values", path), line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise Unreadable(Fault("invalid_type", "a name is needed before the colon", path), line)
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key in made:
                said = f"{key!r} stands there twice, first on line {self.lines[inner]}"
                raise Unreadable(Fault("duplicate_key", said, inner), line)
            self.lines[inner] = line
            made[key] = self._value(value_node, inner, depth + 1)
        return made


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _WHOLE.match(text) else text
