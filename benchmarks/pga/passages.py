"""A signature of memorised passages in a real model, with surprisal matched and not."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from capture.activations.capture import capture_activations
from capture.checkpoints.open import open_checkpoint
from capture.network.sites import find_sites
from probes.sweeps.membership_test import Membership, matched_pairs, membership
from testbeds.memorized_codes.passages import PREDICTABLE, screen, text_rows
from testbeds.worlds.smollm2 import fetch_smollm2

CALIPER = 0.5
PERMUTATIONS = 499


def views_of(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> dict[str, torch.Tensor]:
    """(site, text, d) states by view, at the last token and averaged."""
    rows = text_rows(tokenizer, texts)
    names = find_sites(model).names
    sites = [name for name in names if name == "embed" or name.startswith("resid.")]
    return {
        view: torch.from_numpy(
            np.asarray(capture_activations(model, rows, sites, view).values, np.float64)
        )
        for view in ("last", "mean")
    }


def passages(run: Run) -> Iterator[Row]:
    """A signature of passages that SmolLM2 knows, after screening them."""
    checkpoint = open_checkpoint(fetch_smollm2())
    model, tokenizer = checkpoint.load(), checkpoint.tokenizer
    found = screen(model, tokenizer)
    good = np.flatnonzero(found.valid)
    memorised = [found.passages[place].known for place in good]
    other = [found.passages[place].paraphrase for place in good]
    pools = {
        "memorised": (memorised, found.known[good]),
        "paraphrase": (other, found.paraphrase[good]),
        "predictable": (list(PREDICTABLE), found.predictable),
    }
    states = {name: views_of(model, tokenizer, texts) for name, (texts, _) in pools.items()}
    figure = (
        "SmolLM2-135M-Instruct: passages known (mean log-probability a token >= -2) "
        "whose paraphrase is not (<= -3)"
    )
    peer = f"of {len(found.passages)}; the paper has 7 for Pythia-70M"
    yield row(figure, len(good), at_least(7), "passages", peer)
    comparisons = {}
    for name, first, second, matched in (
        ("memorised against paraphrases", "memorised", "paraphrase", False),
        ("memorised against predictable texts", "memorised", "predictable", False),
        ("the same, matched on surprisal", "memorised", "predictable", True),
        ("paraphrases against predictable texts", "paraphrase", "predictable", False),
    ):
        pairs = _pairs(pools[first][1], pools[second][1], matched)
        for site, label in ((slice(None), "all depths"), (slice(0, 1), "embedding")):
            views = {
                view: torch.cat(
                    [
                        states[first][view][site][:, pairs[:, 0]],
                        states[second][view][site][:, pairs[:, 1]],
                    ],
                    1,
                )
                for view in ("last", "mean")
            }
            seen = membership(
                views,
                np.repeat([1, 0], len(pairs)),
                n_permutations=PERMUTATIONS,
                progress=run.progress,
            )
            gap = pools[first][1][pairs[:, 0]] - pools[second][1][pairs[:, 1]]
            comparisons[f"{name}, {label}"] = _summary(seen, float(gap.mean()))
    for name, each in comparisons.items():
        figure = f"SmolLM2-135M-Instruct, {name}: p"
        peer = (
            f"{each['reading']}; best AUC {each['best']:.2f}, null's 95 % "
            f"{each['band']:.2f}; surprisal apart by {each['gap']:+.2f} nats a token"
        )
        yield row(figure, each["p"], at_most(), "", peer, each["pairs"])
    run.payload = {
        "comparisons": comparisons,
        "screened": [
            {
                "key": passage.key,
                "known": round(float(known), 3),
                "paraphrase": round(float(paraphrase), 3),
                "valid": bool(valid),
            }
            for passage, known, paraphrase, valid in zip(
                found.passages, found.known, found.paraphrase, found.valid, strict=True
            )
        ],
        "predictable": [round(float(each), 3) for each in found.predictable],
    }


def _pairs(first: np.ndarray, second: np.ndarray, matched: bool) -> np.ndarray:
    """Pairs of as many of either: the nearest in surprisal, or as they come."""
    if matched:
        return matched_pairs(first, second, CALIPER)
    count = min(len(first), len(second))
    return np.stack([np.arange(count)] * 2, 1)


def _summary(seen: Membership, gap: float) -> dict:
    return {
        "pairs": seen.sequences // 2,
        "gap": gap,
        "best": seen.max_auc,
        "band": seen.null_95,
        "p": seen.p_value,
        "reading": seen.reading(),
        "by_site": np.round(seen.auc.max((0, 1)), 4).tolist(),
    }
