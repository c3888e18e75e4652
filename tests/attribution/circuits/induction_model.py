"""A trained two-layer model that repeats what it has seen: its circuit is known.

A head of the first layer tells each position which token stands before it, and heads
of the second look for the position whose predecessor is the current token (Olsson et
al., arXiv 2209.11895). Which heads these are is read off attention patterns, which
know nothing of scores.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attribution.circuits.prompt_pairs import PromptPairs
from capture.data.sequences import Sequences

TOKENS, LENGTH = 24, 24


def repeated(rows, generator):
    """(row, position) tokens that repeat with a period of 6 to 12, and the periods."""
    period = torch.randint(6, 13, (rows, 1), generator=generator)
    base = torch.rand(rows, TOKENS, generator=generator).argsort(1)[:, :12]
    return base.gather(1, torch.arange(LENGTH)[None] % period), period


def trained_model():
    """Two layers of four heads, trained until they repeat."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=4,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    made = LlamaForCausalLM(config)
    made.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3, weight_decay=0.01, betas=(0.9, 0.98))
    loss = torch.inf
    for _ in range(600):
        ids, period = repeated(64, generator)
        logits = made(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        missed = -logits.gather(2, ids[:, 1:, None])[..., 0]
        seen = torch.arange(1, LENGTH)[None] > period
        loss = (missed * seen).sum() / seen.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.1
    return made.eval()


def induction_pairs():
    """Ten tokens, then one of them: its successor is next.

    In the corrupt prompt it has changed places with another, so that its successor
    is another; only the order tells them apart.
    """
    generator = torch.Generator().manual_seed(1)
    clean, corrupt, foils = [], [], []
    for row in range(24):
        base = torch.randperm(TOKENS, generator=generator)[:10].tolist()
        here, there = row % 4, 5 + row % 3
        other = list(base)
        other[here], other[there] = base[there], base[here]
        end = [base[here], base[here + 1]]
        clean.append((*base, *end))
        corrupt.append((*other, *end))
        foils.append(base[there + 1])
    names = tuple(str(row) for row in range(24))
    starts = (11,) * 24
    return PromptPairs(
        Sequences(tuple(clean), starts),
        Sequences(tuple(corrupt), starts),
        tuple(foils),
        names,
        names,
    )


def heads(model):
    """Head of layer 0 that looks one back; head of layer 1 that looks at successors."""
    ids, period = repeated(100, torch.Generator().manual_seed(2))
    with torch.no_grad():
        first, second = model(input_ids=ids, output_attentions=True).attentions
    late, rows = range(14, LENGTH), torch.arange(100)
    back = torch.stack([first[:, :, t, t - 1] for t in late]).mean((0, 1))
    found = torch.stack([second[rows, :, t, t - period[:, 0] + 1] for t in late])
    return int(back.argmax()), int(found.mean((0, 1)).argmax())


def induction_edges(back, look):
    """From the head that looks back, by the other's keys, to the logits."""
    return (f"embed->v.0.{back}", f"head.0.{back}->k.1.{look}", f"head.1.{look}->logits")
