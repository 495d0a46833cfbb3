"""The OpenAPI document as the one source of what a request may look like.

For: reading ``openapi.yaml``, checking requests against it, and, in tests, answers too.
Not for: HTTP (``service``), what an operation does (the handlers).

Rules:

* What the document does not name is refused: a parameter, a field, a media type.
* An error names the field, what was expected and what came; never the value of a field of the format ``password``.
* Numbers with a fraction of zero are whole numbers, as JSON Schema has it; NaN, infinities, duplicate fields, half
  surrogate pairs and the character NUL, which PostgreSQL cannot keep, are no JSON here.
* Defaults of the document are filled in, so that a handler finds every field that has one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from importlib import resources
from typing import Any, Final, cast

import yaml
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError, best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from appliance.errors import BadRequest

METHODS: Final = ("get", "post", "put", "delete")
MAX_BODY_LEN: Final = 65_536
"""Where an operation does not say otherwise (``x-max-body-len``): a handful of short fields."""
MAX_PARTS: Final = 10_000
"""Fields and items of a body, by the marks that begin or divide them: no operation takes a thousand, and millions of
them hold the event loop for seconds and fill memory."""
MAX_SHOWN_LEN: Final = 60
"""So much of a wrong value is shown: enough to find it, too little to fill a log."""
ADMINISTRATOR: Final = "administrator"
_DOCUMENT: Final = "urn:openapi"
_WHERE_TO_LOOK: Final = "GET /api/v1/openapi.json says what each field takes"

_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_formats: Final = FormatChecker(formats=())


@_formats.checks("date", raises=ValueError)
def _is_date(value: object) -> bool:
    return not isinstance(value, str) or date.fromisoformat(value) is not None


@_formats.checks("date-time", raises=ValueError)
def _is_instant(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the path or the query."""

    name: str
    place: str
    required: bool
    kind: str
    default: Any


