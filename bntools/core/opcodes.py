"""What a pickle would do, read from its opcodes without doing it. Standard library only.

Opening a pickle runs a small program: it names globals, calls them and stores the results. Here that
program is walked with a stack of *descriptions*, so that every name and every call can be judged before
anything is imported or called.
"""

from __future__ import annotations

import pickletools
import warnings
from dataclasses import dataclass
from enum import Enum
from typing import IO, Any

# fmt: off
READABLE = frozenset({
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
})
# fmt: on
"""The opcodes that torch's weights-only reader knows; torch.save writes no other."""


_DEEPEST, _LARGEST = 100, 10**7


class Shape(Enum):
    """What a value is, where no more than its kind matters."""

    DICT = "a dict"
    LIST = "a list"
    SET = "a set"
    OTHER = "a plain value"


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle asks to import."""

    module: str
    name: str

    def __str__(self) -> str:
        # ascii() so that a hostile name cannot send control characters to a terminal.
        return ascii(f"{self.module}.{self.name}")[1:-1][:120]

    @property
    def is_plain(self) -> bool:
        """Whether both parts are dotted identifiers, as an import statement would have them."""
        return self.name.isidentifier() and all(part.isidentifier() for part in self.module.split("."))


@dataclass(frozen=True, slots=True)
class Made:
    """The result of a call; *by* is None where the file computes what is called."""

    by: Global | None


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deep it is, and how large if what it shares were written out.

    To hash it or print it, Python walks all of that, and by recursion: a few hundred bytes can describe a
    tuple that no machine gets through.
    """

    depth: int
    size: int

    @classmethod
    def of(cls, parts: tuple[Any, ...]) -> _Tuple:
        inner = [part for part in parts if isinstance(part, _Tuple)]
        made = cls(parts)
        made.depth = 1 + max((part.depth for part in inner), default=0)
        made.size = len(parts) + sum(part.size for part in inner)
        if made.depth > _DEEPEST or made.size > _LARGEST:
            raise ValueError("tuples in tuples, more than any file of torch.save has")
        return made


