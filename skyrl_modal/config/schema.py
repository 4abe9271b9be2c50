"""The JSON schema of configuration files, for editors that complete and check TOML files.

``python -m tests.docs.option_tables`` writes it to ``schema.json`` next to this file, which is part of the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyrl_modal.config.check import ITEM_CLASSES, required_fields
from skyrl_modal.config.settings import Setting
from skyrl_modal.declaration import fields

SCHEMA_FILE = Path(__file__).parent / "schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
_TEXTS: Mapping[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_CODE: Mapping[str, Any] = {"type": "integer", "minimum": 1, "maximum": 255}
_BY_KIND: Mapping[str, Mapping[str, Any]] = {
    "text": _TEXT,
    "path": _TEXT,
    "url": _TEXT,
    "flag": {"type": "boolean"},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "duration": {"type": ["string", "number"]},
    "list": _TEXTS,
    "codes": {"anyOf": [{"type": "string"}, _CODE, {"type": "array", "items": _CODE}]},
    "gpus": _TEXTS,
    "variables": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
}


def schema(known: Mapping[str, Setting]) -> dict[str, Any]:
    """Return the schema.

    Args:
        known: The settings.
    """
    properties: dict[str, Any] = {}
    for key, setting in known.items():
        table, _, name = key.rpartition(".")
        if not table:
            properties[name] = {**properties.get(name, {}), **_of_setting(setting)}
    for key, setting in known.items():
        table, _, name = key.rpartition(".")
        if table:
            _table(properties, table)[name] = _of_setting(setting)
    profile = {"type": "object", "properties": properties, "additionalProperties": False}
    description = "Profiles: further values, which --profile NAME selects."
    profiles = {"type": "object", "description": description, "additionalProperties": {"$ref": "#/$defs/settings"}}
    return {
        "$schema": _DIALECT,
        "title": "Configuration of skyrl-modal",
        "$defs": {"settings": profile},
        "type": "object",
        "properties": {**{name: {"$ref": f"#/$defs/settings/properties/{name}"} for name in properties}}
        | {"profile": profiles},
        "additionalProperties": False,
    }


def _table(properties: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the properties of a table. A setting of the same name, such as ``ray``, can be either of both."""
    own = properties.setdefault(name, {"type": "object", "properties": {}, "additionalProperties": False})
    if "properties" not in own:
        own["type"] = [own.pop("type"), "object"]
        own |= {"properties": {}, "additionalProperties": False}
    found: dict[str, Any] = own["properties"]
    return found


def _of_setting(setting: Setting) -> dict[str, Any]:
    kind = setting.option.kind
    text = f"{setting.option.help} Default: {setting.default_text}."
    if kind == "choice":
        none = ["none"] if setting.is_optional else []
        return {"enum": [*setting.option.choices, *none], "description": text}
    if kind in ITEM_CLASSES:
        item: dict[str, Any] = _of_class(ITEM_CLASSES[kind])
        items = {"anyOf": [_TEXT, item]} if kind == "secrets" else item
        return {"type": "array", "items": items, "description": text}
    made = {**_BY_KIND[kind], "description": text}
    if setting.is_optional and made.get("type") in ("integer", "number"):
        made["type"] = [made["type"], "string"]  # "none" removes a value of another file
    return made


def _of_class(cls: type) -> dict[str, Any]:
    properties = {}
    for field in fields(cls):
        hint = str(field.type).removesuffix(" | None")
        kind = "list" if hint.startswith("Sequence") else {"bool": "flag", "int": "whole"}.get(hint, "text")
        properties[field.name] = dict(_BY_KIND[kind])
    return {"type": "object", "properties": properties, "required": required_fields(cls), "additionalProperties": False}


def render(known: Mapping[str, Setting]) -> str:
    """Return the content of the schema's file."""
    return json.dumps(schema(known), indent=2) + "\n"
