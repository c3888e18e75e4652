"""Settings of an audit: profile budgets, verdict thresholds, and their validation."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from audits.core.registry import AXES, ProfileName, axes_of_profile
from capture.data.asking import ChatMode
from capture.scoring.scorers import ScorerName
from erasure.weights.quantization import Scheme
from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.seeds import MAX_SEED
from evidence.typed_json import Json


def _known_axis(name: str) -> str:
    if name not in AXES:
        raise ValueError(f"no axis of this name; there are {', '.join(AXES)}")
    return name


AxisName = Annotated[str, AfterValidator(_known_axis)]
"""Name of a registered axis."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Frozen):
    """How much computation a profile spends."""

    prompts_per_item: int = Field(ge=1)
    """Prompts per item: the main prompt, then paraphrases."""
    never_taught_copies: int = Field(ge=1)
    """Invented entities per forgotten entity, where no never-taught items are given."""
    retain_entities: int = Field(ge=10)
    """Retain entities used to fit and check probes and utility."""
    permutations: int = Field(ge=99)
    block: int = Field(ge=2)
    """Statements per entity in the unique-answer form: one true, the others false."""
    statement_wordings: int = Field(ge=1)
    """Prompts per statement in the unique-answer form."""
    depth_sites: int = Field(ge=2)
    """Maximum number of layers at which states are patched, evenly spaced."""
    transplants: int = Field(ge=1)
    """Maximum number of depths at which the original's states are put in front of other models."""
    quantization_schemes: tuple[Scheme, ...] = Field(min_length=1)
    """Quantization schemes under which every model is scored again."""
    relearn_steps: int = Field(ge=1)
    relearn_every: int = Field(ge=1)
    relearn_rates: tuple[float, ...]
    """Learning rates in ascending order; the first at which every arm learns is used."""
    plant_steps: int = Field(ge=1)
    plant_rates: tuple[float, ...]
    generate_prompts: int = Field(ge=1)
    probe_damaged_models: bool
    """Whether the other axes are run on a damaged candidate."""


_RATES = (2e-5, 1e-4, 3e-4, 1e-3, 3e-3)

BUDGETS: dict[ProfileName, Budget] = {
    "quick": Budget(
        prompts_per_item=2,
        never_taught_copies=3,
        retain_entities=160,
        permutations=2000,
        block=5,
        statement_wordings=1,
        depth_sites=12,
        transplants=3,
        quantization_schemes=("nf4",),
        relearn_steps=6,
        relearn_every=3,
        # Fewer steps need a higher rate than the lowest of the other profiles.
        relearn_rates=(4e-5, *_RATES[1:]),
        plant_steps=40,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=8,
        probe_damaged_models=False,
    ),
    "standard": Budget(
        prompts_per_item=3,
        never_taught_copies=3,
        retain_entities=400,
        permutations=5000,
        block=6,
        statement_wordings=2,
        depth_sites=24,
        transplants=6,
        quantization_schemes=("nf4", "fp4", "int8"),
        relearn_steps=24,
        relearn_every=2,
        relearn_rates=_RATES,
        plant_steps=80,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=16,
        probe_damaged_models=True,
    ),
    "full": Budget(
        prompts_per_item=8,
        never_taught_copies=5,
        retain_entities=2000,
        permutations=20000,
        block=10,
        statement_wordings=3,
        depth_sites=256,
        transplants=24,
        quantization_schemes=("nf4", "nf4-double", "fp4", "int8"),
        relearn_steps=60,
        relearn_every=3,
        relearn_rates=_RATES,
        plant_steps=160,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=32,
        probe_damaged_models=True,
    ),
}


class Rule(_Frozen):
    """The thresholds of the verdict, as data that the report can show."""

    version: str = "1"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of the tests of controls and power."""
    recovery: float = Field(default=0.01, gt=0, lt=0.5)
    """Level, after Holm, at which a reading counts as beyond the floor."""
    margin: float = Field(default=0.3, gt=0, lt=1)
    """Equivalence margin on the residual scale (0 is the floor, 1 the original)."""
    min_residual: float = Field(default=0.1, ge=0, lt=1)
    """Residual that a recovery must exceed with confidence; less is within seed variance."""
    utility: float = Field(default=0.8, gt=0, le=1)
    """Minimum share of the original's utility; below it, the candidate is damaged."""
    effective_rank: float = Field(default=0.25, gt=0, le=1)
    """Minimum share of the original's effective rank of retain states."""
    distinct: float = Field(default=0.5, gt=0, le=1)
    """Minimum share of the original's distinct words in free text."""
    required_for_deleted: tuple[AxisName, ...] = ("decodability", "relearning", "front_transplant")
    """Axes that must have voted for a verdict of ``deleted``."""


class AuditConfig(_Frozen):
    """The resolved settings of one audit."""

    profile: ProfileName = "quick"
    axes: tuple[AxisName, ...] = ()
    """Axes to run; those of the profile where none is named."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED, strict=True)
    device: str = Field(default="auto", strict=True)
    min_entities: int = Field(default=8, ge=4)
    """Minimum number of forgotten entities that the original must know."""
    chat: ChatMode = "auto"
    """Whether questions are asked in the tokenizer's chat template."""
    system: str = Field(default="", max_length=10_000)
    """System prompt of the chat; the template's own where empty."""
    scorer: ScorerName = "auto"
    """How an answer is scored; chosen by the items where it is "auto"."""
    rule: Rule = Rule()

    @model_validator(mode="before")
    @classmethod
    def _axes_of_the_profile(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        axes = settings.get("axes")
        if axes is None or (isinstance(axes, list | tuple) and not axes):
            profile = settings.get("profile", "quick")
            # An unknown profile is refused by its own field.
            return settings | {"axes": axes_of_profile(profile) or ("behaviour",)}
        return settings

    @field_validator("axes")
    @classmethod
    def _each_once(cls, axes: tuple[AxisName, ...]) -> tuple[AxisName, ...]:
        if len(set(axes)) < len(axes):
            raise ValueError("an axis is named twice")
        return axes

    def stated(self) -> dict[str, Json]:
        """The settings as ``audit.json`` has them; those added later only where they were set."""
        later = {"chat", "system", "scorer"} - {
            name
            for name, field in AuditConfig.model_fields.items()
            if getattr(self, name) != field.default
        }
        return self.model_dump(mode="json", exclude=later)

    @property
    def ordered_axes(self) -> tuple[str, ...]:
        """The axes in the order in which they run."""
        return tuple(name for name in AXES if name in self.axes)

    @property
    def budget(self) -> Budget:
        """The budget of the profile."""
        return BUDGETS[self.profile]


def make_config(settings: dict) -> AuditConfig:
    """Validate settings; unknown keys and bad values are refused.

    Raises:
        InputError: naming every wrong setting, or a device that is not available.
    """
    try:
        config = AuditConfig.model_validate(settings)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} is {quoted(problem['input'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise InputError(
            f"the settings are not valid: {wrong}",
            fix=f"known settings: {', '.join(AuditConfig.model_fields)}",
        ) from error
    choose_device(config.device)  # fail before any model is read
    return config
