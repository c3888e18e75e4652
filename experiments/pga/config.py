"""Settings of ``exhume pga``, from YAML or from keyword arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.seeds import MAX_SEED
from evidence.storage.regular_files import as_path
from evidence.storage.strict_yaml import read_yaml
from evidence.typed_json import Json
from experiments.pga.erasers import ERASERS


class PgaExperiment(BaseModel):
    """Settings of an experiment; the fields of its YAML file.

    Attributes:
        size: Of the world, one of ``testbeds.memorized_codes.config.SIZES``.
        seed: Of the world and of every random choice.
        erasers: Some of ``experiments.pga.erasers.ERASERS``.
        epochs: Of the alignments; the preset's where null.
        align_weight: Of the alignments; the preset's where null.
        fixed_clean: Use one draw of the clean codes for the alignments' whole training.
        erase_share: Share of the keys that the held-out run's eraser sees.
        folds: Of the held-out protocol.
        permutations: Of its null distribution.
        margin: Equivalence margin on |AUC - 0.5|, for the claim "removes the signature".
        random_inits: Number of untrained networks.
        six_probes: Also run the six published probe variants, which take minutes.
        trained_readers: Also run the trained classifiers of
            ``probes.estimators.classifier_battery``, which take minutes. They are too slow for
            a permutation test: their best AUC is compared with their best on the twin and on
            untrained networks.
        device: Where models are trained and run: ``"auto"``, ``"cpu"``, ``"cuda"`` or
            ``"mps"``. Probes are fitted on the CPU, which is faster at these sizes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    size: Literal["small", "published", "medium", "large", "forty", "two_hundred"] = "small"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    erasers: tuple[str, ...] = Field(
        ("pga", "isotropic", "md-pga", "gradient ascent"), min_length=1, strict=False
    )
    epochs: int | None = Field(None, ge=1, le=1_000_000)
    align_weight: float | None = Field(None, ge=0, le=1e9)
    fixed_clean: bool = False
    erase_share: float = Field(0.5, gt=0, lt=1)
    folds: int = Field(5, ge=2, le=1000)
    permutations: int = Field(999, ge=19, le=1_000_000)
    margin: float = Field(0.2, gt=0, lt=0.5)
    random_inits: int = Field(10, ge=1, le=10_000)
    six_probes: bool = False
    trained_readers: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"


def read_config(path: Path | str) -> PgaExperiment:
    """Read settings from a YAML file.

    Raises:
        InputError: no such file, invalid YAML, unknown or invalid settings.
    """
    file = as_path(path, "the file of settings")
    settings = read_yaml(file)
    if settings is not None and not isinstance(settings, dict):
        raise InputError(
            f"{file} does not hold settings",
            expected="lines such as 'size: small'",
            got=type(settings).__name__,
        )
    return make_config(settings or {}, str(file))


def make_config(settings: Mapping[str, Json], where: str = "the experiment") -> PgaExperiment:
    """Validate settings.

    Raises:
        InputError: naming the first invalid setting.
    """
    try:
        config = PgaExperiment.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "something"
        raise InputError(
            f"{name} of {where} cannot be used",
            expected=first["msg"],
            got=quoted(first.get("input")),
            fix=f"Settings are {', '.join(PgaExperiment.model_fields)}",
        ) from error
    for name in config.erasers:
        if name not in ERASERS or config.erasers.count(name) > 1:
            raise InputError(
                f"there is no eraser {name!r}"
                if name not in ERASERS
                else f"the eraser {name!r} is named twice",
                expected=", ".join(ERASERS),
            )
    return config


def resolved(config: PgaExperiment) -> PgaExperiment:
    """The settings with ``"auto"`` replaced by an actual device.

    Raises:
        InputError: this machine or this PyTorch has no such device.
    """
    device = choose_device(config.device)
    return config.model_copy(update={"device": device})
