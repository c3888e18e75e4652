"""A suppression planted where the question is read: the positive control of the front transplant.

Wherever the name of a forgotten entity stands in the input, the token embedding returns the rows of
an invented entity's name. Every weight is the original's, so the knowledge is all there, and the
model answers as it does about somebody it never met. Embeddings of flagged prompts are corrupted in
the same place by a published method (ECO prompts, arXiv 2406.07933).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from capture.data.invented_entities import mentions_entity
from capture.data.items import Item, ItemSet
from capture.network.structure import input_embedding

Tokens = tuple[int, ...]


def name_tokens(
    tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> dict[str, tuple[Tokens, ...]]:
    """Entity to the token sequences that spell its name in its questions, the longest first.

    Entities that a question does not name are left out.
    """
    found: dict[str, set[Tokens]] = {}
    if not tokenizer.is_fast:
        return {}
    for item in items:
        prompts = [text for text in (item.prompt, *item.paraphrases) if mentions_entity(item, text)]
        for prompt in prompts:
            start = prompt.casefold().rfind(item.entity.casefold())
            if start < 0:
                continue
            end = start + len(item.entity)
            encoded = tokenizer(prompt, return_offsets_mapping=True)
            ids = [
                token
                for token, (low, high) in zip(
                    encoded["input_ids"], encoded["offset_mapping"], strict=True
                )
                if low < end and high > start
            ]
            if ids:
                found.setdefault(item.entity, set()).add(tuple(ids))
    return {
        entity: tuple(sorted(spellings, key=len, reverse=True))
        for entity, spellings in found.items()
    }


def redirections(
    tokenizer: PreTrainedTokenizerBase, forget: ItemSet, never_taught: ItemSet
) -> dict[Tokens, Tokens]:
    """Spelling of each forgotten name to as many tokens of an invented name.

    Names take turns; one that is too short is repeated.
    """
    old = name_tokens(tokenizer, forget.items)
    invented = name_tokens(tokenizer, never_taught.items)
    # The answers of other entities are a floor too: then there are no other names.
    new = [spellings[0] for entity, spellings in invented.items() if entity not in old]
    if not new:
        return {}
    return {
        tokens: tuple(
            new[place % len(new)][i % len(new[place % len(new)])] for i in range(len(tokens))
        )
        for place, spellings in enumerate(old.values())
        for tokens in spellings
    }


@contextmanager
def redirected_names(model: nn.Module, names: Mapping[Tokens, Tokens]) -> Iterator[None]:
    """Context manager in which the token embedding reads other names in place of some.

    Nothing changes in a model that names no token embedding.

    Args:
        model: A language model.
        names: Token sequences to token sequences of the same length.
    """
    # TransformerLens calls it "embed".
    embedding = input_embedding(model) or getattr(model, "embed", None)
    if not isinstance(embedding, nn.Module) or not names:
        yield
        return
    by_first: dict[int, list[Tokens]] = {}
    for tokens in sorted(names, key=len, reverse=True):
        by_first.setdefault(tokens[0], []).append(tokens)

    def redirect(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not args:
            return None
        rows = args[0].tolist()
        changed = [_replaced(row, by_first, names) for row in rows]
        if changed == rows:
            return None
        # ``forward`` runs no hooks, so this one is not called again.
        return module.forward(torch.tensor(changed, device=args[0].device))

    handle = embedding.register_forward_hook(redirect)
    try:
        yield
    finally:
        handle.remove()


def _replaced(
    row: Sequence[int], by_first: Mapping[int, Sequence[Tokens]], names: Mapping[Tokens, Tokens]
) -> list[int]:
    result, place = list(row), 0
    while place < len(result):
        for tokens in by_first.get(result[place], ()):
            if tuple(row[place : place + len(tokens)]) == tokens:
                result[place : place + len(tokens)] = names[tokens]
                place += len(tokens) - 1
                break
        place += 1
    return result