@dataclass(frozen=True, slots=True)
class Call:
    """One call that opening the pickle would make."""

    target: Global | None
    arguments: Any
    opcode: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All that a pickle (or several in a row) would do.

    Args:
        globals: the names that it asks to import, in order, each once.
        calls: the calls that it would make, in order.
        root: a description of the object that it holds: Made, Global, Shape, a tuple, a str or an int.
        unresolved: names that cannot be told without running it, as phrases.
        foreign: opcodes that torch's weights-only reader does not know.
        elements: how many numbers its storages hold, as it says.
    """

    globals: tuple[Global, ...]
    calls: tuple[Call, ...]
    root: Any
    unresolved: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    elements: int = 0


def read_pickles(stream: IO[bytes], count: int = 1, root: int = 0) -> Reading:
    """Walk *count* pickles that lie in a row; the one numbered *root* holds the object.

    Args:
        stream: an open binary file, left behind the last pickle.
        count: how many pickles follow each other (five in a file from before PyTorch 1.6).
        root: which of them holds the object.

    Returns:
        What opening them would import and call.

    Raises:
        ValueError: the bytes are no pickle, or a damaged one.

    Example:
        >>> import io, pickle
        >>> [str(g) for g in read_pickles(io.BytesIO(pickle.dumps(print, 2))).globals]
        ['builtins.print']
    """
    walks = []
    for _ in range(count):
        walk = _Walk()
        try:
            with warnings.catch_warnings():  # pickletools decodes escapes and warns about bad ones
                warnings.simplefilter("ignore")
                for opcode, argument, position in pickletools.genops(stream):
                    walk.step(opcode, argument, position or 0)
        except Exception as error:  # pickletools raises whatever its decoders raise
            raise ValueError(f"{type(error).__name__}: {error}") from error
        walks.append(walk)
    return Reading(
        tuple(dict.fromkeys(name for walk in walks for name in walk.globals)),
        tuple(call for walk in walks for call in walk.calls),
        walks[root].root,
        tuple(phrase for walk in walks for phrase in walk.unresolved),
        tuple(dict.fromkeys(name for walk in walks for name in walk.foreign)),
        sum(count for walk in walks for count in walk.storages.values()),
    )


class _Walk:
    """A pickle machine whose stack holds descriptions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[Global, None] = {}
        self.calls: list[Call] = []
        self.unresolved: list[str] = []
        self.foreign: dict[str, None] = {}
        self.storages: dict[str, int] = {}
        self.root: Any = None

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any, position: int) -> None:
        name = opcode.name
        if name not in READABLE:
            self.foreign[name] = None
        match name:
            case "STOP":
                self.root = self.pop()
            case "MARK":
                self.marks.append(len(self.stack))
            case "GLOBAL":
                self.stack.append(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                if isinstance(module, str) and isinstance(attribute, str):
                    self.stack.append(self.named(module, attribute))
                else:
                    self.stack.append(self.unknown(f"a computed name ({name} at byte {position})"))
            case "EXT1" | "EXT2" | "EXT4":
                self.stack.append(self.unknown(f"extension {argument} of a registry (at byte {position})"))
            case "REDUCE" | "NEWOBJ":
                arguments, target = self.pop(), self.pop()
                self.called(target, arguments, name)
            case "NEWOBJ_EX":
                self.pop()
                arguments, target = self.pop(), self.pop()
                self.called(target, arguments, name)
            case "INST":
                arguments = self.pop_mark()
                self.called(self.named(*argument.split(" ", 1)), arguments, name)
            case "OBJ":
                target, *rest = self.pop_mark()
                self.called(target, tuple(rest), name)
            case "BINPERSID" | "PERSID":
                self.stack.append(self.stored(self.pop() if name == "BINPERSID" else None))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "DUP":
                self.stack.append(self.stack[-1])
            case "POP" if self.marks and self.marks[-1] == len(self.stack):
                self.marks.pop()
            case "TUPLE":
                self.stack.append(_Tuple.of(self.pop_mark()))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(_Tuple.of(self.take(len(opcode.stack_before))))
            case _:
                self.plain(opcode, argument)

    def plain(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Any other opcode: by what pickletools says that it takes off the stack and puts there."""
        if pickletools.markobject in opcode.stack_before:
            self.pop_mark()
            below = opcode.stack_before.index(pickletools.markobject)
        else:
            below = len(opcode.stack_before)
        kept = self.take(below)
        for after in opcode.stack_after:
            if kept and opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS"):
                self.stack.append(kept[0])
            elif isinstance(argument, str | int) and not isinstance(argument, bool):
                self.stack.append(argument)
            else:
                self.stack.append(_SHAPES.get(after.name, Shape.OTHER))

    def called(self, target: Any, arguments: Any, opcode: str) -> None:
        by = target if isinstance(target, Global) else None
        self.calls.append(Call(by, arguments, opcode))
        self.stack.append(Made(by))

    def named(self, module: str, name: str) -> Global:
        # Python 2 called the module so, and protocol 2 still does.
        found = Global("builtins" if module == "__builtin__" else module, name)
        self.globals[found] = None
        return found

    def unknown(self, phrase: str) -> Shape:
        self.unresolved.append(phrase)
        return Shape.OTHER

    def stored(self, identity: Any) -> Any:
        """What a persistent identity stands for: files from before PyTorch 1.6 wrap classes in one."""
        match identity:
            case ("module", wrapped, *_):
                return wrapped
            case ("storage", _, str(key), _, int(count), *_):
                self.storages[key] = max(count, self.storages.get(key, 0))
        return Shape.OTHER

    def pop(self) -> Any:
        return self.stack.pop()

    def take(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        cut = len(self.stack) - count
        taken = tuple(self.stack[cut:])
        del self.stack[cut:]
        return taken

    def pop_mark(self) -> tuple[Any, ...]:
        return self.take(len(self.stack) - self.marks.pop())


_SHAPES = {"dict": Shape.DICT, "list": Shape.LIST, "set": Shape.SET}
