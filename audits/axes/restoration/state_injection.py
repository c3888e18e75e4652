"""The published restoration test, with the controls it lacks: is the readout intact?

Wherever the true answer is a forgotten one, the original's state replaces the
candidate's where the prompt ends, and what the original's state at earlier tokens
differs by is injected along the latents that stand for that answer. The knowledge is
supplied from outside and told apart by the true answer: what comes back shows that the
candidate's later layers still read the original's code, not that the candidate holds
anything. It is reported and never votes.

After arXiv 2602.18505, whose class token is here the last prompt token and whose
patches are the tokens before it.
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
from audits.axes.restoration.text_steering import EncodedQuestions, permuted_donors
from audits.core.subjects import AuditedModel
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
"""What knows nothing of the item: as many other latents, another answer's, another's
states."""
STATE_ARMS = (PUBLISHED, STATE, ARMS[5])
MIN_LOST = 0.1
"""Where a model says nearly as much as the original there is no rate to give."""
UNTRAINED = "never-trained"


def untrained_model(original: AuditedModel, seed: int) -> AuditedModel | None:
    """A model of the same shape whose weights were drawn and never trained.

    Returns:
        None where the model's class cannot make one from its configuration.
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
    return AuditedModel(
        UNTRAINED, f"{original.weights_hash}+drawn{seed}", original.config, load
    )


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
    """The published test on every model; JSON-ready.

    Args:
        original: Where states come from.
        models: Models that are to be restored, by role.
        questions: The forget questions; all have a true answer, which gates the
            injection.
        autoencoder: An autoencoder of the original; without one, states alone are put
            in. As published, how well it fits the other models is not asked here.
        site: Where, if there is no autoencoder.
        seed: Of random latents and exchanged items.
        device: Where models run.

    Returns:
        ``site``, ``alphas``, ``latents`` (an answer, on average), and by role and arm
        ``said`` (share by alpha), ``rate`` (share of the lost answers restored, by
        alpha; None where nothing was lost), ``best`` (largest rate) and, for what was
        published, ``interval`` of the share said at the best alpha.
    """
    place = autoencoder.sae.site if autoencoder is not None else site
    with original.loaded(device) as model:
        given = states_by_prompt(model, questions.rows, place)
        known = _said(model, questions, {}).mean()
    found: dict[str, Any] = {"site": place, "alphas": list(ALPHAS), "roles": {}}
    if autoencoder is not None:
        counts = [len(each) for each in autoencoder.experts.values()]
        found["latents"] = float(np.mean(counts))
    for role, subject in models.items():
        with subject.loaded(device) as model:
            before = _said(model, questions, {})
            found["roles"][role] = {
                "before": float(before.mean()),
                "arms": _arms(
                    model, questions, given, autoencoder, place, seed, known, before
                ),
            }
    return found


