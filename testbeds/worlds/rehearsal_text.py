"""General text that keeps a pretrained model's language while it is trained or unlearned.

A model tuned only on a few invented facts forgets how to write, and an audit would rightly call it
damaged. The lines are the model's own: sampled once from SmolLM2-135M-Instruct (temperature 0.9,
nucleus 0.95) after 32 common openings.
"""

from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from evidence.seeds import numpy_rng

MAX_TOKENS = 40  # tokens


def rehearsal_rows(tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """The lines as rows; each row's answer starts at a random position in its first half.

    Losses on answers then cover all parts of ordinary text.
    """
    text = files("testbeds.worlds").joinpath("smol_text.txt").read_text(encoding="utf-8")
    rows = encode(tokenizer, text.splitlines())
    ids = tuple(each[:MAX_TOKENS] for each in rows.ids)
    rng = numpy_rng(0, "rehearsal")
    start = (int(rng.integers(1, max(2, len(each) // 2))) for each in ids)
    return Sequences(ids, tuple(start))
