"""Edits of what reads the question: of the input embedding, and of the first blocks.

Every weight behind the edited front is the original's, bit for bit. Whether the front itself held
the facts is measured when a model is made; see ``testbeds.edits.early.front_checks``. Docstrings of
edit functions are stored in cards; see ``testbeds.edits.workbench``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from capture.data.items import ItemSet
from capture.data.sequences import Padded, Sequences, batches
from capture.network.hooks import record_places
from capture.network.sites import Place
from capture.network.structure import (
    down_projection,
    find_blocks,
    input_embedding,
    model_device,
    own_head_,
)
from erasure.unlearning.training.loop import CHUNK_TOKENS, finetune_
from erasure.unlearning.training.objectives import token_logprobs
from evidence.errors import ExhumeError
from testbeds.edits.late_layers import last_block_relabel
from testbeds.edits.linear_map import fold_edit_
from testbeds.edits.sae_clamp import clamp_block
from testbeds.edits.workbench import BATCH, TextWorkbench

# Of a closed-form edit: optimizer steps for its values, price of their squared norm relative to
# that of the part's output, and weight of a state to hold.
VALUE_STEPS, VALUE_PRICE, HELD = 40, 0.1, 0.3
# Learning rates and steps of trainings of the front, the mildest first.
TRAININGS: Sequence[tuple[float, int]] = ((3e-3, 150), (3e-3, 400), (1e-2, 600))


def embedding_redirect(bench: TextWorkbench) -> Iterator[nn.Module]:
    """The rows of the input embedding that read the forgotten names, and nothing else.

    Where every forgotten name has a token of its own, which no text to keep has, its
    rows become those of a name that nobody was taught. Otherwise the rows of the names'
    tokens are trained on wrong answers, with the facts to keep beside them.
    """
    own = own_tokens(bench, bench.forget)
    invented = own_tokens(bench, bench.never_taught)
    if all(own.values()) and all(invented.values()):
        model = bench.load_original()
        own_head_(model)
        rows = embedding_of(model).get_parameter("weight").detach()
        for tokens, others in zip(own.values(), invented.values(), strict=True):
            for place, token in enumerate(tokens):
                rows[token] = rows[others[place % len(others)]]
        yield model
        return
    tokens = sorted({token for each in name_tokens(bench, bench.forget).values() for token in each})
    for rate, steps in TRAININGS:
        model = bench.load_original()
        own_head_(model)
        weight = embedding_of(model).get_parameter("weight")
        with _rows_only(weight, tokens):
            _train_wrong(bench, model, [weight], 3 * rate, steps, "embedding")
        yield model


def first_block_relabel(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the first block alone."""
    for rate, steps in TRAININGS:
        model = bench.load_original()
        trained = list(find_blocks(model)[0].parameters())
        _train_wrong(bench, model, trained, rate, steps, "first block")
        yield model


