"""What an audit does, resolved once and written into its result."""

from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from erasure.weights.quantization import Scheme
from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.seeds import MAX_SEED

ProfileName = Literal["quick", "standard", "full"]
AxisName = Literal[
    "behaviour",
    "decodability",
    "causal_depth",
    "persistence",
    "relearning",
    "concept",
    "restoration",
    "circuit",
    "membership",
]
AXES: tuple[AxisName, ...] = get_args(AxisName)
QUICK_AXES: tuple[AxisName, ...] = (
    "behaviour",
    "decodability",
    "causal_depth",
    "relearning",
)
# What a profile runs when no axes are named: asking anew under several quantisations
# takes longer than all that the quick one does. Of the axes left out everywhere,
# concept and restoration changed no verdict where they were measured, and the others
# have no measured error rates.
DEFAULT_AXES: dict[ProfileName, tuple[AxisName, ...]] = {
    "quick": QUICK_AXES,
    "standard": (*QUICK_AXES, "persistence"),
    "full": (*QUICK_AXES, "persistence"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Frozen):
    """How much of everything a profile spends."""

    prompts_per_item: int = Field(ge=1)
    """Prompts asked an item: its own, then its paraphrases."""
    never_taught_copies: int = Field(ge=1)
    """Invented entities for each forgotten one, where none are given."""
    retain_entities: int = Field(ge=10)
    """Retain entities used to fit and check probes and utility."""
    permutations: int = Field(ge=99)
    block: int = Field(ge=2)
    """Statements an entity in the unique-answer form: one true, the rest false."""
    statement_wordings: int = Field(ge=1)
    """Wordings a statement is built from in the unique-answer form."""
    depth_sites: int = Field(ge=2)
    """Layers at which states are put into the original, evenly spaced."""
    quantisations: tuple[Scheme, ...] = Field(min_length=1)
    """Schemes under which the candidate is asked again."""
    relearn_steps: int = Field(ge=1)
    relearn_every: int = Field(ge=1)
    relearn_rates: tuple[float, ...]
    """Learning rates tried, ascending; the least at which every arm learns is used."""
    plant_steps: int = Field(ge=1)
    plant_rates: tuple[float, ...]
    generate_prompts: int = Field(ge=1)
    look_inside_damage: bool
    """Whether a candidate found damaged is probed and retrained all the same."""


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
        quantisations=("nf4",),
        relearn_steps=6,
        relearn_every=3,
        # Fewer steps need a higher rate than the other profiles start from.
        relearn_rates=(4e-5, *_RATES[1:]),
        plant_steps=40,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=8,
        look_inside_damage=False,
    ),
    "standard": Budget(
        prompts_per_item=3,
        never_taught_copies=3,
        retain_entities=400,
        permutations=5000,
        block=6,
        statement_wordings=2,
        depth_sites=24,
        quantisations=("nf4", "fp4", "int8"),
        relearn_steps=24,
        relearn_every=2,
        relearn_rates=_RATES,
        plant_steps=80,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=16,
        look_inside_damage=True,
    ),
    "full": Budget(
        prompts_per_item=8,
        never_taught_copies=5,
        retain_entities=2000,
        permutations=20000,
        block=10,
        statement_wordings=3,
        depth_sites=256,
        quantisations=("nf4", "nf4-double", "fp4", "int8"),
        relearn_steps=60,
        relearn_every=3,
        relearn_rates=_RATES,
        plant_steps=160,
        plant_rates=(1e-3, 3e-3),
        generate_prompts=32,
        look_inside_damage=True,
    ),
}


class Rule(_Frozen):
    """The thresholds of the verdict. Data, so that a report can show them."""

    version: str = "1"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of the tests of controls and of power."""
    recovery: float = Field(default=0.01, gt=0, lt=0.5)
    """Level, after Holm, at which a reading counts as beyond the floor."""
    margin: float = Field(default=0.3, gt=0, lt=1)
    """Equivalence margin on the residual scale (0 never knew, 1 knows)."""
    still_there: float = Field(default=0.1, ge=0, lt=1)
    """What a residual must surely exceed to count: less is a seed's luck."""
    utility: float = Field(default=0.8, gt=0, le=1)
    """Least share of the original's utility that is not damage."""
    effective_rank: float = Field(default=0.25, gt=0, le=1)
    """Least share of the original's effective rank on retain states."""
    distinct: float = Field(default=0.5, gt=0, le=1)
    """Least share of the original's distinct tokens in free generations."""
    required_for_deleted: tuple[AxisName, ...] = ("decodability", "relearning")
    """Axes that must have voted before ``deleted`` may be said."""


class AuditConfig(_Frozen):
    """The resolved settings of one audit."""

    profile: ProfileName = "quick"
    axes: tuple[AxisName, ...] = ()
    """Which axes to run; those of the profile where none is named."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED, strict=True)
    device: str = Field(default="auto", strict=True)
    min_entities: int = Field(default=8, ge=4)
    """Fewest forgotten entities that the original must know."""
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
            usual = (axes for name, axes in DEFAULT_AXES.items() if name == profile)
            return settings | {"axes": next(usual, QUICK_AXES)}
        return settings

    @field_validator("axes")
    @classmethod
    def _each_once(cls, axes: tuple[AxisName, ...]) -> tuple[AxisName, ...]:
        if len(set(axes)) < len(axes):
            raise ValueError("an axis is named twice")
        return axes

    @property
    def budget(self) -> Budget:
        """What the profile spends."""
        return BUDGETS[self.profile]


def make_config(settings: dict) -> AuditConfig:
    """Validate settings; unknown keys and bad values are refused.

    Raises:
        InputError: naming every setting that is wrong, or the device is not here.
    """
    try:
        config = AuditConfig.model_validate(settings)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))} is {quoted(each['input'])}: "
            f"{each['msg']}"
            for each in error.errors()
        )
        raise InputError(
            f"the settings are not valid: {wrong}",
            fix=f"known settings: {', '.join(AuditConfig.model_fields)}",
        ) from error
    choose_device(config.device)  # Sooner than the models are read.
    return config
