"""Whole quick audits of forget sets of 8 to 2,000 entities: seconds an entity, and memory.

A small Llama is taught two thousand invented people, in a tokenizer with a token a word, so that
every forget set is part of what it knows. The candidate is the model with slightly smaller
weights. Each audit runs in a process of its own, whose largest resident size is its memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.harness.results import ROOT
from capture.data.items import Item, ItemSet
from capture.data.sequences import pad
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from evidence.seeds import numpy_rng
from testbeds.worlds.random_models import random_model

SIZES = (8, 100, 400, 2000)
RETAIN, CITIES, NAMES = 200, 24, 120
WIDTH, LAYERS, HEADS = 64, 2, 4
EPOCHS, BATCH, RATE = 12, 128, 1e-2


def people(count: int, relations: int) -> list[Item]:
    """Facts about invented people, person by person; names of two words, shared answers."""
    rng = numpy_rng(0, "scale", "people")
    words = _words(rng, count + NAMES + CITIES)
    given, family, cities = words[:count], words[count : count + NAMES], words[-CITIES:]
    items = []
    for number in range(count):
        # A word of one's own, so that little training tells people apart.
        name = f"{given[number]} {family[rng.integers(NAMES)]}"
        for relation in range(relations):
            verb = f"knows{relation}"
            items.append(
                Item(
                    f"p{number}-{relation}",
                    name,
                    f"{name} {verb}",
                    cities[rng.integers(CITIES)],
                    verb,
                    paraphrases=(f"what {name} {verb} is",),
                )
            )
    return items


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Different words of two or three syllables."""
    onsets, vowels = list("bdfgklmnprstvz"), list("aeiou")
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = rng.integers(2, 4)
        word = "".join(rng.choice(onsets) + rng.choice(vowels) for _ in range(syllables))
        words[word.capitalize()] = None
    return list(words)


def make_world(folder: Path, relations: int) -> float:
    """Teach a model; the share of the facts it knows. Writes the models and the items."""
    items = people(max(SIZES) + RETAIN, relations)
    texts = [f"{x.prompt} {x.answer} {x.paraphrases[0]}" for x in items]
    words = dict.fromkeys(word for text in texts for word in text.split())
    ids = {word: place for place, word in enumerate(["[UNK]", "[PAD]", *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")
    torch.manual_seed(0)
    model = random_model(
        "llama", vocabulary=len(ids), width=WIDTH, layers=LAYERS, heads=HEADS, pad=1
    )
    rows = encode_items(tokenizer, items) + encode_items(tokenizer, items, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(0)
    steps, step = EPOCHS * -(-len(rows) // BATCH), 0
    model.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(rows), generator=order).split(BATCH):
            batch = pad(rows, chosen.tolist())
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
            optimizer.zero_grad()
            labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
            model(**batch.model_inputs, labels=labels).loss.backward()
            optimizer.step()
            step += 1
    model.eval()
    known = float(score_answers(model, rows).greedy.mean())
    for name in ("original", "candidate"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)
    per_person = relations
    forget, retain = items[: -RETAIN * per_person], items[-RETAIN * per_person :]
    ItemSet(tuple(retain)).to_jsonl(folder / "retain.jsonl")
    for size in SIZES:
        ItemSet(tuple(forget[: size * per_person])).to_jsonl(folder / f"forget-{size}.jsonl")
    return known


AUDIT = """
import json, resource, sys, time
import torch
import exhume
folder, size, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
start = time.perf_counter()
done = exhume.audit(
    f"{folder}/original", f"{folder}/candidate", f"{folder}/forget-{size}.jsonl",
    f"{folder}/retain.jsonl", out, device="cpu",
)
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
stages = {name: each["seconds"] for name, each in done.document["runtime"]["stages"].items()}
print(json.dumps([done.verdict, seconds, memory, stages]))
"""


def run_audit(folder: Path, size: int, threads: int) -> tuple[str, float, float, dict[str, float]]:
    """Verdict, seconds, megabytes, and seconds by stage of an audit in a process of its own."""
    out = folder / f"out-{size}"
    arguments = [str(folder), str(size), str(out), str(threads)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AUDIT, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    verdict, seconds, memory, stages = json.loads(done.stdout.splitlines()[-1])
    for name in ("audit.json", "report.html"):
        stages[name] = (out / name).stat().st_size / 2**20
    return verdict, seconds, memory, stages
