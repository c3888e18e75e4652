"""Rows that do not fit a model are cut or refused in words."""

import pytest
import torch

from audits.core.answers import utility_of_text
from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences
from capture.network.discovery.position_limit import position_limit
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.progress import SILENT
from testbeds.worlds.biographies import SMALL, new_model
from testbeds.worlds.biography_text import make_tokenizer
from testbeds.zoo.build import sized
from tests.helpers.model_families import tiny


@pytest.mark.parametrize(("family", "limit"), [("llama", None), ("gpt2", 64), ("neox", None)])
def test_only_tables_of_positions_limit_a_row(family, limit):
    assert position_limit(tiny(family)) == limit


def test_a_plain_module_has_no_limit():
    assert position_limit(torch.nn.Linear(2, 2)) is None


@pytest.mark.parametrize("length", [65, 80])
def test_a_row_beyond_the_table_is_refused_in_words(length):
    rows = Sequences(((1,) * length,), (1,))
    for work in (
        lambda: score_answers(tiny("gpt2"), rows),
        lambda: capture_activations(tiny("gpt2"), rows, ["resid.1"]),
    ):
        with pytest.raises(InputError, match="at most 64 tokens"):
            work()
    assert len(score_answers(tiny("llama"), rows)) == 1


def test_general_text_is_cut_to_what_the_model_reads():
    tokenizer = make_tokenizer()
    model = new_model(sized(SMALL, "gpt2"), tokenizer, 0)
    found = utility_of_text(model, tokenizer, SILENT)
    assert found is not None
    assert found.logprob_per_token == pytest.approx(found.logprob_of_guessing, abs=0.5)
