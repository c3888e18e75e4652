"""How many tokens a model can read, and what to say of rows that do not fit."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from capture.data.sequences import Padded
from evidence.errors import InputError

# Some families keep a few rows of their position table for other things.
MAX_SPARE_ROWS = 8


# Names that configurations have for it.
LIMIT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx")


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Most tokens a model was made for; None where its configuration does not say.

    Models that compute their positions take longer rows without complaint, and give for
    them what they never learned to give.

    Args:
        config: The configuration, as plain data.
    """
    found = [config.get(name) for name in LIMIT_FIELDS]
    return next((each for each in found if isinstance(each, int) and each > 0), None)


def position_limit(model: nn.Module) -> int | None:
    """Most tokens of a row where positions come from a table; else None.

    Models with rotary or relative positions compute them, and take any length.
    """
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    getter = getattr(model, "get_input_embeddings", None)
    words = getter() if callable(getter) else None
    tables = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module is not words
        and longest <= module.num_embeddings <= longest + MAX_SPARE_ROWS
    ]
    return longest if tables else None


def explain_length_error(model: nn.Module, batch: Padded) -> InputError:
    """Why looking up a token or a position failed."""
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
