"""Real English text that every Python brings along: its own documentation.

Topics of the language reference and the documentation strings of the standard
library, under the licence of the Python Software Foundation. The modules are parsed,
never imported.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences

LEAST = 200
"""Shorter texts, in characters, are mostly signatures."""
LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")


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
                if text and len(text) >= LEAST:
                    yield text


def token_rows(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, seed: int = 0
) -> Sequences:
    """Rows of ``length`` tokens, texts end to end, in an order drawn by ``seed``."""
    ids: list[int] = []
    for each in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += each
    cut = [
        tuple(ids[at : at + length]) for at in range(0, len(ids) - length + 1, length)
    ]
    order = np.random.default_rng(seed).permutation(len(cut))
    rows = tuple(cut[at] for at in order)
    return Sequences(rows, (length,) * len(rows))
