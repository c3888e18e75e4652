"""What differs between kinds of data: how inputs are opened, scored and suppressed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from audits.core.baseline_scores import RoleBaseline
from audits.core.config import AuditConfig
from audits.core.context import RunOf
from audits.core.cost import Amount
from audits.core.inputs import InputsOf
from audits.core.registry import ModalityName
from audits.core.roles import Role
from audits.core.scores import Part
from audits.modalities.planting import Planted
from audits.modalities.vocabulary import Vocabulary
from audits.output.workspace import StageRunner
from capture.checkpoints.weight_change import ComponentChange
from evidence.progress import Progress
from evidence.typed_json import Json

Sets = TypeVar("Sets")


@dataclass(frozen=True)
class Sources:
    """The inputs of an audit, as they were given.

    Attributes:
        original: The model before unlearning.
        unlearned: The candidate.
        forget: What should be gone.
        retain: What should still be known.
        references: Models retrained without the forget set.
        never_taught: What no model saw, or None to invent it.
        tokenizer: For live models, which rarely have one attached.
        columns: Field of an item to column of the files, for files in no known format.
        base: The model that adapters among the models were trained on, in place of the ones they
            name.
    """

    original: Any
    unlearned: Any
    forget: Any
    retain: Any
    references: Sequence[Any] = ()
    never_taught: Any = None
    tokenizer: Any = None
    columns: Mapping[str, str] | None = None
    base: Any = None


@dataclass(frozen=True)
class Modality(Generic[Sets]):
    """One kind of data.

    Attributes:
        name: Its name in ``audit.json``.
        vocabulary: Words of the verdict's sentences.
        serves: Whether a source of items is of this kind.
        open_inputs: Opens and checks inputs; runs no model.
        select: Chooses what the original knows, and never-taught items; the stage
            "original".
        score_baseline: Scores one model at the output.
        check_swapped: Refuses sets that the candidate's scores show to be swapped.
        plant: Plants a known suppression in the original.
        edit_shape: Geometry of the weight change by component; None where none is
            measured.
        counts: Numbers of items and entities, for ``audit.json``.
        amounts: Rows and units (tokens or images) of every part, with a number of
            prompts.
        work: Floating-point operations of a forward pass over one unit, from the inputs
            and the number of parameters.
        unit: Plural noun of the unit.
        spoken: Upper bound of the units that one model says, where it is asked to speak.
        floor: Name of the floor where there are no references.
        asking: How items were asked and answers scored, for ``audit.json``; empty by default.
        calibrated: Whether the probabilities of the verdict were calibrated on such
            models.
    """

    name: ModalityName
    vocabulary: Vocabulary
    serves: Callable[[Any], bool]
    open_inputs: Callable[[Sources, AuditConfig, Progress], InputsOf[Any]]
    select: Callable[[RunOf[Any], StageRunner], Sets]
    score_baseline: Callable[[RunOf[Any], Role, Sets], RoleBaseline]
    check_swapped: Callable[[RunOf[Any], Sets, Mapping[Role, RoleBaseline]], None]
    plant: Callable[[RunOf[Any], Sets], Planted]
    counts: Callable[[InputsOf[Any], Sets], dict[str, int]]
    amounts: Callable[[InputsOf[Any], AuditConfig, int], dict[Part, Amount]]
    work: Callable[[InputsOf[Any], int], float]
    unit: str
    edit_shape: Callable[[RunOf[Any], Sets, Sequence[str]], tuple[ComponentChange, ...]] | None = (
        None
    )
    spoken: Callable[[InputsOf[Any], AuditConfig, Mapping[Part, Amount]], int] = (
        lambda inputs, config, amounts: 0
    )
    floor: Callable[[Sets], str] = lambda sets: "never_taught"
    asking: Callable[[RunOf[Any], Sets], dict[str, Json]] = lambda run, sets: {}
    calibrated: bool = False