@dataclass(frozen=True, slots=True)
class Operation:
    """A method on a path. ``credentials`` names the security schemes, one of which is asked for; empty: none."""

    id: str
    method: str
    path: str
    credentials: frozenset[str]
    administrator: bool
    parameters: tuple[Parameter, ...]
    takes_body: bool
    max_body_len: int
    pointer: str

    @property
    def handler(self) -> str:
        """The name of the method that does it."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.id).lower()


class Contract:
    """The document, its operations, and a check for each of their values."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.base = str(document["servers"][0]["url"])
        self._registry: Registry[Any] = Registry().with_resource(
            _DOCUMENT, DRAFT202012.create_resource(document)
        )
        self._validators: dict[int, Draft202012Validator] = {}
        self.operations = {one.id: one for one in self._operations()}

    @classmethod
    def load(cls) -> Contract:
        """The document that this version ships."""
        text = resources.files("appliance.api").joinpath("openapi.yaml").read_text(encoding="utf-8")
        # libyaml, where PyYAML was built with it, is ten times as fast: a start need not wait for a fifth of a second.
        return cls(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506  # both are safe

    def _operations(self) -> Iterator[Operation]:
        for path, item in self.document["paths"].items():
            for method in METHODS:
                if (found := item.get(method)) is None:
                    continue
                pointer = f"/paths/{_escaped(path)}/{method}"
                shared = [
                    self._parameter(f"/paths/{_escaped(path)}/parameters/{i}")
                    for i in range(len(item.get("parameters", ())))
                ]
                own = [
                    self._parameter(f"{pointer}/parameters/{i}")
                    for i in range(len(found.get("parameters", ())))
                ]
                security = found.get("security", self.document["security"])
                yield Operation(
                    found["operationId"],
                    method.upper(),
                    path,
                    frozenset(name for one in security for name in one),
                    found.get("x-reach") == ADMINISTRATOR,
                    (*shared, *own),
                    "requestBody" in found,
                    int(found.get("x-max-body-len", MAX_BODY_LEN)),
                    pointer,
                )

    def _parameter(self, pointer: str) -> Parameter:
        found = self.resolve(pointer)
        schema = self.resolve_schema(found["schema"])
        return Parameter(
            found["name"],
            found["in"],
            found.get("required", False),
            schema.get("type", "string"),
            schema.get("default"),
        )

    def resolve(self, pointer: str) -> Any:
        """What stands at a JSON pointer, with a reference followed."""
        value: Any = self.document
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            value = value[int(name)] if isinstance(value, list) else value[name]
            value = self.resolve_schema(value)
        return value

    def resolve_schema(self, value: Any) -> Any:
        """The same value, or what it refers to; what stands beside the reference goes on top."""
        while isinstance(value, dict) and "$ref" in value:
            beside = {name: one for name, one in value.items() if name != "$ref"}
            value = {**self.resolve(value["$ref"].removeprefix("#")), **beside}
        return value

    def check(self, value: object, schema: Mapping[str, Any], where: str) -> None:
        """``BadRequest`` that names the field where the value is not of the schema."""
        validator = self._validators.get(id(schema))  # a part of the document, which lives as long as this
        if validator is None:
            validator = Draft202012Validator(
                _absolute(schema), registry=self._registry, format_checker=_formats
            )
            self._validators[id(schema)] = validator
        error = best_match(validator.iter_errors(value))
        if error is not None:
            raise _explained(error, where)

    # Requests

    def read_parameters(
        self, operation: Operation, path: Mapping[str, str], query: Iterable[tuple[str, str]]
    ) -> dict[str, Any]:
        """The values of path and query, by name; one that was not given and has no default is None."""
        given: dict[str, str] = {}
        known = {one.name for one in operation.parameters if one.place == "query"}
        for name, text in query:
            if name not in known:
                raise BadRequest(
                    f"query parameter {_shown(name)}: unknown",
                    hint=f"known: {', '.join(sorted(known)) or 'none'}",
                )
            if name in given:
                raise BadRequest(f"query parameter {name!r}: expected once", hint="leave all but one out")
            given[name] = text
        values: dict[str, Any] = {}
        for parameter in operation.parameters:
            text_given = path.get(parameter.name) if parameter.place == "path" else given.get(parameter.name)
            if text_given is None:
                values[parameter.name] = parameter.default
                continue
            value = _from_text(text_given, parameter.kind)
            _check_text(value, f"parameter {parameter.name!r}")
            schema = self._schema_of(operation, parameter.name)
            self.check(value, schema, f"parameter {parameter.name!r}")
            values[parameter.name] = value
        return values

    def _schema_of(self, operation: Operation, name: str) -> Mapping[str, Any]:
        item_pointer = operation.pointer.rpartition("/")[0]
        for pointer in (operation.pointer, item_pointer):
            for one in self.resolve(pointer).get("parameters", ()):
                found = self.resolve_schema(one)
                if found["name"] == name:
                    schema: Mapping[str, Any] = found["schema"]
                    return schema
        raise KeyError(name)

    def read_body(self, operation: Operation, raw: bytes) -> Any:
        """The body of a request, with defaults filled in."""
        body = parse_json(raw)
        schema = self.resolve(operation.pointer)["requestBody"]["content"]["application/json"]["schema"]
        self.check(body, schema, "body")
        return self._filled(body, schema)

    def _filled(self, value: Any, schema: Any) -> Any:
        """The value with defaults, and with what the document says is base64 as bytes."""
        schema = self.resolve_schema(schema)
        if isinstance(value, dict) and "properties" in schema:
            filled = {}
            for name, inner in schema["properties"].items():
                if name in value:
                    filled[name] = self._filled(value[name], inner)
                elif "default" in (resolved := self.resolve_schema(inner)):
                    filled[name] = resolved["default"]
            return filled
        if isinstance(value, list) and "items" in schema:
            return [self._filled(one, schema["items"]) for one in value]
        if isinstance(value, str) and schema.get("contentEncoding") == "base64":
            return _from_base64(value)
        return value

    # Answers, for tests

    def check_answer(self, operation: Operation, status: int, media_type: str, body: bytes) -> None:
        """``BadRequest`` where the document does not promise such an answer."""
        responses = self.resolve(operation.pointer)["responses"]
        if str(status) not in responses:
            raise BadRequest(f"{operation.id}: the document has no answer {status}")
        content = self.resolve_schema(responses[str(status)]).get("content")
        if content is None:
            if body:
                raise BadRequest(f"{operation.id}: {status} has a body")
            return
        if media_type not in content:
            raise BadRequest(f"{operation.id}: {status} is {media_type}, not {', '.join(content)}")
        if media_type == "application/json":
            self.check(parse_json(body), content[media_type]["schema"], f"{operation.id}: answer {status}")


def parse_json(raw: bytes) -> Any:
    """The JSON value, else ``BadRequest``."""
    if sum(raw.count(mark) for mark in b"[{,") > MAX_PARTS:
        raise BadRequest(
            f"the body has more than {MAX_PARTS} fields and list items", hint="split it into several requests"
        )
    try:
        value = json.loads(
            raw, parse_constant=_no_constant, parse_float=_number, object_pairs_hook=_object_of_pairs
        )
    except RecursionError as error:
        raise BadRequest("the body is not JSON: nested too deeply", hint=_WHERE_TO_LOOK) from error
    except ValueError as error:  # UnicodeDecodeError is one too
        raise BadRequest("the body is not JSON", hint=str(error)[:200]) from error
    _check_text(value, "body")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:MAX_SHOWN_LEN]} is out of range")
    return int(value) if value.is_integer() else value


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")
    return found


