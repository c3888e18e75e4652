"""The published state-injection test, with the controls it lacks.

Wherever the true answer is a forgotten one, the original's state replaces the candidate's at
the last prompt token. At earlier tokens, the difference of the original's state is injected
along the latents of that answer. The knowledge is supplied from outside and selected by the
true answer, so a restoration shows that the candidate's later layers still read the original's
representation, not that the candidate holds anything. The test is reported and never votes.

After arXiv 2602.18505; here the last prompt token takes the part of the class token, and
earlier tokens that of the patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribution.patching.steering import RowEdit, score_edited
from attribution.sae.latents import decode_difference, draw_control_latents, match_norms
from audits.axes.restoration.autoencoder import AnswerAutoencoder, states_by_prompt
from audits.axes.restoration.net_rate import MIN_LOST
from audits.axes.restoration.text_steering import EncodedQuestions, permuted_donors
from audits.core.context import AuditedModel
from capture.network.sites import find_sites
from evidence.intervals import average_by_entity, rate_interval
from evidence.seeds import numpy_rng

ALPHAS = (1.0, 5.0, 10.0)
PUBLISHED, STATE = "as published", "state only"
ARMS = (
    PUBLISHED,
    STATE,
    "latents only",
    "random latents",
    "other answers' latents",
    "other items' states",
)
CONTROLS = ARMS[3:]
"""Arms without information about the item: as many random latents, another answer's latents,
another item's states."""
STATE_ARMS = (PUBLISHED, STATE, ARMS[5])
UNTRAINED = "never-trained"


