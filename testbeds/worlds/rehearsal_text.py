"""Text that keeps a pretrained model's language while it is taught or made to forget.

Whatever is tuned on a few invented facts alone forgets how to write, and an audit would
rightly call it damaged. The lines are the model's own: sampled once from
SmolLM2-135M-Instruct (temperature 0.9, nucleus 0.95) after 32 common openings.
"""

from importlib.resources import files

from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from evidence.seeds import numpy_rng

MAX_TOKENS = 40  # tokens


def rehearsal_rows(tokenizer: PreTrainedTokenizerBase) -> Sequences:
    """The lines as rows, each with its answer from somewhere in its first half on.

    What is held in place where an answer begins is thus held all over ordinary text.
    """
    text = (
        files("testbeds.worlds").joinpath("smol_text.txt").read_text(encoding="utf-8")
    )
    rows = encode(tokenizer, text.splitlines())
    ids = tuple(each[:MAX_TOKENS] for each in rows.ids)
    rng = numpy_rng(0, "rehearsal")
    start = (int(rng.integers(1, max(2, len(each) // 2))) for each in ids)
    return Sequences(ids, tuple(start))
