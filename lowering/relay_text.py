"""The text form of Relay, which TVM had up to 0.19: parsed and printed.

What `mod.astext()` prints of a tensor program is read: functions whose bodies are calls, tuples and their parts,
constants, `let`. Types and places stand in comments there, which are left out: TVM infers them again. Closures,
branches and pattern matching are refused with their line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import UserError

HEADER = '#[version = "0.0.5"]'


@dataclass(frozen=True)
class Name:
    """`%name`: a parameter or what was bound before."""

    name: str


@dataclass(frozen=True)
class Part:
    """`%name.2`: one part of a tuple."""

    of: Expr
    index: int


@dataclass(frozen=True)
class Scalar:
    """A number with its element type."""

    value: int | float | bool
    dtype: str


@dataclass(frozen=True)
class Meta:
    """`meta[relay.Constant][3]`: a constant of the metadata section."""

    index: int


@dataclass(frozen=True)
class Tuple:
    """`(a, b)`."""

    fields: tuple[Expr, ...]


@dataclass(frozen=True)
class Call:
    """`operator(a, b, attribute=1)`, or a call of another function, whose name begins with "@"."""

    op: str
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    line: int = field(default=0, compare=False)


Expr: TypeAlias = Name | Part | Scalar | Meta | Tuple | Call


def parts(e: Expr) -> tuple[Expr, ...]:
    """The expressions that one is made of."""
    if isinstance(e, Part):
        return (e.of,)
    return e.fields if isinstance(e, Tuple) else e.args if isinstance(e, Call) else ()


Shape: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True)
class TensorKind:
    """`Tensor[(1, 3), float32]`; "?" is an extent that is not known."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class TupleKind:
    """The type of a tuple."""

    fields: tuple[Kind, ...]


Kind: TypeAlias = TensorKind | TupleKind


@dataclass(frozen=True)
class Symbol:
    """An attribute's value that is a bare word."""

    text: str


@dataclass(frozen=True)
class Function:
    """A function: parameters with their types, bindings in order, and the result."""

    name: str
    params: tuple[tuple[str, Kind], ...]
    bindings: tuple[tuple[str, Expr], ...]
    result: Expr
    attrs: tuple[tuple[str, Any], ...] = ()
    returns: Kind | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Text:
    """A module: its functions, and what follows `#[metadata]`."""

    functions: tuple[Function, ...]
    metadata: str = field(default="", compare=False)


_TOKEN = re.compile(
    r"""(?P<space>\s+|/\*.*?\*/|//[^\n]*)
    |(?P<number>-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)(?:[fiu]\d*)?(?![\w.]))
    |(?P<name>[%@][\w$/\-]+(?:(?:\.\d+)*\.(?!\d)[\w$/\-]+)*)
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<mark>->|=>|[()\[\]{},;:=<>?&|#*.+\-])""",
    re.VERBOSE | re.DOTALL,
)

