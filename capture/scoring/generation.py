"""Greedy generation in batches."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences, pad
from capture.data.tokenization import encode
from capture.network.discovery.position_limit import explain_length_error, position_limit
from capture.network.hooks import evaluation_mode
from capture.network.structure import model_device
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    batch_tokens: int = 4096,
    progress: Progress = AUTO,
) -> list[str]:
    """Continue each prompt by greedy decoding.

    Args:
        model: A Hugging Face causal language model.
        prompts: One text per row.
        max_new_tokens: Maximum number of new tokens, also limited by the position table.
        batch_tokens: Maximum number of padded positions per batch, new ones included.

    Returns:
        The new text of each prompt, without special tokens.

    Raises:
        InputError: the model cannot generate, or as ``encode``.
    """
    if not hasattr(model, "generate"):
        raise InputError(
            "this model cannot generate text",
            expected="a Hugging Face model with a language-model head",
            got=type(model).__name__,
        )
    sequences = encode(tokenizer, prompts)
    texts = [""] * len(sequences)
    lengths = [len(ids) for ids in sequences.ids]
    order = sorted(range(len(sequences)), key=lambda row: lengths[row])
    limit = position_limit(model)
    with (
        evaluation_mode(model),
        torch.inference_mode(),
        as_progress(progress).task("generate", len(order)) as advance,
    ):
        while order:
            # The last row is the longest and determines the width of the batch.
            longest = lengths[order[-1]]
            size = max(1, batch_tokens // (longest + max_new_tokens))
            n_new = max_new_tokens
            if limit is not None and longest + n_new > limit:
                # Do not shorten the continuations of shorter rows.
                size = min(size, sum(lengths[row] == longest for row in order))
                n_new = limit - longest
                if n_new < 0:
                    raise explain_length_error(model, pad(sequences[[order[-1]]]))
            rows, order = order[-size:], order[:-size]
            if n_new > 0:
                new = _generate(model, tokenizer, sequences[rows], n_new)
                for row, ids in zip(rows, new, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    texts[row] = text if isinstance(text, str) else "".join(text)
            advance(len(rows))
    return texts


def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sequences: Sequences, max_new_tokens: int
) -> list[list[int]]:
    """New token ids by row; left-padded, so that all rows continue at one position."""
    from transformers import GenerationConfig

    device = model_device(model)
    width = max(len(ids) for ids in sequences.ids)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences.ids):
        ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    generation_config = getattr(model, "generation_config", None)
    end = getattr(generation_config, "eos_token_id", None)
    end = tokenizer.eos_token_id if end is None else end
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end,
        bos_token_id=getattr(generation_config, "bos_token_id", None),
        pad_token_id=end[0] if isinstance(end, list) else (end or 0),
    )
    out = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
    )
    return out[:, width:].tolist()
