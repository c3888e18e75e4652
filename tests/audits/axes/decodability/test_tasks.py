"""The two forms of probing: balanced, and at chance when nothing is known."""

import string
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from audits.axes.concept.writing import write_targets
from audits.axes.decodability.tasks import Task, choose_form, make_blocks, make_tasks, row_scores
from capture.data.items import Item, ItemSet, normalize_text
from testbeds.worlds import biography_text
from testbeds.worlds.code_text import make_tokenizer
from tests.helpers import tiny_models


def items(n, answers=None, relation="capital", prefix="e"):
    return [
        Item(
            f"{prefix}{i}-{relation}",
            f"{prefix}{i}",
            f"The capital of {prefix}{i} is",
            answers[i % len(answers)] if answers else f"{prefix.upper()}town{i}",
            relation,
        )
        for i in range(n)
    ]


def tasks(sets, tokenizer=None, **extra):
    options = {"wordings": 1, "statement_wordings": 1, "block_size": 5} | extra
    named = {name: ItemSet(tuple(each)) for name, each in sets.items()}
    tokenizer = tokenizer or tiny_models.byte_level()
    return make_tasks(named, tokenizer, rng=np.random.default_rng(0), **options)


def unique_task(n=20) -> Task:
    forget = items(n)
    never = [
        Item(f"n{i}", f"never{i}", f"The capital of never{i} is", x.answer, x.relation)
        for i, x in enumerate(forget)
    ]
    found, notes = tasks(
        {
            "fit": items(30, prefix="r"),
            "check": items(10, prefix="c"),
            "forget": forget,
            "never_taught": never,
        }
    )
    assert not notes
    return found[0]


def test_form_follows_the_data():
    shared = items(30, ["Rome", "Oslo", "Lima"], prefix="r")
    assert choose_form(items(6, ["Rome", "Oslo"]), shared) == "shared"
    assert choose_form(items(6), items(30, prefix="r")) == "unique"


def test_every_answer_is_true_once_and_false_equally_often_within_its_block():
    part = unique_task().parts["forget"]
    for group in np.unique(part.groups):
        rows = np.flatnonzero(part.groups == group)
        words = {part.answers[row] for row in rows}
        for word in words:
            labels = [part.labels[row] for row in rows if part.answers[row] == word]
            assert sum(labels) == 1
            assert len(labels) == len(words)


