"""PEFT adapters: which kinds and settings are taken, checked before PEFT sees them.

PEFT imports modules, opens folders, downloads models, asks whether to run code and
matches patterns of any cost, wherever a setting says so. So only adapters whose whole
effect is a change of weights are taken, of the fields that describe that change alone,
and what was matched by patterns arrives at PEFT as a list of plain names.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from capture.checkpoints.schemas.patterns import PatternError, analyze_pattern
from capture.checkpoints.schemas.schema_errors import first_error
from evidence.errors import InputError
from evidence.storage.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMIT = 1 << 20
KINDS = ("LORA", "IA3")

Name = Annotated[
    str, Field(max_length=256, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
]
"""A module's name, or its end."""
Names = Annotated[list[Name], Field(max_length=10_000)]
Pattern = Annotated[str, Field(min_length=1, max_length=4_000)]
Rank = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Alpha = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Block = Annotated[int, Field(strict=True, ge=0, le=65_536)]
Blocks = Annotated[list[Block], Field(max_length=65_536)]


class AdapterSettings(BaseModel):
    """What both kinds of adapter say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_modules: Names | Pattern | None = None
    exclude_modules: Names | Pattern | None = None
    modules_to_save: Names | None = None
    fan_in_fan_out: StrictBool = False


class LoraSettings(AdapterSettings):
    """LoRA, with DoRA and rank-stabilised scaling."""

    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Share = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    lora_bias: StrictBool = False
    # The others change the base's weights, by a computation that the file asks for.
    init_lora_weights: StrictBool | Literal["gaussian", "eva", "orthogonal"] = True
    layers_to_transform: Block | Blocks | None = None
    layers_pattern: Name | Names | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=10_000)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=10_000)] = {}


class Ia3Settings(AdapterSettings):
    """IA3: learned factors on activations."""

    feedforward_modules: Names | Pattern | None = None
    init_ia3_weights: StrictBool = True


SETTINGS: dict[str, type[AdapterSettings]] = {"LORA": LoraSettings, "IA3": Ia3Settings}
# Fields that say nothing of the weights, and what they may hold; they go nowhere.
_BESIDE = {
    "peft_type": re.compile("LORA|IA3"),
    "peft_version": re.compile(r"[\w.+@-]{0,100}"),
    "base_model_name_or_path": re.compile(r"(?s).{0,4096}"),
    "revision": re.compile(r"(?s).{0,256}"),
    "task_type": re.compile("CAUSAL_LM|FEATURE_EXTRACTION"),
    "megatron_core": re.compile(r"megatron\.core"),
    "inference_mode": re.compile("True|False"),
    "qalora_group_size": re.compile(r"\d{1,9}"),
}


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


def read_adapter(folder: Path) -> tuple[AdapterSettings, dict[str, Any]]:
    """The settings of an adapter, and all that its file holds.

    Raises:
        InputError: an adapter of another kind, or one with a setting that is not known
            to change weights alone.
    """
    place = folder / CONFIG
    said = read_json(place, max_bytes=LIMIT, max_depth=6)
    kind = said.get("peft_type")
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise InputError(
            f"{place} is of a kind of adapter that is not opened",
            expected="LORA (with DoRA or rsLoRA) or IA3",
            got=repr(kind)[:120],
            fix="Merge the adapter into its base where you trust it, and pass the "
            "whole model",
        )
    ours = {**said}
    if said.get("init_lora_weights") == "eva":
        ours.pop("eva_config", None)  # how the weights began is in the weights
    _check_origin(ours.pop("auto_mapping", None), place)
    kept = {}
    for name, value in ours.items():
        if name in SETTINGS[kind].model_fields:
            kept[name] = value
        elif name in _BESIDE:
            if value is not None and not (
                isinstance(value, str | bool | int)
                and _BESIDE[name].fullmatch(str(value))
            ):
                raise _not_taken(place, name, value)
        elif not _is_off(value):
            raise _not_taken(place, name, value)
    try:
        return SETTINGS[kind].model_validate(kept), said
    except ValidationError as error:
        field, trouble, got = first_error(error)
        raise _not_taken(place, f"{field} ({trouble})", got) from error


def _check_origin(said: Any, place: Path) -> None:
    """Where the class of the base comes from; it is read, never imported."""
    library = said.get("parent_library") if isinstance(said, dict) else said
    if said is not None and not re.fullmatch(
        r"(transformers|peft)(\.\w+){0,8}", str(library)
    ):
        raise _not_taken(place, "auto_mapping", said)


def _not_taken(place: Path, name: str, got: Any) -> InputError:
    return InputError(
        f"{place} has a setting that is not taken: {name}",
        expected="one that describes a change of weights",
        got=repr(got)[:120],
        fix="Merge the adapter into its base where you trust it, and pass the whole "
        "model",
    )


def resolve_patterns(
    settings: AdapterSettings, modules: Iterable[str], place: Path
) -> dict[str, Any]:
    """The settings with every pattern replaced by the names it matches.

    Args:
        settings: What the adapter's file says.
        modules: Names of the base's modules.
        place: The adapter's folder, for errors.

    Returns:
        Arguments of PEFT's configuration, in plain names alone.

    Raises:
        InputError: a pattern is none, or takes too long.
    """
    names = [name for name in modules if name]
    watch = _Stopwatch(place)
    found = settings.model_dump()
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = found.get(field)
        if isinstance(value, str) and value.lower() != "all-linear":
            found[field] = [name for name in names if watch.matches(value, name)]
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := found.get(field):
            # A name that ends in another one must come before it.
            order = sorted(names, key=len, reverse=True)
            found[field] = _by_name(patterns, order, watch)
    return found


def _by_name(
    patterns: Mapping[str, Any], names: Iterable[str], watch: "_Stopwatch"
) -> dict[str, Any]:
    """The value of the first pattern that matches the end of each name."""
    chosen = {}
    for name in names:
        for pattern, value in patterns.items():
            if watch.ends(pattern, name):
                chosen[re.escape(name)] = value
                break
    return chosen


class _Stopwatch:
    """Matches patterns from a file, for no more than a few seconds in all."""

    def __init__(self, place: Path, seconds: float = 3.0):
        self.place, self.left = place, seconds
        self.known: set[str] = set()
        self.plain = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

    def ends(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches the last parts of ``name``."""
        if self.plain.fullmatch(pattern):
            return name == pattern or name.endswith(f".{pattern}")
        return self.matches(rf"(.*\.)?({pattern})", name)

    def matches(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches the whole of ``name``."""
        import regex

        start = perf_counter()
        try:
            if pattern not in self.known:
                analyze_pattern(pattern, nested_classes=False)
                self.known.add(pattern)
            # Python's own engine cannot be stopped.
            return bool(regex.fullmatch(pattern, name, timeout=max(self.left, 1e-3)))
        except TimeoutError as error:
            raise InputError(
                f"{self.place / CONFIG} has a pattern that takes too long to match",
                expected="names of modules, or a simple pattern",
                got=pattern[:120],
            ) from error
        except (PatternError, regex.error) as error:
            raise InputError(
                f"{self.place / CONFIG} has a pattern that cannot be used ({error})",
                expected="names of modules, or a simple pattern",
                got=pattern[:120],
            ) from error
        finally:
            self.left -= perf_counter() - start
