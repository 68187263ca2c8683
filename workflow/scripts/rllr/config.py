"""Config files: reading, merging, validation, and the resolved config of one stage."""

import copy
import dataclasses
import functools
import re
import typing
from pathlib import Path
from typing import Any

import yaml

from rllr.cli import UserError
from rllr.methods import METHODS, SECTIONS

AUTO = "auto"
# A number (or truth), or `auto` until the stage has found out which: to everyone who reads it later, a number.
if typing.TYPE_CHECKING:
    IntOrAuto = int
    BoolOrAuto = bool
else:
    IntOrAuto = int | str
    BoolOrAuto = bool | str

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def load_yaml(path: Path | str) -> Any:
    """Read a YAML file.

    Raises:
        UserError: it is missing or not YAML.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[typing.Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} given twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-5 as text; people mean the number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def typed(value: Any) -> Any:
    """Nested values of `--config key={...}`, which Snakemake hands over as text, read as YAML reads them."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    try:
        return yaml.load(value, _Loader) if isinstance(value, str) else value
    except yaml.YAMLError:  # a text with a colon too many
        return value


def merge(base: dict, *overrides: dict | None) -> dict:
    """A deep copy of `base` with nested mappings of `overrides` laid over it; lists and scalars are replaced."""
    result = copy.deepcopy(base)
    for override in overrides:
        for key, value in (override or {}).items():
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = merge(result[key], value)
            else:
                result[key] = copy.deepcopy(value)
    return result


@functools.cache
def schema(name: str) -> dict:
    """A JSON schema of workflow/schemas; what it says of methods and stages comes from their registry."""
    found = load_yaml(SCHEMAS / f"{name}.schema.yaml")
    if name == "config":
        found["properties"]["methods"]["items"] = {"enum": list(METHODS)}
    if name == "model":
        named = {section: section for section in SECTIONS.values()} | SECTIONS
        found["properties"] |= {stage: {"$ref": f"#/$defs/{section}"} for stage, section in named.items()}
    return found


def validate(value: Any, schema: dict, where: str) -> None:
    """Check `value` against a JSON schema.

    Raises:
        UserError: one line naming `where` and the key, what was found and what was expected.
    """
    import jsonschema

    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(value), key=lambda e: list(map(str, e.path)))
    if not errors:
        return
    error = jsonschema.exceptions.best_match(errors)
    key = ".".join(map(str, error.absolute_path)) or "(top level)"
    if error.validator == "additionalProperties":
        unknown = sorted(map(str, set(error.instance) - set(error.schema.get("properties", {}))))
        known = ", ".join(error.schema.get("properties", {}))
        raise UserError(f"{where}: {key}: unknown key {', '.join(unknown)}; expected one of: {known}")
    raise UserError(f"{where}: {key}: {error.message.splitlines()[0]}")


def check_model(value: Any, where: str) -> None:
    """Validate a model's file (or the overrides of one)."""
    validate(value, schema("model"), where)


def check_defaults(value: Any, where: str) -> None:
    """Validate config/stages.yaml, or a run folder's own, which may hold a part of it."""
    sections = ("launch", "lora", *dict.fromkeys(SECTIONS.values()))
    properties = {name: {"$ref": f"#/$defs/{name}"} for name in sections}
    known = {"$defs": schema("model")["$defs"], "type": "object", "additionalProperties": False}
    validate(value, {**known, "properties": properties}, where)


def shares(batch_size: int, name: str, part: int, processes: int, where: str = "") -> int:
    """Parts of a batch on each process: micro-batches of `part` rows, or rows of each of `part` optimiser steps.

    Raises:
        UserError: the batch does not divide evenly; rows would silently be dropped or doubled.
    """
    if batch_size % (part * processes):
        raise UserError(
            f"{where}batch_size {batch_size} is not a multiple of {name} {part} x {processes} processes (launch)"
        )
    return batch_size // (part * processes)


def stage_config(defaults: dict, model: dict, stage: str, seed: int, where: str) -> dict:
    """Every hyperparameter `stage` runs with: defaults, the model's shared section, that of the method that it
    is `like`, what makes the method itself (`settings` of its entry), the model's own section.

    Args:
        defaults: config/stages.yaml.
        model: config/models/<model>.yaml with overrides applied.
        stage: a key of SECTIONS.

    Raises:
        UserError: a key is missing, has a value outside its range or does not go with another.
    """
    section = SECTIONS[stage]
    sections = [model.get(section)] if section != stage else []
    if method := METHODS.get(stage):
        sections += [model.get(method.like), method.settings]
    resolved = merge(defaults[section], *sections, model.get(stage))
    for key in ("precision", "attention"):
        resolved.setdefault(key, model.get(key, "auto"))
    definitions = schema("model")["$defs"]
    required = {**definitions[section], "required": sorted(definitions[section]["properties"])}
    validate(resolved, {"$defs": definitions, **required}, f"{where}: {stage}")
    if resolved.get("keep") == "best" and not resolved["validate_iterations"]:
        raise UserError(f"{where}: {stage}: keep: best needs validate_iterations above 0, found 0")
    if resolved.get("baseline") == "leave_one_out" and resolved["samples_per_prompt"] < 2:
        raise UserError(f"{where}: {stage}: baseline: leave_one_out needs samples_per_prompt above 1, found 1")
    launch = merge(defaults["launch"], model.get("launch"))
    if launch["fsdp"] and section not in ("ppo", "predict") and resolved["precision"] == "fp16":
        raise UserError(
            f"{where}: {stage}: launch.fsdp sums up gradients and keeps heads in the backbone's precision: expected "
            "bf16 or fp32, found fp16"
        )
    processes = launch["processes"] * launch["nodes"]
    part = {"ppo": "updates", "predict": None}.get(section, "micro_batch_size")
    if part:
        rows = 1 if resolved[part] == AUTO else resolved[part]
        shares(resolved["batch_size"], part, rows, processes, f"{where}: {stage}: ")
    resolved["stage"] = stage
    resolved["seed"] = seed
    if section != "predict":
        resolved["lora"] = merge(defaults["lora"], model.get("lora"))
    return resolved


def load_stage(cls: type, path: Path | str) -> Any:
    """Read a resolved stage config into the dataclass `cls`; what it `rests_on` is the workflow's to compare.

    Raises:
        UserError: a key is unknown, missing or of the wrong type.
    """
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    values.pop("rests_on", None)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown, missing = sorted(set(values) - set(fields)), sorted(set(fields) - set(values))
    if unknown or missing:
        what = f"unknown key {', '.join(unknown)}" if unknown else f"missing key {', '.join(missing)}"
        raise UserError(f"{path}: {what}; expected: {', '.join(fields)}")
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if hints[key] is float and isinstance(value, int) and not isinstance(value, bool):
            values[key] = value = float(value)
        allowed = typing.get_args(hints[key]) or (hints[key],)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            expected = " or ".join(a.__name__ for a in allowed)
            raise UserError(f"{path}: {key}: expected {expected}, found {value!r}")
    return cls(**values)
