"""Errors, seeds, sequences, files: what everything else stands on."""

import errno
import os
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.data.sequences import PASS_COST, Sequences, batches, pad
from evidence.errors import InputError
from evidence.seeds import numpy_rng, stage_seed, torch_rng
from evidence.storage.files import atomic_folder, write_atomic


def test_an_error_answers_four_questions():
    error = InputError("it is wrong", expected="a", got="b", fix="do c")
    assert str(error) == "it is wrong. Expected a; got b. do c."
    assert error.exit_code == 2


def test_streams_differ_by_name_and_repeat_by_seed():
    assert stage_seed(0, "a", "b") != stage_seed(0, "ab")
    assert stage_seed(0, "a") != stage_seed(1, "a")
    assert numpy_rng(3, "x").random() == numpy_rng(3, "x").random()
    a, b = (torch.rand(3, generator=torch_rng(3, "x")) for _ in range(2))
    assert torch.equal(a, b)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=9),
    st.integers(1, 30),
)
def test_batches_cover_every_row_once_within_the_budget(rows, tokens):
    data = Sequences(tuple(map(tuple, rows)), tuple(len(row) for row in rows))
    seen = []
    for batch in batches(data, batch_tokens=tokens):
        assert batch.input_ids.numel() <= max(tokens, batch.input_ids.shape[1])
        for place, row in enumerate(batch.rows.tolist()):
            length = int(batch.attention_mask[place].sum())
            assert batch.input_ids[place, :length].tolist() == rows[row]
            seen.append(row)
    assert sorted(seen) == list(range(len(rows)))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(1, 200))
def test_batches_compute_no_more_than_any_other_cutting(lengths, tokens):
    data = Sequences(tuple((1,) * n for n in lengths), tuple(lengths))
    ours = sum(PASS_COST + batch.input_ids.numel() for batch in batches(data, batch_tokens=tokens))
    falling = sorted(lengths, reverse=True)
    costs = []
    for cuts in product((False, True), repeat=len(lengths) - 1):
        ends = [place + 1 for place, cut in enumerate(cuts) if cut] + [len(lengths)]
        spans = list(zip([0, *ends], ends, strict=False))
        sizes = [falling[start] * (stop - start) for start, stop in spans]
        if all(
            size <= tokens or stop - start == 1
            for size, (start, stop) in zip(sizes, spans, strict=True)
        ):
            costs.append(sum(sizes) + PASS_COST * len(sizes))
    assert ours == min(costs)


def test_one_long_row_does_not_pad_the_short_ones_on_a_cpu_alone():
    data = Sequences(((1,) * 200, *[(1,) * 10] * 20), (1,) * 21)
    assert [len(batch.rows) for batch in batches(data, batch_tokens=8192)] == [1, 20]
    assert len(list(batches(data, batch_tokens=8192, device="meta"))) == 1


def test_padding_marks_answers_and_counts_positions():
    batch = pad(Sequences(((1, 2, 3), (4,)), (1, 0)))
    assert batch.answer_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.model_inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=9), st.integers(0, 9)),
        min_size=1,
        max_size=7,
    ),
    st.randoms(use_true_random=False),
)
def test_padding_lays_out_every_row_as_it_is(drawn, random):
    rows = [(tuple(ids), min(start, len(ids))) for ids, start in drawn]
    data = Sequences(*map(tuple, zip(*rows, strict=True)))
    order = random.sample(range(len(rows)), random.randint(1, len(rows)))
    batch = pad(data, order)
    width = max(len(rows[row][0]) for row in order)
    for place, row in enumerate(order):
        ids, start = rows[row]
        rest = width - len(ids)
        assert batch.input_ids[place].tolist() == [*ids, *[0] * rest]
        assert batch.attention_mask[place].tolist() == [1] * len(ids) + [0] * rest
        answer = [start <= at < len(ids) for at in range(width)]
        assert batch.answer_mask[place].tolist() == answer
    assert batch.rows.tolist() == order


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(60, 400))
def test_off_the_cpu_what_fits_is_one_batch(lengths, tokens):
    data = Sequences(tuple((1,) * n for n in lengths), tuple(lengths))
    found = list(batches(data, batch_tokens=tokens, device="meta"))
    assert (len(found) == 1) == (max(lengths) * len(lengths) <= tokens)


def test_no_rows_are_refused():
    with pytest.raises(InputError):
        pad(Sequences((), ()))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space is left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        with atomic_folder(tmp_path / "f") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "f") as folder:
        (folder / "whole").write_text("x")
    assert (tmp_path / "f" / "whole").read_text() == "x"
