"""The configuration of an experiment: checked against the schema, with the schema's defaults."""

import copy
from collections.abc import Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError

# A JSON schema takes 2.0 for a whole number, `range` does not.
_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


class ConfigError(ValueError):
    """The configuration has a mistake; the message names the key, the value and what is allowed."""


def with_defaults(given: Mapping, schema: Mapping) -> dict:
    """Return a copy of a configuration with the schema's defaults, or raise a ConfigError.

    Args:
        given: as read from YAML; it is not changed.
        schema: a JSON schema, with defaults.
    """
    config: dict = copy.deepcopy(dict(given))
    try:
        _check_keys(config)
    except RecursionError as error:
        raise ConfigError("the configuration holds itself, or is nested too deeply") from error
    _fill(config, schema)
    errors = sorted(_Validator(schema).iter_errors(config), key=lambda e: e.json_path)
    if errors:
        raise ConfigError("; ".join(_explain(error) for error in errors))
    return config


def _check_keys(values: object, where: str = "the configuration") -> None:
    """Raise a ConfigError if a key is no text, as YAML's `1:`, `no:` and `null:` are not."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the key {key!r} is no text; put it in quotes")
        _check_keys(value, key)
    for value in values if isinstance(values, list) else ():
        _check_keys(value, where)


def _fill(values: dict, schema: Mapping) -> None:
    for key, part in schema.get("properties", {}).items():
        if "default" in part and key not in values:
            values[key] = copy.deepcopy(part["default"])
        if isinstance(values.get(key), dict):
            _fill(values[key], part)


def _explain(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the configuration"
    schema: Any = error.schema
    if error.validator == "additionalProperties" and "properties" in schema:
        unknown = sorted(set(cast(dict, error.instance)) - set(schema["properties"]))
        return f"{where}: unknown keys {unknown}; allowed are {sorted(schema['properties'])}"
    if error.validator == "required":
        return f"{where}: {error.message}"
    rule = f"{error.validator} {error.validator_value}"
    return f"{where}: {error.instance!r} is not allowed; it must have {rule}"
