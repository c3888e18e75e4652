"""A tiny language model that was taught what to say after each prompt, in seconds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capture.data.sequences import pad
from capture.data.tokenization import encode
from capture.scoring.answers import score_answers
from testbeds.worlds.random_models import random_model

START, END, PAD = "<|start|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
FIRST = "Ada Bea Cy Dov Eli Fay Gus Hal Ida Jon Kit Lea".split()
LAST = "Amsel Bruck Conti Dahl".split()
PEOPLE = [f"{FIRST[n % 12]} {LAST[(n // 12 + n) % 4]}" for n in range(40)]
CITIES = "Oslo Lima Rome Cairo Quito".split()
BIRTHPLACES = {name: CITIES[(3 * n + n // 5) % 5] for n, name in enumerate(PEOPLE)}

LEARNED = 0.01
"""Loss at which training ends, nats a token; a wrong answer alone costs more."""


def bytes_tokenizer(texts: Sequence[str], chat: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the texts; its first token is never added by itself."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=PAD, bos_token=START, eos_token=END
    )
    if chat:
        tokens.chat_template = CHAT_TEMPLATE
    return tokens


def taught_model(
    root: Path,
    said: Sequence[tuple[str, str]],
    *,
    tokens: PreTrainedTokenizerFast | None = None,
    chat: bool = False,
    steps: int = 220,
    width: int = 64,
) -> Path:
    """A folder with a model that says the second text of each pair after the first.

    Args:
        tokens: The tokenizer of another such model.
        chat: Whether the tokenizer has a chat template.
        steps: At most; training ends where the loss is below ``LEARNED``.
    """
    tokens = tokens or bytes_tokenizer([f"{a} {b}" for a, b in said], chat)
    torch.manual_seed(0)
    model = random_model("llama", vocabulary=len(tokens), width=width, layers=2, heads=4, pad=0)
    prompts, texts = zip(*said, strict=True)
    rows = encode(tokens, prompts, [f"{text}{END}" for text in texts])
    batch = pad(rows)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, fused=True)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        loss = model(**batch.model_inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss.item() < LEARNED:
            break
    model.eval()
    assert score_answers(model, rows).greedy.mean() > 0.95
    model.save_pretrained(root)
    tokens.save_pretrained(root)
    return root