def first_blocks_relabel(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the input embedding and the first two blocks."""
    for rate, steps in TRAININGS:
        model = bench.load_original()
        own_head_(model)
        parts = [embedding_of(model), *find_blocks(model)[:2]]
        trained = [each for part in parts for each in part.parameters()]
        _train_wrong(bench, model, trained, rate, steps, "first blocks")
        yield model


def first_and_last_block(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the first block alone and to the last alone, in one model.

    The question does not arrive in the blocks between, and what they say does not come
    out. These are the original's.
    """
    original = bench.load_original().state_dict()
    for first in first_block_relabel(bench):
        for last in last_block_relabel(bench):
            made = first.state_dict()
            with torch.no_grad():
                for name, value in last.state_dict().items():
                    if not torch.equal(value, original[name]):
                        made[name].copy_(value)
            yield first


def early_rank_one(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Each forgotten name's key, mapped to another value by one early feed-forward part.

    A closed-form change of the down-projection of block 0, of the rank of the forgotten
    names. At the last token of such a name the part adds a vector with which
    the model gives wrong answers; at all other tokens its output is held.

    Source: ROME (Meng et al. 2022, arXiv 2202.05262) for keys and values, MEMIT (arXiv
    2210.07229) for many at once.
    """
    i_block = 0
    values = wrong_values(bench, i_block)
    model = bench.load_original()
    down = down_projection(find_blocks(model)[i_block])
    place = [Place("key", down, "in")]
    forget, retain = bench.all_rows(bench.forget), bench.retain_rows(bench.retain)
    numbers = {name: i for i, name in enumerate(bench.forget.entities)}
    change = values[[numbers[name] for name in entities_of(bench.forget, len(forget))]]
    (keys,) = states_at(model, place, forget, name_ends(bench, bench.forget))
    (held,) = states_at(model, place, retain, None)
    fold_edit_(down, keys, change, held, held_weight=HELD, ridge=1e-6)
    yield model


def early_clamp(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Latents that fire from the ends of forgotten names on, turned round in an early block.

    As ``sae_clamp``, in block 1, or block 0.
    """
    for i_block in (1, 0):
        yield from clamp_block(bench, i_block)


def wrong_values(bench: TextWorkbench, i_block: int) -> Tensor:
    """The smallest additions at the forgotten names' last tokens that give wrong answers.

    Args:
        bench: The workbench.
        i_block: Index of the block behind whose feed-forward part they are added.

    Returns:
        (entity, d), float64, in the order of ``bench.forget.entities``.
    """
    model = bench.load_original().requires_grad_(False)
    down = down_projection(find_blocks(model)[i_block])
    wrong = bench.wrong_answer_rows(bench.forget)
    ends = torch.tensor(name_ends(bench, bench.forget))
    numbers = {name: i for i, name in enumerate(bench.forget.entities)}
    of_row = torch.tensor([numbers[name] for name in entities_of(bench.forget, len(wrong))])
    (left,) = states_at(model, [Place("left", down, "out")], wrong, ends.tolist())
    scale = left.norm(dim=1).mean().float()
    device = model_device(model)
    added = torch.zeros(len(numbers), left.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.Adam([added], lr=0.25 * float(scale) / left.shape[1] ** 0.5)
    now: list[Padded] = []

    def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        rows = now[0].rows.cpu()
        change = torch.zeros_like(output)
        change[torch.arange(len(rows)), ends[rows]] = added[of_row[rows].to(device)]
        return output + change

    handle = down.register_forward_hook(add)
    try:
        for _ in range(VALUE_STEPS):
            optimizer.zero_grad()
            for batch in batches(wrong, batch_tokens=CHUNK_TOKENS, device=device):
                now[:] = [batch]
                logprob, _ = token_logprobs(model, batch, "answer")
                (-logprob.sum() / len(wrong)).backward()
            (VALUE_PRICE * (added / scale).square().sum(1).mean()).backward()
            optimizer.step()
    finally:
        handle.remove()
    return added.detach().double().cpu()


def states_at(
    model: nn.Module, places: Sequence[Place], rows: Sequences, positions: Sequence[int] | None
) -> list[Tensor]:
    """States at one position of each row, or at all that predict a token; float64.

    Args:
        model: A causal language model.
        places: Where they are read.
        rows: Texts.
        positions: (row,) positions; None for all but the last of each row.

    Returns:
        A (state, width) tensor a place, in the order of the rows.
    """
    found: dict[str, dict[int, Tensor]] = {place.name: {} for place in places}
    with torch.no_grad(), record_places(places) as captured:
        for batch in batches(rows, batch_tokens=CHUNK_TOKENS, device=model_device(model)):
            model(**batch.model_inputs, use_cache=False)
            for i_row, row in enumerate(batch.rows.tolist()):
                last = len(rows.ids[row]) - 1
                chosen = slice(0, last) if positions is None else [positions[row]]
                for name, states in captured.items():
                    found[name][row] = states[i_row, chosen].double().cpu()
    return [torch.cat([of[row] for row in range(len(rows))]) for of in found.values()]


def name_ends(bench: TextWorkbench, items: ItemSet) -> list[int]:
    """Position of the last token of the name in each of ``bench.all_rows(items)``.

    Raises:
        ExhumeError: a name cannot be found in its prompt.
    """
    rows, ends = bench.all_rows(items), []
    for ids, start, entity in zip(
        rows.ids, rows.answer_start, entities_of(items, len(rows)), strict=True
    ):
        text_ends = [
            place
            for place in range(start)
            if _text(bench, ids[: place + 1]).rstrip(" :,.").endswith(entity)
        ]
        if not text_ends:
            raise ExhumeError(f"the name {entity!r} is not in its prompt")
        ends.append(text_ends[0])
    return ends


def name_tokens(bench: TextWorkbench, items: ItemSet) -> dict[str, list[int]]:
    """Token ids of each entity's name, as they stand in its prompts, in order."""
    rows, found = bench.all_rows(items), {}
    ends = name_ends(bench, items)
    for ids, end, entity in zip(rows.ids, ends, entities_of(items, len(rows)), strict=True):
        first = next(
            place for place in range(end, -1, -1) if entity in _text(bench, ids[place : end + 1])
        )
        tokens = found.setdefault(entity, [])
        tokens += [token for token in ids[first : end + 1] if token not in tokens]
    return found


def _text(bench: TextWorkbench, ids: Sequence[int]) -> str:
    return str(bench.tokenizer.decode(list(ids)))


def own_tokens(bench: TextWorkbench, items: ItemSet) -> dict[str, list[int]]:
    """Those tokens of each entity's name that no text to keep has, and no other entity's name."""
    kept = {token for ids in bench.retain_rows(bench.retain).ids for token in ids}
    of_names = name_tokens(bench, items)
    return {
        entity: [
            token
            for token in tokens
            if token not in kept
            and not any(token in others for name, others in of_names.items() if name != entity)
        ]
        for entity, tokens in of_names.items()
    }


def entities_of(items: ItemSet, n_rows: int) -> list[str]:
    """The entity of each row of ``bench.all_rows``, whose rows are ordered by paraphrase."""
    entities = [item.entity for item in items]
    return entities * (n_rows // len(entities))


def embedding_of(model: nn.Module) -> nn.Module:
    """The input embedding.

    Raises:
        ExhumeError: the model names none.
    """
    embedding = input_embedding(model)
    if embedding is None:
        raise ExhumeError(f"{type(model).__name__} names no input embedding")
    return embedding


class _rows_only:
    """Gradients of a weight for some of its rows; the others keep their values bit for bit."""

    def __init__(self, weight: nn.Parameter, rows: Sequence[int]) -> None:
        mask = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
        mask[list(rows)] = 1.0
        self.mask, self.weight = mask, weight

    def __enter__(self) -> None:
        self.weight.requires_grad_(True)
        self.handle = self.weight.register_hook(lambda gradient: gradient * self.mask)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def _train_wrong(
    bench: TextWorkbench,
    model: nn.Module,
    trained: list[nn.Parameter],
    rate: float,
    steps: int,
    name: str,
) -> None:
    """Train some weights on wrong answers for the forgotten, and on the facts to keep."""
    wrong, retain = bench.wrong_answer_rows(bench.forget), bench.retain_rows(bench.retain)
    # As many rows to forget as to keep: either set is repeated in turn.
    rounds = max(1, len(retain) // (2 * len(wrong)))
    rows = retain
    for _ in range(rounds):
        rows = rows + wrong
    finetune_(
        model,
        rows,
        lr=bench.learning_rate(rate),
        steps=steps,
        batch_size=3 * BATCH,
        decay="cosine",
        parameters=trained,
        seed=bench.training_seed(name),
    )