def _arms(
    model: nn.Module,
    asked: EncodedQuestions,
    given: list[NDArray[np.float32]],
    coder: AnswerAutoencoder | None,
    site: str,
    seed: int,
    known: float,
    before: NDArray,
) -> dict[str, Any]:
    """Every arm that can be run on one model, over all strengths."""
    lost = float(known - before.mean())
    table: dict[str, Any] = {}
    for arm in ARMS if coder is not None else (STATE, ARMS[5]):
        said = [
            _said(
                model,
                asked,
                {site: injection_edit(arm, asked, given, coder, alpha, seed)},
            )
            for alpha in ALPHAS
        ]
        shares = [float(each.mean()) for each in said]
        rates = None
        if lost >= MIN_LOST:
            rates = [(share - float(before.mean())) / lost for share in shares]
        best_rate = None if rates is None else max(rates)
        table[arm] = {"said": shares, "rate": rates, "best": best_rate}
        best = said[int(np.argmax(shares))]
        interval = rate_interval(average_by_entity(best, asked.questions.entities))
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
    """The edit of whole prompts (row, position, d) that one arm makes.

    Args:
        arm: One of ``ARMS``.
        questions: The questions.
        original_states: (row,) the original's states (position, d) of each prompt.
        autoencoder: The autoencoder; arms of states alone need none.
        alpha: Strength: at 1 the state that is put in replaces the own one.
        seed: Of random latents and exchanged items.
    """
    rng = numpy_rng(seed, "readout", arm)
    classes = [str(each) for each in questions.classes]
    source = list(range(len(classes)))
    if arm == ARMS[5]:
        source = permuted_donors(questions, rng).tolist()
    chosen = _latents_of(arm, autoencoder, rng)

    def edit(states: Tensor, rows: NDArray) -> Tensor:
        out = states.clone()
        for place, row in enumerate(rows):
            own = states[place]
            delta = _aligned(original_states[source[row]], own) - own
            change = torch.zeros_like(delta)
            if autoencoder is not None and classes[row] in chosen:
                change = decode_difference(autoencoder.sae, delta, chosen[classes[row]])
                if arm in ARMS[3:5]:
                    model = decode_difference(
                        autoencoder.sae, delta, autoencoder.experts[classes[row]]
                    )
                    change = match_norms(change, model)
            if arm in STATE_ARMS:
                # The last state is copied, not decoded, in the published test.
                change[-1] = delta[-1]
            out[place] = own + alpha * change
        return out

    return edit


def _latents_of(
    arm: str, coder: AnswerAutoencoder | None, rng: np.random.Generator
) -> Mapping[str, NDArray[np.int64]]:
    """Relation and answer to the latents an arm writes along."""
    if coder is None or arm == STATE:
        return {}
    experts = coder.experts
    if arm == ARMS[3]:
        return {
            name: draw_control_latents(coder.sae, e, rng) for name, e in experts.items()
        }
    if arm != ARMS[4]:
        return experts
    dealt = {}
    for name in experts:
        # Classes are named relation, separator, answer.
        relation = name.split("\x1f")[0] + "\x1f"
        same = [e for e in experts if e != name and e.startswith(relation)]
        if same:
            dealt[name] = experts[same[rng.integers(len(same))]]
    return dealt


def _aligned(given: NDArray[np.float32], own: Tensor) -> Tensor:
    """Another prompt's states, last on last; the own ones where it has none."""
    out = own.clone()
    length = min(len(given), len(own))
    out[len(own) - length :] = torch.from_numpy(given[len(given) - length :]).to(own)
    return out


def _said(
    model: nn.Module, asked: EncodedQuestions, edits: Mapping[str, RowEdit]
) -> NDArray[np.float64]:
    """(row,) whether the answer is said."""
    where = find_sites(model)
    scores = score_edited(model, asked.rows, edits, span="prompt", known_sites=where)
    return scores.greedy.astype(float)


def describe(found: Mapping[str, Any], role: str = "unlearned") -> list[str]:
    """What the published test gives on a candidate, and beside it what knows nothing.

    Sentences for the notes of the axis.
    """
    arms = found["roles"][role]["arms"]
    main = arms.get(PUBLISHED) or arms[STATE]
    if main["best"] is None:
        return ["Readout intact: not asked, too few answers were lost."]
    beside = "; ".join(
        f"{name} {arms[name]['best']:.0%}"
        for name in ARMS[1:]
        if name in arms and arms[name] is not main
    )
    others = "; ".join(
        f"{name} {_best(each['arms']):.0%}"
        for name, each in found["roles"].items()
        if name != role and _best(each["arms"]) is not None
    )
    return [
        f"Readout intact (published test, no vote): the original's states put in at "
        f"{found['site']} where the true answer was forgotten restore "
        f"{main['best']:.0%} of the lost answers at the best of alpha "
        f"{', '.join(f'{a:g}' for a in found['alphas'])}. {beside}. "
        f"Other models: {others or 'none'}. The knowledge comes from outside, so this "
        "says nothing of what the candidate holds."
    ]


def _best(arms: Mapping[str, Any]) -> float | None:
    """The published rate, or that of states alone where there is no autoencoder."""
    return (arms.get(PUBLISHED) or arms[STATE])["best"]
