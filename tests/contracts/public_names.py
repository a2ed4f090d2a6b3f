"""The public names of Onward, collected from the code that defines them.

Users' programs, dashboards and configurations depend on these names. `public_names.txt` beside this file lists them,
and `test_public_names.py` compares the two. `python -m tests.contracts.public_names` prints the list anew.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import onward
from onward.__main__ import main
from onward.model.manifest import Manifest
from onward.service.app import OPERATIONS
from onward.service.http import openapi
from onward.service.http.problems import ALL
from onward.service.metrics.prometheus import Metrics
from onward.service.settings import OF_CLIENTS, PREFIX, Settings
from onward.training.config import Config

LIST = Path(__file__).with_name("public_names.txt")


def names() -> list[str]:
    """The public names, sorted, with a line for each."""
    document = openapi.document(OPERATIONS)
    lines = [
        *operations(document["paths"]),
        *(
            f"schema {name}: {field}"
            for name, schema in document["components"]["schemas"].items()
            for field in fields(schema, {})
        ),
        *(f"problem {kind.status} {kind.type}" for kind in ALL),
        *(f"setting {PREFIX}{name.upper()}" for name in Settings.model_fields),
        *(f"setting of the command line {name}" for name in OF_CLIENTS),
        *(f"metric {metric}" for metric in re.findall(r"(?m)^# TYPE (.*)$", Metrics().text().decode())),
        *(f"manifest.json: {field}" for field in document_fields(Manifest.model_json_schema())),
        *(f"configuration of training: {field}" for field in document_fields(Config.model_json_schema())),
        *commands(main, "onward"),
        *(f"python onward.{name}" for name in onward.__all__),
    ]
    return sorted(set(lines))


def operations(paths: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines of each operation with its parameters, media types and schemas."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            name = f"operation {operation['operationId']}"
            yield f"{name}: {method.upper()} {path}"
            for parameter in operation["parameters"]:
                yield f"{name}: {parameter['in']} parameter {parameter['name']}"
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{name}: request {media} {reference(body['schema'])}"
            for status, response in operation["responses"].items():
                contents = [
                    f"{media} {reference(body['schema'])}" for media, body in response.get("content", {}).items()
                ]
                yield from (f"{name}: response {status} {content}".strip() for content in contents or [""])


def reference(schema: Mapping[str, Any]) -> str:
    """The name of the schema that a reference leads to."""
    return str(schema["$ref"]).rpartition("/")[2]


def document_fields(schema: dict[str, Any]) -> Iterator[str]:
    """The fields of a schema and of all that it refers to, as paths from its root."""
    return fields(schema, schema.get("$defs", {}))


def fields(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The fields of a schema as paths, with a `?` after each that may be left out. Names that are in the data are `*`,
    items of a list `[]`. References are followed into `definitions`; others are left to the schema that they name.
    """
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}".removeprefix(".") + ("" if name in schema.get("required", ()) else "?")
        yield inner
        yield from fields(field, definitions, inner)
    for variant in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from fields(variant, definitions, path)
    for key, sign in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], definitions, path + sign)
    for value in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])):
        yield f"{path} = {value}"
    if (definition := str(schema.get("$ref", "")).rpartition("/")[2]) in definitions:
        # a definition that refers to itself is followed once
        rest = {name: inner for name, inner in definitions.items() if name != definition}
        yield from fields(definitions[definition], rest, path)


def commands(command: click.Command, name: str) -> Iterator[str]:
    """Lines of each command with its arguments and options."""
    yield f"command {name}"
    for parameter in command.params:
        sign = (
            " ".join([*parameter.opts, *parameter.secondary_opts])
            if isinstance(parameter, click.Option)
            else (parameter.name or "").upper()
        )
        yield f"command {name}: {sign}"
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from commands(found, f"{name} {inner}")


if __name__ == "__main__":
    click.echo("\n".join(names()))
