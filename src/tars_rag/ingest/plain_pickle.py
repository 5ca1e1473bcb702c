"""Pickles of plain values and numpy arrays, read without running anything of them.

A pickle is a program for a small machine. This is such a machine with the part of its operations
that builds plain values. It knows no way to import or to call: where a program asks for a function
of numpy's, it gets a `Call` that only remembers what it was to be called with.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

MOST_OPERATIONS: Final = 10_000_000
"""Of one pickle: some 700,000 exchanges. One byte may make an object of 64."""

_NUMPY: Final = {
    (module, name): name
    for prefix in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{prefix}.multiarray", "_reconstruct"),
        (f"{prefix}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): "dtype"}
_DTYPES = {(order, kind): order + kind for order in "<>" for kind in ("f2", "f4", "f8")}


class RefusedError(Exception):
    """What a pickle asks for that is no plain value."""


@dataclass(slots=True)
class Call:
    """What a function of numpy's was to be called with, and the state of what it returns.

    Attributes:
        name: The function, see `_NUMPY`.
        args: As the pickle has them.
        state: What the array or dtype was to be given; None: nothing.
    """

    name: str
    args: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class _Function:
    """Stands for a function of numpy's, which nothing can call."""

    name: str


def load(stream: io.BufferedReader) -> Any:
    """The value that a pickle builds: plain values, and a `Call` for each array.

    Containers may be shared or hold themselves, as in any pickle: who walks through them has to
    mind that.

    Raises:
        RefusedError: It asks for anything else, or for too much; nothing was run.
        Exception: It is damaged; whatever Python raises then.
    """
    machine = _Machine()
    source = SimpleNamespace(read=stream.read, readline=stream.readline)  # no tell: it is slow
    operations = pickletools.genops(cast("io.BufferedReader", source))
    for count, (operation, argument, _) in enumerate(operations):
        if count >= MOST_OPERATIONS:
            msg = f"has more than {MOST_OPERATIONS:,} operations"
            raise RefusedError(msg)
        if operation.name == "STOP":
            break
        run = _OPERATIONS.get(operation.name)
        if run is None:
            msg = f"uses the pickle operation {operation.name}"
            raise RefusedError(msg)
        run(machine, argument)
    return machine.pop()


def matrix(value: Any, widest: int) -> NDArray[np.float32] | None:
    """The array [rows, dim] that a `Call` describes; None if it has another number of axes.

    Types are asked for before anything is done with what they hold: to hash or to print what a
    made-up file has in the place of a string can take for ever.

    Args:
        value: What `load` gave.
        widest: The most numbers in a row.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: It is no array of
            floating-point numbers, or is wider.
    """
    if value.name == "_reconstruct":
        _, shape, kind, fortran, raw = value.state
    elif value.name == "_frombuffer":
        raw, kind, shape, order = value.args
        fortran = isinstance(order, str) and order == "F"
    else:
        msg = f"it is made by {value.name}"
        raise ValueError(msg)
    name, order = kind.args[0], kind.state[1]
    if not (
        isinstance(name, str) and isinstance(order, str) and isinstance(raw, bytes | bytearray)
    ):
        msg = "its type is not named, or its content is not bytes"
        raise TypeError(msg)
    if not (isinstance(shape, tuple) and all(type(size) is int for size in shape)):
        msg = "its shape is not made of whole numbers"
        raise TypeError(msg)
    dtype = np.dtype(_DTYPES[order, name])
    if len(shape) != 2:
        return None
    if shape[1] > widest:
        msg = f"its rows have {shape[1]} numbers, more than {widest}"
        raise ValueError(msg)
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran is True else "C")
    return array.astype(np.float32, copy=False)


class Measure:
    """How many characters a value has when it is written out, and how deep it is nested.

    What is shared is measured once and counted wherever it stands.

    Args:
        deepest: How deep to go; what is nested deeper, or holds itself, has a depth of one more.
    """

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._known: dict[int, tuple[int, int]] = {}

    def __call__(self, value: Any, level: int = 0) -> tuple[int, int]:
        """(characters, depth) of a value that stands `level` deep in another."""
        if isinstance(value, str | bytes | bytearray):
            return len(value) + 2, 0
        if isinstance(value, int):
            return value.bit_length() // 3 + 2, 0
        if not isinstance(value, dict | list | tuple):
            return 8, 0
        if level >= self._deepest:
            return 0, 1
        if id(value) not in self._known:
            self._known[id(value)] = self._of_container(value, level)
        return self._known[id(value)]

    def _of_container(self, value: Any, level: int) -> tuple[int, int]:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        size, depth = 2, 0
        for part in parts:
            its_size, its_depth = self(part, level + 1)
            size, depth = size + its_size + 1, max(depth, its_depth)
        return size, depth + 1


class _Machine:
    """A stack, marks on it, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def nothing(self, _: Any) -> None:
        """Of no consequence for what is built."""

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            msg = f"a {kind.__name__} is needed, not a {type(value).__name__}"
            raise TypeError(msg)
        return value

    def add_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple could be nested and shared so that its hash takes for ever.
            if type(key) not in (str, int, float, bool, type(None)):
                msg = f"has a dictionary with a key of type {type(key).__name__}"
                raise RefusedError(msg)
            target[key] = value

    def make_dict(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.push({})
        self.add_items(items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.add_items([key, value])

    def set_items(self, _: Any) -> None:
        self.add_items(self.pop_to_mark())

    def append(self, _: Any) -> None:
        value = self.pop()
        self.top(list).append(value)

    def append_all(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.top(list).extend(items)

    def make_tuple(self, size: int) -> None:
        start = len(self.stack) - size
        if start < 0:
            raise IndexError(size)
        items = tuple(self.stack[start:])
        del self.stack[start:]
        self.push(items)

    def put(self, slot: Any) -> None:
        if int(slot) > MOST_OPERATIONS:
            msg = f"uses memo slot {slot}"
            raise RefusedError(msg)
        self.memo[int(slot)] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, slot: Any) -> None:
        self.push(self.memo[int(slot)])

    def find(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            msg = "the name of a function is a string"
            raise TypeError(msg)
        if (module, name) not in _NUMPY:
            msg = f"asks for {_short(f'{module}.{name}')}"
            raise RefusedError(msg)
        self.push(_Function(_NUMPY[module, name]))

    def find_global(self, argument: str) -> None:
        self.find(*argument.split(" ", 1))

    def find_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.find(module, name)

    def call(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        if not (isinstance(function, _Function) and isinstance(args, tuple)):
            msg = "calls what is no function"
            raise RefusedError(msg)
        self.push(Call(function.name, args))

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            msg = "sets the state of what has none"
            raise RefusedError(msg)
        target.state = state


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


_Operation = Callable[[_Machine, Any], None]
_ARGUMENTS: Final = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE
    BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
"""
_OPERATIONS: Final[dict[str, _Operation]] = {
    **dict.fromkeys(_ARGUMENTS.split(), _Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": _Machine.make_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
