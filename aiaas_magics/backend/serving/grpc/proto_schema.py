"""Proto schema: protocol buffer messages made from a compact description, in a descriptor pool of their own.

Owns the description's form and the pool. What messages there are belongs to
`open_inference_schema` and `tfserving_schema`.

Generated modules register what they describe in one pool of the process, where the messages of
TensorFlow, of tritonclient and of any server that speaks their protocols clash: same names, not
the same bytes. Here nothing is generated and nothing is shared, and a description holds what is
used: a field that it leaves out travels as an unknown field does.

A line of a description is a message or an enum:

    enum Colour: RED 0, GREEN 1
    Box: string name 1, repeated int64 shape 2, map<string,Box> inner 3, Box.Lid lid 4 of top, bool open 5 of top
    Box.Lid: Colour colour 1

Fields of proto3; `of` names the oneof that a field belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

FIELD: Final = re.compile(
    r"(?P<repeated>repeated )?(?:map<(?P<key>\w+),(?P<value>[\w.]+)>|(?P<type>[\w.]+)) (?P<name>\w+) (?P<number>\d+)(?: of (?P<oneof>\w+))?"
)
SCALARS: Final = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("double", "float", "int64", "uint64", "int32", "bool", "string", "bytes", "uint32")
}


@dataclass(frozen=True, slots=True)
class Description:
    """The messages of one package."""

    package: str
    text: str
    needs: tuple[Description, ...] = ()

    @property
    def file(self) -> str:
        return f"aiaas/{self.package}.proto"


def build(*descriptions: Description) -> list[Any]:
    """For each description a namespace with its top-level message classes and enums, all in one new pool."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(description: Description) -> None:
        for needed in description.needs:
            add(needed)
        if description.file not in added:
            pool.Add(file_of(description))
            added.add(description.file)

    for description in descriptions:
        add(description)
    return [_namespace(pool.FindFileByName(description.file)) for description in descriptions]


def _namespace(file: Any) -> SimpleNamespace:
    namespace = SimpleNamespace(**file.enum_types_by_name)
    for name, descriptor in file.message_types_by_name.items():
        setattr(namespace, name, message_factory.GetMessageClass(descriptor))
    return namespace


def file_of(description: Description) -> FileDescriptorProto:
    file = FileDescriptorProto(
        name=description.file, package=description.package, syntax="proto3", dependency=[needed.file for needed in description.needs]
    )
    messages: dict[str, DescriptorProto] = {}
    for line in filter(None, map(str.strip, description.text.splitlines())):
        head, _, body = line.partition(":")
        parts = [part.strip() for part in re.split(r",(?![^<]*>)", body) if part.strip()]
        kind, _, name = head.rpartition(" ")
        above, _, own = name.rpartition(".")
        if kind == "enum":
            enum = (messages[above] if above else file).enum_type.add(name=own)
            for value in parts:
                word, _, number = value.partition(" ")
                enum.value.add(name=word, number=int(number))
        else:
            messages[name] = messages[above].nested_type.add(name=own) if above else file.message_type.add(name=own)
            _add_fields(messages[name], parts)
    return file


def _add_fields(message: DescriptorProto, parts: Iterable[str]) -> None:
    oneofs: list[str] = []
    for part in parts:
        match = FIELD.fullmatch(part)
        assert match is not None, f"{message.name}: {part}"
        field = message.field.add(name=match["name"], number=int(match["number"]), label=FieldDescriptorProto.LABEL_OPTIONAL)
        if match["oneof"]:
            if match["oneof"] not in oneofs:
                oneofs.append(match["oneof"])
                message.oneof_decl.add(name=match["oneof"])
            field.oneof_index = oneofs.index(match["oneof"])
        if match["repeated"] or match["key"]:
            field.label = FieldDescriptorProto.LABEL_REPEATED
        if match["key"]:
            field.type_name = _map_entry(message, match["name"], match["key"], match["value"])
        else:
            _set_type(field, match["type"])


def _map_entry(message: DescriptorProto, field: str, key: str, value: str) -> str:
    """What a map is on the wire: a repeated message of key and value."""
    entry = message.nested_type.add(name="".join(map(str.capitalize, field.split("_"))) + "Entry")
    entry.options.map_entry = True
    _set_type(entry.field.add(name="key", number=1, label=FieldDescriptorProto.LABEL_OPTIONAL), key)
    _set_type(entry.field.add(name="value", number=2, label=FieldDescriptorProto.LABEL_OPTIONAL), value)
    return str(entry.name)


def _set_type(field: FieldDescriptorProto, name: str) -> None:
    if name in SCALARS:
        field.type = SCALARS[name]
    else:
        field.type_name = name  # a message or an enum: the pool finds out, from the innermost scope outwards
