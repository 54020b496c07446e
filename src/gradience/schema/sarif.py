"""The part of SARIF 2.1.0 that findings need, under SARIF's own names (OASIS, 2020-03-27)."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gradience.schema.scalars import Json

SARIF_VERSION: Final = "2.1.0"
SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

Level: TypeAlias = Literal["none", "note", "warning", "error"]
Bag: TypeAlias = dict[str, Json]


class _Sarif(msgspec.Struct, kw_only=True, frozen=True, rename="camel", omit_defaults=True):
    """An object of SARIF: names in camel case, absent where not set."""


class Text(_Sarif, kw_only=True, frozen=True):
    """A multiformatMessageString."""

    text: str
    markdown: str | UnsetType = UNSET


class Message(_Sarif, kw_only=True, frozen=True):
    """A message with its text."""

    text: str


class Configuration(_Sarif, kw_only=True, frozen=True):
    """A reportingConfiguration: the level that a rule's results have by default."""

    level: Level


class Descriptor(_Sarif, kw_only=True, frozen=True):
    """A reportingDescriptor: one rule."""

    id: str
    name: str | UnsetType = UNSET
    short_description: Text | UnsetType = UNSET
    full_description: Text | UnsetType = UNSET
    help: Text | UnsetType = UNSET
    default_configuration: Configuration | UnsetType = UNSET
    properties: Bag | UnsetType = UNSET


class Driver(_Sarif, kw_only=True, frozen=True):
    """The toolComponent that is the program itself."""

    name: str
    version: str
    information_uri: str | UnsetType = UNSET
    rules: list[Descriptor] = msgspec.field(default_factory=list)


class Tool(_Sarif, kw_only=True, frozen=True):
    """The program."""

    driver: Driver


class ArtifactLocation(_Sarif, kw_only=True, frozen=True):
    """Where a file is: a path relative to the working folder, or a file: URI."""

    uri: str


class Region(_Sarif, kw_only=True, frozen=True):
    """A line of a file."""

    start_line: Annotated[int, Meta(ge=1)]


class PhysicalLocation(_Sarif, kw_only=True, frozen=True):
    """A file, and a line in it where that is known."""

    artifact_location: ArtifactLocation
    region: Region | UnsetType = UNSET


class Location(_Sarif, kw_only=True, frozen=True):
    """A place that a result speaks of."""

    physical_location: PhysicalLocation


class Result(_Sarif, kw_only=True, frozen=True):
    """One finding."""

    rule_id: str
    rule_index: int = -1
    level: Level
    message: Message
    locations: list[Location] = msgspec.field(default_factory=list)
    properties: Bag | UnsetType = UNSET


class Reference(_Sarif, kw_only=True, frozen=True):
    """A reportingDescriptorReference: the rule that a notification is about."""

    id: str
    index: int = -1


class Notification(_Sarif, kw_only=True, frozen=True):
    """Something to know about the run: a rule that could not be judged."""

    message: Message
    level: Level
    associated_rule: Reference | UnsetType = UNSET


class Invocation(_Sarif, kw_only=True, frozen=True):
    """How the run of the program went."""

    execution_successful: bool
    tool_execution_notifications: list[Notification] = msgspec.field(default_factory=list)


class Run(_Sarif, kw_only=True, frozen=True):
    """One run of the program."""

    tool: Tool
    invocations: list[Invocation]
    results: list[Result]
    properties: Bag | UnsetType = UNSET


class Log(msgspec.Struct, kw_only=True, frozen=True):
    """A SARIF file."""

    schema: str = msgspec.field(name="$schema", default=SARIF_SCHEMA)
    version: Literal["2.1.0"] = "2.1.0"
    runs: list[Run]
