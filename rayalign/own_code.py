"""Which code of the user's own this is, so that a finished stage is not kept for other code."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_NUMBERS = 4096  # of an array that is read
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def identify(part: Any) -> str:
    """Name and digest of a function, class, partial or object with __call__: "module.name 1f2e...".

    The digest covers its source, the globals, defaults and closures that it uses, and the functions, classes and objects of
    its own module among them, all the way down. What another module gives goes by its name or type, a large array by its
    shape.
    """
    part = inspect.unwrap(part) if callable(part) else part
    code = hashlib.sha256("\n".join(_Walk(part).lines).encode()).hexdigest()[:16]
    named = part.func if isinstance(part, functools.partial) else part
    name = getattr(named, "__qualname__", type(named).__qualname__)
    return f"{getattr(named, '__module__', '')}.{name} {code}"


class _Walk:
    """One line for each thing that code depends on."""

    def __init__(self, part: Any) -> None:
        named = part.func if isinstance(part, functools.partial) else part
        self._module = getattr(named, "__module__", None)
        self._seen: dict[int, Any] = {}  # kept, or another object might take the number
        self.lines: list[str] = []
        self._add(part)

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.lines.append(repr(value))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        self.lines.append(name)
        if isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType):
            self.lines.append(value.__name__)
        elif isinstance(value, (set, frozenset)):
            self.lines += sorted(map(repr, value))
        else:
            self._add_all(*self._parts(value))

    def _parts(self, value: Any) -> Sequence[Any]:
        """What a container, an array or an object is made of."""
        if isinstance(value, functools.partial):
            return value.func, value.args, value.keywords
        if isinstance(value, types.MethodType):
            return value.__func__, value.__self__
        if isinstance(value, Mapping):
            return [part for item in value.items() for part in item]
        if isinstance(value, (list, tuple)):
            return value
        if hasattr(value, "tolist"):
            shape = tuple(getattr(value, "shape", ()))
            return (repr(value.tolist()),) if math.prod(shape) <= MAX_NUMBERS else shape
        own = type(value).__module__ == self._module and hasattr(value, "__dict__")
        return (type(value), vars(value)) if own else ()

    def _add_all(self, *values: Any) -> None:
        for value in values:
            self._add(value)

    def _add_function(self, function: types.FunctionType) -> None:
        if function.__module__ != self._module:
            return
        self.lines.append(_source(function) or repr(function.__code__.co_code))
        self._add_all(function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            self._add(_content(cell))
        for name in sorted(set(_names(function.__code__))):
            if name in function.__globals__:
                self._add_all(name, function.__globals__[name])

    def _add_class(self, kind: type) -> None:
        if kind.__module__ != self._module:
            return
        self.lines.append(_source(kind))
        self._add_all(*kind.__bases__)
        for attribute in vars(kind).values():
            function = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
            if isinstance(function, types.FunctionType):
                self._add(function)


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return ""  # typed in at a prompt


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not filled yet


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that code, and code inside it, looks up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
