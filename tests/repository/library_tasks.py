"""Runs the code of ``docs/guide/from-other-libraries.md``, in a process of its own.

The libraries change the process that imports them. Run as ``python -m
tests.repository.library_tasks FOLDER``; prints a JSON object, task to library to the largest
difference from our result, relative to its largest value.
"""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from capture.data.sequences import Sequences
from tests.helpers import tiny_models

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "from-other-libraries.md"
HEADING = re.compile(r"^## (\d+)\. .+$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n# ([\w ]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The name that every block of a task gives its result.
RESULTS = {
    1: "states",
    2: "pattern",
    3: "said",
    4: "logits",
    5: "logits",
    6: "gradient",
    7: "lens",
    8: "added",
    9: "recovered",
    10: "logits",
}


def tasks() -> dict[int, dict[str, str]]:
    """Task to library to code; task 0 is the setup."""
    parts = HEADING.split(PAGE.read_text(encoding="utf-8"))
    numbered = [("0", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    return {int(number): dict(BLOCK.findall(text)) for number, text in numbered}


def save_model(folder: Path) -> None:
    """A tiny Llama whose norms have gains, and its tokenizer."""
    tokenizer = tiny_models.byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_models.llama(len(tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(code: str, place: Path, names: dict[str, Any]) -> None:
    """Execute code from a file: nnsight reads the source of its blocks."""
    place.write_text(code, encoding="utf-8")
    exec(compile(code, str(place), "exec"), names)


def array(value: Any) -> np.ndarray:
    value = value.detach() if isinstance(value, torch.Tensor) else value
    return np.asarray(value, dtype=np.float64)


def aligned(task: int, library: str, value: Any, texts: Sequences) -> np.ndarray:
    """The result with our axes, and without what stands at padding."""
    found = array(value)
    if task == 1:
        lengths = [len(ids) for ids in texts.ids]
        left = library == "nnsight"
        rows = [
            found[:, row, -length:] if left else found[:, row, :length]
            for row, length in enumerate(lengths)
        ]
        return np.concatenate(rows, 1)
    if task == 2 and library == "TransformerLens":
        return found.transpose(1, 0, 2)
    return found


def difference(task: int, ours: Any, library: str, theirs: Any, texts: Sequences) -> float:
    if isinstance(ours, str):
        return float(ours != theirs)
    expected = aligned(task, "exhume", ours, texts)
    found = aligned(task, library, theirs, texts)
    if (
        task == 8 and library == "TransformerLens"
    ):  # TransformerLens has components first, and no bias
        expected, found = expected[0, : found.size], found.ravel()
    if task == 7:
        found = found.reshape(expected.shape)
    assert expected.shape == found.shape, (task, library, expected.shape, found.shape)
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    save_model(folder)
    blocks = tasks()
    torch.manual_seed(0)
    setup: dict[str, Any] = {"folder": str(folder)}
    run(blocks.pop(0)["setup"], folder / "setup.py", setup)
    # Functions that read weights refuse those that compatibility mode has folded.
    setup["raw bridge"] = setup["TransformerBridge"].boot_transformers(str(folder))
    model, tokens = setup["model"], setup["tokens"]
    exhume, texts = setup["exhume"], setup["texts"]
    said = setup["tokenizer"].decode(model.generate(**tokens, max_new_tokens=5)[0])
    plain = model(**tokens).logits
    unedited = {3: said, 4: plain, 5: plain}
    unedited[10] = exhume.capture_activations(model, texts, "logits").site("logits")
    rows = exhume.encode(setup["tokenizer"], texts)
    found: dict[int, dict[str, float]] = {}
    for task, codes in blocks.items():
        results = {}
        for library, code in codes.items():
            names = dict(setup)
            run(code, folder / f"task_{task}_{library}.py", names)
            results[library] = names[RESULTS[task]]
        ours = results.pop("exhume")
        if task in unedited:
            results["without the edit"] = unedited[task]
        # Functions that run the model themselves take the other libraries' objects.
        for live in (
            ("lm", "raw bridge")
            if "model(**" not in codes["exhume"] and ".generate" not in codes["exhume"]
            else ()
        ):
            names = setup | {"model": setup[live]}
            run(codes["exhume"], folder / f"task_{task}_{live}.py", names)
            results[live] = names[RESULTS[task]]
        found[task] = {
            library: difference(task, ours, library, theirs, rows)
            for library, theirs in results.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
