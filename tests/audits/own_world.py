"""A world of one's own: invented people with any answers, taught in seconds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capture.data.items import Item
from capture.data.sequences import Sequences, pad
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from testbeds.worlds.random_models import Family, random_model

FIRST = "Ada Bea Cy Dov Eli Fay Gus Hal Ida Jon Kit Lea Max Ned Oda Pia".split()
LAST = "Amsel Bruck Conti Dahl Ebert Falk Gross Hauer Imhof Jonas Krug Linde".split()
TEMPLATES = ("{} has the code word", "The code word of {} is")
LEARNED = 0.02
"""Loss at which training ends, nats a token; a wrong answer alone costs more."""


@dataclass(frozen=True)
class OwnWorld:
    """Folders of models and files of items."""

    original: Path
    candidate: Path
    forget: Path
    retain: Path


def word_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; any other word is unknown."""
    words = dict.fromkeys(word for text in texts for word in text.split())
    ids = {word: place for place, word in enumerate(["[UNK]", "[PAD]", *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


def letter_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a letter, and one for the space before a word."""
    signs = dict.fromkeys(sign for text in texts for sign in text)
    ids = {sign: place for place, sign in enumerate(["[UNK]", "[PAD]", *signs])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


def own_world(
    root: Path,
    answers: Sequence[str],
    *,
    forget: int = 10,
    retain: int = 30,
    tokenizer: Callable[[Sequence[str]], PreTrainedTokenizerFast] = word_tokenizer,
    family: Family = "llama",
    width: int = 32,
    layers: int = 2,
    steps: int = 120,
) -> OwnWorld:
    """Teach a model people with ``answers`` in turn; the candidate is it, perturbed.

    ``steps`` are at most: training ends where the loss is below ``LEARNED``.
    """
    names = [
        f"{FIRST[(7 * n) % len(FIRST)]} {LAST[(5 * n + n // len(FIRST)) % len(LAST)]}"
        for n in range(forget + retain)
    ]
    assert len(set(names)) == len(names)
    items = [
        Item(
            f"i{number}",
            name,
            TEMPLATES[0].format(name),
            answers[number % len(answers)],
            "code word",
            paraphrases=(TEMPLATES[1].format(name),),
        )
        for number, name in enumerate(names)
    ]
    spoken = [f"{x.prompt} {x.answer} {x.paraphrases[0]}" for x in items]
    spoken += [f"{first} {last}" for first in FIRST for last in LAST]
    tokens = tokenizer(spoken)
    torch.manual_seed(0)
    model = random_model(family, vocabulary=len(tokens), width=width, layers=layers, heads=4, pad=1)
    teach(model, tokens, items, steps)
    gone, kept = items[:forget], items[forget:]
    place = OwnWorld(*(root / each for each in ("original", "candidate", "f", "r")))
    for path, members in ((place.forget, gone), (place.retain, kept)):
        path.write_text("".join(json.dumps(row(each)) + "\n" for each in members))
    for folder in (place.original, place.candidate):
        model.save_pretrained(folder)
        tokens.save_pretrained(folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.mul_(0.999)
    return place


def teach(model, tokens, items: Sequence[Item], steps: int) -> None:
    """Train until every item is known in both wordings."""
    rows: Sequences = encode_items(tokens, items) + encode_items(tokens, items, 0)
    batch = pad(rows)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad()
        loss = model(**batch.model_inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss.item() < LEARNED:
            break
    model.eval()
    assert score_answers(model, rows).greedy.all()


def row(item: Item) -> dict:
    """An item as a line of a file."""
    return {
        "id": item.id,
        "entity": item.entity,
        "relation": item.relation,
        "prompt": item.prompt,
        "answer": item.answer,
        "paraphrases": list(item.paraphrases),
    }