_DTYPES = {"f": "float32", "f16": "float16", "f64": "float64", "u8": "uint8", "u16": "uint16", "u32": "uint32",
           "u64": "uint64", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64"}  # fmt: skip


class NotRelay(UserError):
    """Text that is no Relay, or holds what is not read; the message has its line."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str, label: str = "the module") -> Text:
    """The module that a text is. Raises `NotRelay`."""
    code, mark, metadata = text.partition("#[metadata]")
    return _Parser(list(_tokens(code, label)), label).module(metadata.strip() if mark else "")


def _tokens(code: str, label: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(code):
        found = _TOKEN.match(code, at)
        if found is None:
            raise NotRelay(f"{label}, line {line}: {code[at : at + 20].split(chr(10), maxsplit=1)[0]!r} is no Relay")
        kind = str(found.lastgroup)
        if kind != "space":
            yield _Token(kind, found.group(), line)
        line += found.group().count("\n")
        at = found.end()
    yield _Token("end", "the end of the text", line)


class _Parser:
    def __init__(self, tokens: list[_Token], label: str) -> None:
        self.tokens, self.label, self.at = tokens, label, 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def fail(self, wanted: str) -> NotRelay:
        return NotRelay(f"{self.label}, line {self.next.line}: {wanted}, not {self.next.text[:40]!r}")

    def take(self, text: str) -> bool:
        """Whether this is next; it is passed over then."""
        if self.next.text != text or self.next.kind == "string":
            return False
        self.at += 1
        return True

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.fail(f"{text!r} is needed")

    def of(self, kind: str, what: str) -> str:
        if self.next.kind != kind:
            raise self.fail(f"{what} is needed")
        self.at += 1
        return self.tokens[self.at - 1].text

    def module(self, metadata: str) -> Text:
        functions = []
        if self.take("#"):
            self.need("[")
            while not self.take("]"):
                if self.next.kind == "end":
                    raise self.fail("']' is needed")
                self.at += 1
        while self.next.kind != "end":
            if self.next.text in ("type", "extern"):
                raise NotRelay(f"{self.label}, line {self.next.line}: definitions of types are not read")
            self.need("def")
            functions.append(self.function())
        if not functions:
            raise NotRelay(f"{self.label}: no function is defined (is this the text of `mod.astext()`?)")
        return Text(tuple(functions), metadata)

    def function(self) -> Function:
        name = self.of("name", "a function's name")
        if not name.startswith("@"):
            raise self.fail("a function's name begins with '@'")
        if self.next.text == "[":
            raise self.fail("a function without type parameters is needed")
        params = []
        attrs: list[tuple[str, Any]] = []
        for _ in self.listed("(", ")"):
            if self.next.kind == "word":  # an attribute of the function, at the end of its parameters
                attribute = self.of("word", "an attribute")
                self.need("=")
                attrs.append((attribute, self.value()))
                continue
            param = self.of("name", "a parameter")[1:]
            self.need(":")
            params.append((param, self.kind()))
        returns = self.kind() if self.take("->") else None
        self.need("{")
        bindings = []
        while True:
            let = self.take("let")
            start = self.at
            if self.next.kind == "name" and self.tokens[self.at + 1].text == "=":
                bound = self.of("name", "a variable")[1:]
                self.need("=")
                bindings.append((bound, self.expression()))
                self.need(";")
                continue
            if let and self.next.kind == "name" and self.tokens[self.at + 1].text == ":":
                bound = self.of("name", "a variable")[1:]
                self.need(":")
                self.kind()
                self.need("=")
                bindings.append((bound, self.expression()))
                self.need(";")
                continue
            self.at = start
            break
        result = self.expression()
        self.need("}")
        return Function(name[1:], tuple(params), tuple(bindings), result, tuple(attrs), returns)

    def listed(self, opening: str, closing: str) -> Iterator[None]:
        """Once for each item of a list with commas between."""
        self.need(opening)
        while not self.take(closing):
            yield
            if not self.take(","):
                self.need(closing)
                return

    def kind(self) -> Kind:
        if self.next.text == "(":
            return TupleKind(tuple(self.kind() for _ in self.listed("(", ")")))
        word = self.of("word", "a type")
        if word != "Tensor":
            if re.fullmatch(r"(float|int|uint|bfloat)\d+|bool", word):
                return TensorKind((), word)
            raise NotRelay(f"{self.label}, line {self.next.line}: the type {word} is not read")
        self.need("[")
        shape: list[int | str] = [
            "?" if self.take("?") else int(scalar(self.of("number", "an extent")).value) for _ in self.listed("(", ")")
        ]
        self.need(",")
        dtype = self.of("word", "an element type")
        self.need("]")
        return TensorKind(tuple(shape), dtype)

    def expression(self) -> Expr:
        found = self.atom()
        while self.next.text == "." or re.fullmatch(r"\.\d+", self.next.text):
            self.need(".")
            for number in self.of("number", "a part's number").split("."):  # of a part of a part, "0.1" is one token
                found = Part(found, int(number))
        return found

    def atom(self) -> Expr:
        token = self.next
        if token.kind == "name":
            self.at += 1
            if token.text.startswith("@"):
                return self.call(token)
            return Name(token.text[1:])
        if token.kind == "number":
            self.at += 1
            return scalar(token.text)
        if token.text == "(":
            return Tuple(tuple(self.expression() for _ in self.listed("(", ")")))
        if token.kind == "word":
            if token.text in ("True", "False"):
                self.at += 1
                return Scalar(token.text == "True", "bool")
            if token.text in ("fn", "if", "match", "ref", "free_var"):
                raise NotRelay(f"{self.label}, line {token.line}: {token.text!r} is not read, only plain dataflow is")
            self.at += 1
            if token.text == "meta":
                self.need("[")
                what = self.of("word", "relay.Constant")
                if what != "relay.Constant":
                    raise NotRelay(f"{self.label}, line {token.line}: metadata {what} is not read")
                self.need("]")
                self.need("[")
                index = int(self.of("number", "a constant's number"))
                self.need("]")
                return Meta(index)
            return self.call(token)
        raise self.fail("an expression is needed")

    def call(self, token: _Token) -> Call:
        args: list[Expr] = []
        attrs: list[tuple[str, Any]] = []
        for _ in self.listed("(", ")"):
            if self.next.kind == "word" and self.tokens[self.at + 1].text == "=":
                name = self.of("word", "an attribute")
                self.need("=")
                attrs.append((name, self.value()))
            else:
                args.append(self.expression())
        return Call(token.text, tuple(args), tuple(attrs), token.line)

    def value(self) -> Any:
        """An attribute's value."""
        token = self.next
        if token.text == "[":
            return tuple(self.value() for _ in self.listed("[", "]"))
        if token.text == "(":
            return tuple(self.value() for _ in self.listed("(", ")"))
        self.at += 1
        if token.kind == "string":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1])
        if token.kind == "number":
            return scalar(token.text).value
        if token.kind == "word":
            plain = {"True": True, "False": False, "None": None}
            if token.text in plain:
                return plain[token.text]
            if token.text == "meta":
                raise NotRelay(f"{self.label}, line {token.line}: attributes in the metadata are not read")
            return Symbol(token.text)
        self.at -= 1
        raise self.fail("an attribute's value is needed")