def _check_text(value: Any, where: str) -> None:
    """JSON can say it, UTF-8 and PostgreSQL cannot keep it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and _NO_TEXT.search(one):
            raise BadRequest(
                f"{where}: the character NUL or half a surrogate pair is no text", hint="leave it out"
            )


def _from_text(text: str, kind: str) -> Any:
    if kind == "integer" and re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        return int(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            "body: a field that takes base64 holds something else",
            hint=f"{error}; RFC 4648 with padding and without line breaks",
        ) from error


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _absolute(schema: Any) -> Any:
    """The schema with its references into this document made absolute; those further in are resolved there."""
    if isinstance(schema, dict):
        return {
            name: f"{_DOCUMENT}{value}" if name == "$ref" and value.startswith("#") else _absolute(value)
            for name, value in schema.items()
        }
    if isinstance(schema, list):
        return [_absolute(one) for one in schema]
    return schema


# What an error says ------------------------------------------------------------------------------------------


def _explained(error: ValidationError, where: str) -> BadRequest:
    path = ".".join(str(part) for part in error.absolute_path)
    field = f"{where}: field {path!r}" if path and where == "body" else where
    schema = error.schema if isinstance(error.schema, dict) else {}
    rule, wanted = str(error.validator), cast("Any", error.validator_value)  # the schema's, so it is set
    instance = cast("Any", error.instance)
    hint = str(schema.get("description") or _WHERE_TO_LOOK)
    got = "a value that is not shown" if schema.get("format") == "password" else _shown(instance)
    match rule:
        case "required":
            missing = [name for name in wanted if name not in instance]
            return BadRequest(f"{field}: expected a field {missing[0]!r}, got none", hint=_WHERE_TO_LOOK)
        case "additionalProperties":
            known = sorted(schema.get("properties", {}))
            unknown = [name for name in instance if name not in known]
            return BadRequest(
                f"{field}: unknown field {_shown(unknown[0] if unknown else '')}",
                hint=f"known: {', '.join(known)}",
            )
        case "type":
            return BadRequest(f"{field}: expected {_words(wanted)}, got {got}", hint=hint)
        case "enum":
            choices = ", ".join(str(one) for one in wanted)
            return BadRequest(f"{field}: expected one of {choices}; got {got}", hint=hint)
        case "pattern" | "format":
            return BadRequest(f"{field}: expected text of the form {wanted}, got {got}", hint=hint)
        case "uniqueItems":
            return BadRequest(f"{field}: expected each item once, got {got}", hint=hint)
    words = _LIMITS.get(rule)
    expected = words.format(wanted) if words is not None else f"{rule} {wanted}"
    return BadRequest(f"{field}: expected {expected}, got {got}", hint=hint)


_LIMITS: Final = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} fields",
}
_KINDS: Final = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def _words(kinds: str | list[str]) -> str:
    return " or ".join(_KINDS[one] for one in ([kinds] if isinstance(kinds, str) else kinds))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    if isinstance(value, str):
        begin = value[:MAX_SHOWN_LEN]
        text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in begin)
        return repr(text if len(value) <= MAX_SHOWN_LEN else f"{text}…")
    return json.dumps(value)[:MAX_SHOWN_LEN]