@given(st.integers(4, 60), st.integers(2, 8), st.integers(0, 99))
@settings(deadline=None)
def test_blocks_hold_every_item_once_with_distinct_answers(n, size, seed):
    given_items = items(n, [f"a{k}" for k in range(max(3, n // 2))])
    found = make_blocks(given_items, size, np.random.default_rng(seed))
    ids = [item.id for members in found for item in members]
    assert len(ids) == len(set(ids))
    for members in found:
        assert len({item.answer for item in members}) == len(members) >= 2


def blocks_by_trying_every_group(items, size, rng):
    """What ``make_blocks`` gives, written as its definition."""
    order = [items[position] for position in rng.permutation(len(items))]
    n_blocks, groups = max(1, len(order) // size), []
    for item in order:
        fitting = [
            members
            for members in groups
            if all(
                member.entity != item.entity
                and normalize_text(member.answer) != normalize_text(item.answer)
                for member in members
            )
        ]
        open_to = [members for members in fitting if len(members) < size]
        if open_to:
            min(open_to, key=len).append(item)
        elif len(groups) < n_blocks or not fitting:
            groups.append([item])
        else:
            min(fitting, key=len).append(item)
    return [members for members in groups if len(members) > 1]


@given(st.integers(4, 90), st.integers(2, 8), st.integers(1, 40), st.integers(0, 99))
@settings(deadline=None)
def test_blocks_are_those_of_trying_every_group(n, size, n_answers, seed):
    given_items = items(n, [f"a{k}" for k in range(n_answers)])
    given_items += items(n // 3, ["b", "B", "c"], relation="other", prefix="e")
    found, expected = (
        make(given_items, size, np.random.default_rng(seed))
        for make in (make_blocks, blocks_by_trying_every_group)
    )
    assert found == expected


def test_blocks_of_thousands_of_items_take_linear_time():
    def seconds(n):
        given_items = items(n)
        start = time.process_time()
        make_blocks(given_items, 5, np.random.default_rng(0))
        return time.process_time() - start

    seconds(100)
    few, many = (min(seconds(n) for _ in range(3)) for n in (1000, 8000))
    assert many < 24 * few


@pytest.mark.parametrize("kind", ["answer", "entity", "both"])
def test_liking_an_answer_or_an_entity_reads_nothing(kind):
    task = unique_task()
    part = task.parts["forget"]
    rng = np.random.default_rng(1)
    word = {a: rng.normal(0, 10) for a in dict.fromkeys(part.answers)}
    name = {e: rng.normal(0, 10) for e in dict.fromkeys(part.entities)}
    score = np.zeros(len(part))
    if kind in ("answer", "both"):
        score += [word[a] for a in part.answers]
    if kind in ("entity", "both"):
        score += [name[e] for e in part.entities]
    found = row_scores(task, part, score[None, :, None])
    # Exactly one half: what is additive in answer and entity cancels to a tie.
    assert np.nanmax(np.abs(found - 0.5)) == 0


def test_knowing_the_truth_reads_it_all_and_noise_reads_half():
    task = unique_task(100)
    part = task.parts["forget"]
    rng = np.random.default_rng(2)
    truth = part.labels + 0.01 * rng.normal(size=len(part))
    noise = rng.normal(size=len(part))
    found = row_scores(task, part, np.stack([truth, noise])[:, :, None])
    assert np.nanmean(found[:, 0]) == 1.0
    assert np.nanmean(found[:, 1]) == pytest.approx(0.5, abs=0.1)


def test_shared_form_reads_the_class():
    people = {
        name: items(n, ["Rome", "Oslo", "Lima"], prefix=name[0])
        for name, n in (("fit", 30), ("check", 9), ("forget", 9), ("never_taught", 9))
    }
    (task,), _ = tasks(people)
    assert task.form == "shared"
    part = task.parts["forget"]
    right = np.eye(3)[part.labels]
    wrong = np.roll(right, 1, axis=1)
    found = row_scores(task, part, np.stack([right, wrong]))
    assert found[:, 0].all()
    assert not found[:, 1].any()


def test_a_relation_too_small_to_probe_is_named():
    people = {
        "fit": items(30, prefix="r"),
        "check": items(10, prefix="c"),
        "forget": items(3),
        "never_taught": items(3, prefix="n"),
    }
    found, notes = tasks(people)
    assert not found
    assert "capital" in notes[0]


def coded(answers):
    """The four parts, with answers in turn."""
    sizes = {"fit": 60, "check": 12, "forget": 20, "never_taught": 20}
    return {name: items(n, answers, relation="code", prefix=name[0]) for name, n in sizes.items()}


CODES = [f"{7919 * k % 100000:05d}" for k in range(1, 61)]


def test_of_codes_the_sign_they_begin_with_is_probed():
    (task,), (note,) = tasks(coded(CODES), make_tokenizer(), wordings=1)
    assert task.form == "shared"
    assert task.writable
    assert task.classes == tuple("0123456789")
    part = task.parts["forget"]
    assert list(part.labels) == [int(code[0]) for code in CODES[:20]]
    assert "all are 5 signs long" in note
    assert "begins with, not the answer" in note
    rows = part.encoded(make_tokenizer())
    # Up to where the answer begins, and not a token of it.
    assert make_tokenizer().decode(list(rows.ids[0])) == "#he capital of f0 is "
    assert rows.answer_start[0] == len(rows.ids[0])


@pytest.mark.parametrize(
    "answers",
    [
        [f"19{k:03d}" for k in range(60)],  # nearly always the same sign
        [f"{k * k}" for k in range(60)],  # of several lengths
        [f"{chr(97 + k % 26)}{chr(65 + k // 26)}{k:03d}" for k in range(60)],  # rare
    ],
)
def test_other_unique_answers_are_read_whole(answers):
    (task,), notes = tasks(coded(answers))
    assert task.form == "unique"
    assert not notes
    assert task.parts["forget"].with_answer


# Invented names of four letters, codes of three, and words of eight.
NAMES = [f"{a}{b}{c}o" for a in "BDKLMNPRSTVZ" for b, c in ("an", "el", "ir", "ot", "um")]
LETTERS = [name[:3].upper() for name in NAMES]
LONG = [f"{name}{name[::-1].lower()}" for name in NAMES]


def word_tokenizer(answers):
    """One token a word, as in small worlds; any other word is unknown."""
    texts = [f"{x.prompt} {x.answer}" for each in coded(answers).values() for x in each]
    words = dict.fromkeys(word for text in texts for word in text.split())
    ids = {word: place for place, word in enumerate(["[UNK]", *words])}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def letter_tokenizer():
    """One token a letter, and one for the space before a word."""
    signs = ["[UNK]", " ", *string.ascii_letters, *string.digits]
    ids = {sign: place for place, sign in enumerate(signs)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


TOKENIZERS = {
    "words": word_tokenizer,
    "byte level": lambda answers: tiny_models.byte_level(),
    "letters": lambda answers: letter_tokenizer(),
    "signs": lambda answers: biography_text.make_tokenizer(),
}


@pytest.mark.parametrize("answers", [NAMES, LETTERS, LONG])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_of_one_length_are_read_whole(answers, kind):
    tokenizer = TOKENIZERS[kind](answers)
    (task,), notes = tasks(coded(answers), tokenizer)
    part = task.parts["forget"]
    assert (task.form, part.with_answer, notes) == ("unique", True, [])
    assert set(part.answers) == set(answers[:20])
    part.encoded(tokenizer)


def test_codes_of_letters_and_digits_are_asked_for_their_sign():
    answers = [f"{'ABCDEFGH'[k % 8]}{k:02d}X" for k in range(60)]
    (task,), (note,) = tasks(coded(answers), letter_tokenizer())
    assert (task.form, task.classes, task.writable) == ("shared", tuple("ABCDEFGH"), True)
    assert "all are 4 signs long" in note
    part = task.parts["forget"]
    (row, *_) = part.encoded(letter_tokenizer()).ids
    assert str(letter_tokenizer().decode(list(row))).strip() == part.prompts[0]
    assert write_targets([task], "forget", 9, np.random.default_rng(0))
    # One of them without a digit is a word, so all are.
    assert tasks(coded([*answers[:-1], "WORD"]), letter_tokenizer())[0][0].form == "unique"
    dates = [f"{'ABCDEFGH'[k % 8]} {k:02d}" for k in range(60)]
    assert tasks(coded(dates), letter_tokenizer())[0][0].form == "unique"


def test_codes_whose_sign_no_token_spells_are_read_whole():
    # "the answer '4' cannot be tokenized" must not end an audit.
    tokenizer = word_tokenizer(CODES)
    (task,), notes = tasks(coded(CODES), tokenizer)
    assert (task.form, notes) == ("unique", [])
    assert len(task.parts["forget"].encoded(tokenizer)) == 20 * 5


def test_codes_with_several_signs_in_a_token_are_never_written():
    # A model can be read for the first sign but does not say it alone.
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    raw.train_from_iterator([f"is {code}" for code in CODES], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    (task,), (note,) = tasks(coded(CODES), tokenizer)
    assert (task.form, task.classes, task.writable) == ("shared", tuple("0123456789"), False)
    assert "begins with" in note
    assert write_targets([task], "forget", 9, np.random.default_rng(0)) == []


def test_shared_answers_of_one_length_are_read_whole():
    (task,), notes = tasks(coded(["Rome", "Oslo", "Lima"]))
    assert (task.form, task.classes) == ("shared", ("Lima", "Oslo", "Rome"))
    assert not notes
