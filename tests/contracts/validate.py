"""Validates with somebody else's validator (the package jsonschema), for the tests:

  validate.py            what comes on standard input, a line each: {"schema": "event" or "data", "value": …}
  validate.py --files    docs/schema, the examples in it, and each config/*.toml

What is published must also have no field that the schemas do not describe: they allow consumers to meet more, but a
field of ours that is in no schema is one that was forgotten. Ends with code 1 after telling all that is wrong.
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator

ROOT = pathlib.Path(__file__).parents[2]
SCHEMAS = {name: json.loads((ROOT / "docs/schema" / file).read_text()) for name, file in {
    "event": "topic-created-event.v1.json",
    "data": "topic-created.v1.json",
    "config": "config.v1.json",
}.items()}


def strict(schema):
    """The same schema without fields of which it says nothing."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed["additionalProperties"] = False
    return closed


def faults(schema, value, what):
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [f"{what}: {error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def lines():
    found, count = [], 0
    for line in sys.stdin:
        given = json.loads(line)
        schema = SCHEMAS[given["schema"]]
        found += faults(schema, given["value"], line) + faults(strict(schema), given["value"], line)
        count += 1
    return found, f"{count} values"


def files():
    import tomllib

    found = []
    for name, schema in SCHEMAS.items():
        Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", []):
            found += faults(strict(schema), example, f"the example of {name}")
        for field, described in schema["properties"].items():
            for example in described.get("examples", []):
                found += faults(described, example, f"the example of {name}.{field}")
    samples = sorted((ROOT / "config").glob("*.toml"))
    for sample in samples:
        text = sample.read_text()
        named = text.splitlines()[0].removeprefix("#:schema ")
        if (sample.parent / named).resolve() != ROOT / "docs/schema/config.v1.json":
            found.append(f"{sample}: its first line does not name the schema")
        found += faults(SCHEMAS["config"], tomllib.loads(text), sample)
    return found, f"{len(SCHEMAS)} schemas, {len(samples)} sample configurations"


found, what = files() if "--files" in sys.argv else lines()
print("\n".join(found) or f"valid: {what}")
sys.exit(bool(found))
