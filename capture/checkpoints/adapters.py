"""Validation of PEFT adapter settings before PEFT reads them.

Depending on its settings, PEFT imports modules, opens folders, downloads models, prompts for
running code, and matches patterns of any cost. Therefore only adapters that change weights are
supported, only the fields that describe this change are passed on, and patterns are resolved to
plain names.
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
from evidence.typed_json import Json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMIT = 1 << 20
KINDS = ("LORA", "IA3")
# Kinds that cannot be merged into the weights of a base.
PROMPT_KINDS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
    *("ADAPTION_PROMPT", "CPT"),
)

Name = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
"""A module's name or a suffix of it."""
Names = Annotated[list[Name], Field(max_length=10_000)]
Pattern = Annotated[str, Field(min_length=1, max_length=4_000)]
Rank = Annotated[int, Field(strict=True, ge=1, le=65_536)]
Alpha = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Block = Annotated[int, Field(strict=True, ge=0, le=65_536)]
Blocks = Annotated[list[Block], Field(max_length=65_536)]


class AdapterSettings(BaseModel):
    """Settings common to all kinds of adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_modules: Names | Pattern | None = None
    exclude_modules: Names | Pattern | None = None
    modules_to_save: Names | None = None
    fan_in_fan_out: StrictBool = False


class LoraSettings(AdapterSettings):
    """LoRA, with DoRA and rank-stabilized scaling."""

    r: Rank = 8
    lora_alpha: Alpha = 8
    lora_dropout: Share = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: StrictBool = False
    use_dora: StrictBool = False
    lora_bias: StrictBool = False
    # Other values change the weights of the base.
    init_lora_weights: StrictBool | Literal["gaussian", "eva", "orthogonal"] = True
    layers_to_transform: Block | Blocks | None = None
    layers_pattern: Name | Names | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=10_000)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=10_000)] = {}


class Ia3Settings(AdapterSettings):
    """IA3: learned scaling of activations."""

    feedforward_modules: Names | Pattern | None = None
    init_ia3_weights: StrictBool = True


SETTINGS: dict[str, type[AdapterSettings]] = {"LORA": LoraSettings, "IA3": Ia3Settings}
# Fields without effect on the weights, with their allowed values; not passed on.
_IGNORED_FIELDS = {
    "peft_type": re.compile("LORA|IA3"),
    "peft_version": re.compile(r"[\w.+@-]{0,100}"),
    "base_model_name_or_path": re.compile(r"(?s).{0,4096}"),
    "revision": re.compile(r"(?s).{0,256}"),
    "task_type": re.compile("CAUSAL_LM|FEATURE_EXTRACTION"),
    "megatron_core": re.compile(r"megatron\.core"),
    "inference_mode": re.compile("True|False"),
    "qalora_group_size": re.compile(r"\d{1,9}"),
}


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ({}, [])


def read_adapter(folder: Path) -> tuple[AdapterSettings, Mapping[str, Json]]:
    """The validated settings of an adapter, and the whole content of its file.

    Raises:
        InputError: an unsupported kind of adapter, or an unsupported setting.
    """
    path = folder / CONFIG
    raw = read_json(path, max_bytes=LIMIT, max_depth=6)
    kind = raw.get("peft_type")
    if kind in PROMPT_KINDS:
        raise InputError(
            f"{path} is an unsupported kind of adapter: it learns states put before or into a "
            "text, not a change of weights",
            expected="LORA (with DoRA or rsLoRA) or IA3",
            got=repr(kind),
            fix="Unlearn with an adapter that can be merged into the weights",
        )
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise InputError(
            f"{path} is an unsupported kind of adapter",
            expected="LORA (with DoRA or rsLoRA) or IA3",
            got=repr(kind)[:120],
            fix="Merge the adapter into its base where you trust it, and pass the whole model",
        )
    remaining = {**raw}
    if raw.get("init_lora_weights") == "eva":
        remaining.pop("eva_config", None)  # initialization only
    _check_origin(remaining.pop("auto_mapping", None), path)
    fields = {}
    for name, value in remaining.items():
        if name in SETTINGS[kind].model_fields:
            fields[name] = value
        elif name in _IGNORED_FIELDS:
            if value is not None and not (
                isinstance(value, str | bool | int) and _IGNORED_FIELDS[name].fullmatch(str(value))
            ):
                raise _unsupported(path, name, value)
        elif not _is_unset(value):
            raise _unsupported(path, name, value)
    try:
        return SETTINGS[kind].model_validate(fields), raw
    except ValidationError as error:
        field, problem, got = first_error(error)
        raise _unsupported(path, f"{field} ({problem})", got) from error


def _check_origin(auto_mapping: Any, path: Path) -> None:
    """Check the library of the base's class, which is never imported."""
    library = auto_mapping.get("parent_library") if isinstance(auto_mapping, dict) else auto_mapping
    if auto_mapping is not None and not re.fullmatch(
        r"(transformers|peft)(\.\w+){0,8}", str(library)
    ):
        raise _unsupported(path, "auto_mapping", auto_mapping)


def _unsupported(path: Path, name: str, got: Any) -> InputError:
    return InputError(
        f"{path} has an unsupported setting: {name}",
        expected="settings that describe a change of weights",
        got=repr(got)[:120],
        fix="Merge the adapter into its base where you trust it, and pass the whole model",
    )


def resolve_patterns(
    settings: AdapterSettings, modules: Iterable[str], folder: Path
) -> dict[str, Any]:
    """Replace every pattern in the settings by the module names that it matches.

    Args:
        modules: Names of the base's modules.
        folder: The adapter's folder, for error messages.

    Returns:
        Arguments of PEFT's configuration, without patterns.

    Raises:
        InputError: a pattern is invalid or takes too long to match.
    """
    names = [name for name in modules if name]
    matcher = _TimedMatcher(folder)
    options = settings.model_dump()
    for field in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = options.get(field)
        if isinstance(value, str) and value.lower() != "all-linear":
            options[field] = [name for name in names if matcher.matches(value, name)]
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := options.get(field):
            # PEFT uses the first suffix that matches, so longer names come first.
            order = sorted(names, key=len, reverse=True)
            options[field] = _by_name(patterns, order, matcher)
    return options


def _by_name(
    patterns: Mapping[str, int | float], names: Iterable[str], matcher: "_TimedMatcher"
) -> dict[str, int | float]:
    """Name to the value of the first pattern that matches a suffix of the name."""
    chosen = {}
    for name in names:
        for pattern, value in patterns.items():
            if matcher.matches_end(pattern, name):
                chosen[re.escape(name)] = value
                break
    return chosen


class _TimedMatcher:
    """Matches untrusted patterns within a total time budget."""

    def __init__(self, place: Path, seconds: float = 3.0):
        self.place, self.seconds_left = place, seconds
        self.known: set[str] = set()
        self.plain = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

    def matches_end(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches the last components of ``name``."""
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
            # Python's own engine has no timeout.
            return bool(regex.fullmatch(pattern, name, timeout=max(self.seconds_left, 1e-3)))
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
            self.seconds_left -= perf_counter() - start