def untrained_model(original: AuditedModel, seed: int) -> AuditedModel | None:
    """A model of the same architecture with random, untrained weights.

    Returns:
        None where the model class cannot be made from a configuration.
    """

    def load(device: str) -> nn.Module:
        model = original.load(device)
        kind, config = type(model), getattr(model, "config", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = kind(config)
        return made.to(device).eval()

    try:
        load("cpu")
    except (TypeError, ValueError, AttributeError):
        return None
    return AuditedModel(UNTRAINED, f"{original.weights_hash}+drawn{seed}", original.config, load)


def inject_states(
    original: AuditedModel,
    models: Mapping[str, AuditedModel],
    questions: EncodedQuestions,
    autoencoder: AnswerAutoencoder | None,
    site: str,
    seed: int,
    *,
    device: str,
) -> dict[str, Any]:
    """Run the published test on every model; JSON-ready.

    Args:
        original: Model whose states are injected.
        models: Models to restore, by role.
        questions: The forget questions; their true answers select the injection.
        autoencoder: Autoencoder of the original; without one, only whole states are injected. As
            published, its fit to the other models is not checked here.
        site: Site where there is no autoencoder.
        seed: Of random latents and permuted items.

    Returns:
        ``site``, ``alphas``, ``latents`` (mean number per answer), and by role and arm ``said``
        (exact match by alpha), ``rate`` (share of the lost answers restored, by alpha; None
        where nothing was lost), ``best`` (largest rate) and ``interval`` of the exact match at
        the best alpha.
    """
    injection_site = autoencoder.sae.site if autoencoder is not None else site
    with original.loaded(device) as model:
        given = states_by_prompt(model, questions.rows, injection_site)
        original_match = _said(model, questions, {}).mean()
    result: dict[str, Any] = {"site": injection_site, "alphas": list(ALPHAS), "roles": {}}
    if autoencoder is not None:
        counts = [len(latents) for latents in autoencoder.experts.values()]
        result["latents"] = float(np.mean(counts))
    for role, audited in models.items():
        with audited.loaded(device) as model:
            before = _said(model, questions, {})
            result["roles"][role] = {
                "before": float(before.mean()),
                "arms": _arms(
                    model,
                    questions,
                    given,
                    autoencoder,
                    injection_site,
                    seed,
                    original_match,
                    before,
                ),
            }
    return result


def _arms(
    model: nn.Module,
    questions: EncodedQuestions,
    original_states: list[NDArray[np.float32]],
    autoencoder: AnswerAutoencoder | None,
    site: str,
    seed: int,
    original_match: float,
    before: NDArray,
) -> dict[str, Any]:
    """Every arm that can be run on one model, at all strengths."""
    lost_share = float(original_match - before.mean())
    table: dict[str, Any] = {}
    for arm in ARMS if autoencoder is not None else (STATE, ARMS[5]):
        matches = [
            _said(
                model,
                questions,
                {site: injection_edit(arm, questions, original_states, autoencoder, alpha, seed)},
            )
            for alpha in ALPHAS
        ]
        match_rates = [float(match.mean()) for match in matches]
        rates = None
        if lost_share >= MIN_LOST:
            rates = [(share - float(before.mean())) / lost_share for share in match_rates]
        best_rate = None if rates is None else max(rates)
        table[arm] = {"said": match_rates, "rate": rates, "best": best_rate}
        best = matches[int(np.argmax(match_rates))]
        interval = rate_interval(average_by_entity(best, questions.questions.entities))
        table[arm]["interval"] = list(interval)
    return table


def injection_edit(
    arm: str,
    questions: EncodedQuestions,
    original_states: Sequence[NDArray[np.float32]],
    autoencoder: AnswerAutoencoder | None,
    alpha: float,
    seed: int,
) -> RowEdit:
    """The edit of whole prompts (row, position, d) of one arm.

    Args:
        arm: One of ``ARMS``.
        original_states: (row,) the original's states (position, d) of each prompt.
        autoencoder: The autoencoder; arms of whole states need none.
        alpha: Strength; 1 replaces the state entirely.
        seed: Of random latents and permuted items.
    """
    rng = numpy_rng(seed, "readout", arm)
    classes = [str(name) for name in questions.classes]
    source = list(range(len(classes)))
    if arm == ARMS[5]:
        source = permuted_donors(questions, rng).tolist()
    chosen = _latents_of(arm, autoencoder, rng)

    def edit(states: Tensor, rows: NDArray) -> Tensor:
        out = states.clone()
        for index, row in enumerate(rows):
            state = states[index]
            delta = _aligned(original_states[source[row]], state) - state
            change = torch.zeros_like(delta)
            if autoencoder is not None and classes[row] in chosen:
                change = decode_difference(autoencoder.sae, delta, chosen[classes[row]])
                if arm in ARMS[3:5]:
                    model = decode_difference(
                        autoencoder.sae, delta, autoencoder.experts[classes[row]]
                    )
                    change = match_norms(change, model)
            if arm in STATE_ARMS:
                # The published test copies the last state without decoding.
                change[-1] = delta[-1]
            out[index] = state + alpha * change
        return out

    return edit


def _latents_of(
    arm: str, autoencoder: AnswerAutoencoder | None, rng: np.random.Generator
) -> Mapping[str, NDArray[np.int64]]:
    """Class to the latents that an arm injects."""
    if autoencoder is None or arm == STATE:
        return {}
    experts = autoencoder.experts
    if arm == ARMS[3]:
        return {name: draw_control_latents(autoencoder.sae, e, rng) for name, e in experts.items()}
    if arm != ARMS[4]:
        return experts
    permuted = {}
    for name in experts:
        # Class names are relation, separator, answer.
        relation = name.split("\x1f")[0] + "\x1f"
        same = [e for e in experts if e != name and e.startswith(relation)]
        if same:
            permuted[name] = experts[same[rng.integers(len(same))]]
    return permuted


def _aligned(donor_states: NDArray[np.float32], states: Tensor) -> Tensor:
    """Another prompt's states, aligned at the end; the prompt's own where it has none."""
    out = states.clone()
    length = min(len(donor_states), len(states))
    out[len(states) - length :] = torch.from_numpy(donor_states[len(donor_states) - length :]).to(
        states
    )
    return out


def _said(
    model: nn.Module, questions: EncodedQuestions, edits: Mapping[str, RowEdit]
) -> NDArray[np.float64]:
    """(row,) exact match."""
    where = find_sites(model)
    scores = score_edited(model, questions.rows, edits, span="prompt", known_sites=where)
    return scores.greedy.astype(float)


def describe(result: Mapping[str, Any], role: str = "unlearned") -> list[str]:
    """Notes for the axis: the published rate of a candidate, its controls, other models."""
    arms = result["roles"][role]["arms"]
    main = arms.get(PUBLISHED) or arms[STATE]
    if main["best"] is None:
        return ["Readout intact: not asked, too few answers were lost."]
    beside = "; ".join(
        f"{name} {arms[name]['best']:.0%}"
        for name in ARMS[1:]
        if name in arms and arms[name] is not main
    )
    others = "; ".join(
        f"{name} {_best(outcome['arms']):.0%}"
        for name, outcome in result["roles"].items()
        if name != role and _best(outcome["arms"]) is not None
    )
    return [
        f"Readout intact (published test, no vote): the original's states put in at "
        f"{result['site']} where the true answer was forgotten restore "
        f"{main['best']:.0%} of the lost answers at the best of alpha "
        f"{', '.join(f'{a:g}' for a in result['alphas'])}. {beside}. "
        f"Other models: {others or 'none'}. The knowledge comes from outside, so this "
        "says nothing of what the candidate holds."
    ]


def _best(arms: Mapping[str, Any]) -> float | None:
    """The published rate, or that of states alone where there is no autoencoder."""
    return (arms.get(PUBLISHED) or arms[STATE])["best"]