def scalar(text: str) -> Scalar:
    """A number as Relay writes it: `1f` and `1f64` are floats, `1i64` is an int64, `1` an int32."""
    found = re.fullmatch(r"(-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan))([fiu]\d*)?", text)
    assert found is not None
    number, suffix = found.groups()
    dtype = _DTYPES.get(suffix or "", "int32" if re.fullmatch(r"-?\d+", number) else "float32")
    return Scalar(float(number) if "float" in dtype else int(number), dtype)


def printed(text: Text) -> str:
    """The module as text that `relay.parse` reads."""
    functions = "\n\n".join(_function(f) for f in text.functions)
    tail = f"\n\n#[metadata]\n{text.metadata}\n" if text.metadata else "\n"
    return f"{HEADER}\n{functions}{tail}"


def _function(f: Function) -> str:
    told = [f"{k}={_value(v)}" for k, v in f.attrs]
    params = ", ".join([*(f"%{name}: {_kind(kind)}" for name, kind in f.params), *told])
    returns = f" -> {_kind(f.returns)}" if f.returns is not None else ""
    lines = [f"def @{f.name}({params}){returns} {{"]
    lines += [f"  %{name} = {expression(e)};" for name, e in f.bindings]
    return "\n".join([*lines, f"  {expression(f.result)}", "}"])


def _kind(kind: Kind) -> str:
    if isinstance(kind, TupleKind):
        fields = ", ".join(map(_kind, kind.fields))
        return f"({fields},)" if len(kind.fields) == 1 else f"({fields})"
    if not kind.shape:
        return kind.dtype
    return f"Tensor[({', '.join(map(str, kind.shape))}), {kind.dtype}]"


def expression(e: Expr) -> str:
    """An expression as text."""
    if isinstance(e, Name):
        return f"%{e.name}"
    if isinstance(e, Part):
        return f"{expression(e.of)}.{e.index}"
    if isinstance(e, Scalar):
        if e.dtype == "bool":
            return str(bool(e.value))
        suffix = next(k for k, v in _DTYPES.items() if v == e.dtype)
        return f"{_number(e.value)}{'' if e.dtype == 'int32' else suffix}"
    if isinstance(e, Meta):
        return f"meta[relay.Constant][{e.index}]"
    if isinstance(e, Tuple):
        fields = ", ".join(map(expression, e.fields))
        return f"({fields},)" if len(e.fields) == 1 else f"({fields})"
    told = [f"{k}={_value(v)}" for k, v in e.attrs]
    return f"{e.op}({', '.join([*map(expression, e.args), *told])})"


def _number(value: float) -> str:
    whole = isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e9)
    return str(int(value)) if whole else repr(value)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Symbol):
        return value.text
    if isinstance(value, float):
        return f"{_number(value)}f"
    return str(value)
