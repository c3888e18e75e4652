"""Inputs that benchmarks share: activations as language models make them, English text.

The text is what every Python brings along: topics of the language reference and the
documentation strings of the standard library, under the licence of the Python Software
Foundation. The modules are parsed, never imported.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences

MIN_LENGTH = 200
"""Shorter texts, in characters, are mostly signatures."""
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")


def activations(n: int, d: int, sites: int, seed: int = 0) -> tuple:
    """Residual-stream-like rows with a weak class signal that peaks mid-depth.

    Power-law spectrum, a mean four times the centred norm with one giant coordinate,
    centred norm growing from 10 to 170 and dropping at the last site, neighbouring
    sites correlated.

    Returns:
        (site, n, d) float32 activations and (n,) labels 0 or 1, equally many.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(n, dtype=int)
    labels[: n // 2] = 1
    rng.shuffle(labels)
    spectrum = np.arange(1, d + 1) ** -0.6
    state = rng.standard_normal((n, d)) * spectrum
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    signal = rng.standard_normal(d) * spectrum
    signal /= np.linalg.norm(signal)
    mean = rng.standard_normal(d)
    mean[d // 3] = 30 * np.abs(mean).max()
    mean /= np.linalg.norm(mean)
    out = np.empty((sites, n, d), dtype=np.float32)
    for site in range(sites):
        fresh = rng.standard_normal((n, d)) * spectrum
        state = 0.9 * state + np.sqrt(1 - 0.81) * fresh
        depth = site / max(sites - 1, 1)
        norm = 10 * 17**depth if site < sites - 1 else 60
        strength = 0.5 * np.exp(-((depth - 0.5) ** 2) / 0.05)
        rows = state / np.linalg.norm(state, axis=1).mean()
        rows = rows + strength * np.outer(labels - 0.5, signal)
        rows = norm * (rows @ rotation + 4 * mean)
        out[site] = rows
    return out, labels


def python_texts() -> list[str]:
    """Topics and documentation strings, each once, in a fixed order."""
    from pydoc_data.topics import topics

    return list(dict.fromkeys([*topics.values(), *_documentation()]))


def _documentation() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if any(part in LEFT_OUT for part in path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented):
                text = ast.get_docstring(node)
                if text and len(text) >= MIN_LENGTH:
                    yield text


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, seed: int = 0
) -> Sequences:
    """Rows of ``length`` tokens, texts end to end, in an order drawn by ``seed``."""
    ids: list[int] = []
    for each in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += each
    cut = [tuple(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)]
    order = np.random.default_rng(seed).permutation(len(cut))
    rows = tuple(cut[at] for at in order)
    return Sequences(rows, (length,) * len(rows))
