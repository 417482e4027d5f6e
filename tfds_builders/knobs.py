"""Knobs of a dataset's configs: fields with a range and a meaning, changed configs, digests.

A config is a `tfds.core.BuilderConfig` dataclass; those of its fields that were made by `knob` say what the data are.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from rgbd_reid_jax.core.errors import InputError

Config = TypeVar("Config", bound=tfds.core.BuilderConfig)


def knob(default: Any, low: float, high: float, doc: str) -> Any:
    """A whole number or a number (as `default` is one) from `low` to `high`."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "doc": doc})


def choice(default: str | int, choices: Sequence[str | int], doc: str) -> Any:
    """One of some words, or of some whole numbers."""
    return dataclasses.field(default=default, metadata={"choices": tuple(choices), "doc": doc})


def text(default: str, doc: str) -> Any:
    """Any text."""
    return dataclasses.field(default=default, metadata={"doc": doc})


def special(
    default: Any,
    shown: str,
    doc: str,
    *,
    check: Callable[[Any], None],
    plain: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """A value of a kind of its own.

    Args:
        default: the value.
        shown: what stands for it in a table.
        doc: its meaning.
        check: raises InputError where another value does not fit.
        plain: makes JSON content of it.
    """
    return dataclasses.field(default=default, metadata={"shown": shown, "doc": doc, "check": check, "plain": plain})


def knob_fields(config: Any) -> dict[str, dataclasses.Field]:
    """The fields of a config, or of its class, that are knobs, by name."""
    return {field.name: field for field in dataclasses.fields(config) if "doc" in field.metadata}


def knob_values(config: Any) -> dict[str, Any]:
    """All knobs of `config` as JSON content, by name."""
    fields = knob_fields(config).items()
    return {name: field.metadata.get("plain", lambda value: value)(getattr(config, name)) for name, field in fields}


def digest(content: Any) -> str:
    """The SHA-256 of some JSON content, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checked(config: Any, name: str, value: Any) -> Any:
    """`value` in the type of knob `name`.

    Raises:
        InputError: it does not fit.
    """
    field = knob_fields(config)[name]
    if check := field.metadata.get("check"):
        check(value)
        return value
    doc, choices = field.metadata["doc"], field.metadata.get("choices")
    if choices or isinstance(field.default, str):
        if type(value) is not type(field.default) or (choices and value not in choices):
            words = f"choose one of {', '.join(map(str, choices))}" if choices else "give a quoted text"
            raise InputError(f"knob {name}={value!r}: {words} ({doc})")
        return value
    want, low, high = type(field.default), field.metadata["low"], field.metadata["high"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (want is int and value != int(value)):
        kind = "a whole number" if want is int else "a number"
        raise InputError(f"knob {name}={value!r}: give {kind} from {low:g} to {high:g} ({doc})")
    return want(value)


def named_config(configs: Sequence[Config], dataset: str, name: str) -> Config:
    """The config of that name; InputError if there is none."""
    for config in configs:
        if config.name == name:
            return config
    raise InputError(f"no {dataset} config {name!r}; there are: {', '.join(config.name for config in configs)}")


def custom_config(configs: Sequence[Config], dataset: str, base_name: str, changes: dict[str, Any]) -> Config:
    """A named config with some knobs changed.

    Args:
        configs: the named ones.
        dataset: their dataset, for messages.
        base_name: the name of one of them.
        changes: new values by knob name.

    Returns:
        The base itself if nothing differs; else a config named `<base>-<8 hex>` after the knobs that differ
        (`<base>-seed<n>` if it is `seed` alone), so that other data has another folder.

    Raises:
        InputError: there is no such config or knob, or a value does not fit.
    """
    base = named_config(configs, dataset, base_name)
    names = knob_fields(base)
    unknown = sorted(set(changes) - set(names))
    if unknown:
        raise InputError(f"no knob {unknown[0]}={changes[unknown[0]]!r}; knobs are: {', '.join(names)}")
    values = {name: checked(base, name, value) for name, value in changes.items()}
    values = {name: value for name, value in values.items() if value != getattr(base, name)}
    if not values:
        return base
    made: Any = dataclasses.replace(base, **values)
    suffix = f"seed{made.seed}" if list(values) == ["seed"] else None
    suffix = suffix or digest({name: knob_values(made)[name] for name in values})[:8]
    description = f"{base.description} Changed: {', '.join(sorted(values))}."
    return dataclasses.replace(made, name=f"{base_name}-{suffix}", description=description)


def knob_table(config: Any) -> str:
    """A Markdown table of every knob with default, range and meaning."""
    rows = ["| knob | default | range | meaning |", "|---|---|---|---|"]
    for name, field in knob_fields(config).items():
        about = field.metadata
        if "low" in about:
            default, span = f"{field.default:g}", f"{about['low']:g} .. {about['high']:g}"
        elif "shown" in about:
            default, span = f"`{about['shown']}`", ""
        else:
            default, span = f"`{field.default!r}`", ", ".join(map(str, about.get("choices", ("text",))))
        rows.append(f"| `{name}` | {default} | {span} | {about['doc']} |")
    return "\n".join(rows)
