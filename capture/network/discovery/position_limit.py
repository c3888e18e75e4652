"""Maximum number of tokens of a model, and the error for rows that exceed it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from capture.data.sequences import Padded
from evidence.errors import InputError

# Some families reserve a few rows of their position table.
MAX_SPARE_ROWS = 8
# Names of the limit in configurations.
LIMIT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx")


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Maximum number of tokens by the configuration; None if it states none.

    Models with computed positions accept longer rows, but were not trained on them.
    """
    values = [config.get(name) for name in LIMIT_FIELDS]
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def position_limit(model: nn.Module) -> int | None:
    """Maximum number of tokens of a model with a position table; else None.

    Models with rotary or relative positions accept any length.
    """
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    getter = getattr(model, "get_input_embeddings", None)
    token_embedding = getter() if callable(getter) else None
    tables = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module is not token_embedding
        and longest <= module.num_embeddings <= longest + MAX_SPARE_ROWS
    ]
    return longest if tables else None


def explain_length_error(model: nn.Module, batch: Padded) -> InputError:
    """Error for a failed lookup of a token or position embedding."""
    config = getattr(model, "config", None)
    ids = getattr(config, "vocab_size", "the vocabulary's size")
    longest = getattr(config, "max_position_embeddings", "so many")
    return InputError(
        "a row does not fit the model's tables of tokens and positions",
        expected=f"token ids under {ids} and at most {longest} tokens",
        got=f"ids up to {int(batch.input_ids.max())} in rows of up to "
        f"{batch.input_ids.shape[1]} tokens",
        fix="Shorten the text, and check that the tokenizer belongs to this model",
    )
