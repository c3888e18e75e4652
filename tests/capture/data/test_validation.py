"""A report says what was understood, and each planted fault by name."""

from dataclasses import replace

import numpy as np
import pytest

from capture.data.items import Item, ItemSet
from capture.scoring.set_validation import PairScores, validate_items
from evidence.errors import InputError
from tests.helpers.tiny_models import byte_level, word_level


def a_set(start, stop, **changes):
    return ItemSet(
        tuple(
            replace(
                Item(
                    id=f"i{at}",
                    entity=f"Land {at}",
                    prompt=f"The capital of Land {at} is",
                    answer=f"Town {at % 4}",
                    relation="capital",
                ),
                **changes,
            )
            for at in range(start, stop)
        ),
        "facts",
    )


def scores(greedy):
    return np.asarray(greedy, dtype=bool)


def share(count, of):
    return scores(np.arange(of) < count)


def test_a_sound_pair_has_its_figures_and_no_findings():
    forget, retain = a_set(0, 10), a_set(10, 40)
    report = validate_items(forget, retain, byte_level(), PairScores(share(9, 10), share(28, 30)))
    assert report.ok
    assert report.warnings == ()
    report.check()
    frame = report.to_frame().set_index("set")
    assert frame.loc["forget", "items"] == frame.loc["forget", "entities"] == 10
    assert frame.loc["retain", "items"] == 30
    assert frame.loc["forget", "relations"] == 1
    assert frame.loc["forget", "answers"] == 4
    assert frame.loc["forget", "known"] == 9
    assert frame.loc["retain", "known"] == 28
    assert frame.loc["forget", "shortest_answer"] >= 1
    assert report.forget.kept is None
    text = str(report)
    assert "understood as exhume: 10 items about 10 entities" in text
    assert "the original answers 9 of 10" in text
    assert "can be audited" in text


def test_shared_entities_are_an_error_whatever_their_spelling():
    retain = ItemSet((*a_set(10, 20), Item("x", "LAND  3", "Land 3 is ruled from", "Town 1")))
    report = validate_items(a_set(0, 8), retain)
    assert report.overlap == ("Land 3",)
    with pytest.raises(InputError, match=r"share entities.*'Land 3' in both"):
        report.check()
    assert "error:" in str(report)
    assert "can be audited" not in str(report)


def test_repeated_and_disputed_prompts_are_counted_apart():
    forget = ItemSet(
        (
            *a_set(0, 8),
            Item("r", "Land 0", "The capital of  land 0 is", "town 0", "capital"),
            Item("d", "Land 1", "The capital of Land 1 is", "Town 9", "capital"),
        )
    )
    report = validate_items(forget, a_set(10, 30))
    assert (report.forget.repeated, report.forget.disputed) == (1, 1)
    assert (report.retain.repeated, report.retain.disputed) == (0, 0)
    assert report.ok
    assert len(report.warnings) == 2


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"prompt": "One prompt for all is"}, "under several entities"),
        ({"prompt": "The capital of Land is "}, "end in a space"),
        ({"answer": "the capital"}, "hold their answer"),
    ],
)
def test_slips_in_the_prompts_are_warned_of(changes, warning):
    report = validate_items(a_set(0, 8, **changes), a_set(10, 30))
    assert report.ok
    assert any(warning in text for text in report.warnings)
    assert all("forget" in text for text in report.warnings)


def test_a_set_the_tokenizer_cannot_write_is_an_error():
    report = validate_items(a_set(0, 5), a_set(5, 20), word_level())
    assert len(report.errors) == 2
    assert "in the forget set, the answer 'Town 0'" in str(report.errors[0])
    assert report.forget.tokens is None


def test_a_paraphrase_without_tokens_is_found_too():
    class Picky:
        """A tokenizer that has no tokens for one paraphrase."""

        def __init__(self):
            self.real = byte_level()

        def __getattr__(self, name):
            return getattr(self.real, name)

        def __call__(self, texts, **options):
            out = self.real(texts, **options)
            for row, text in enumerate(texts):
                if text == "odd":
                    out["input_ids"][row] = []
            return out

    bad = a_set(0, 3, paraphrases=("fine", "odd"))
    report = validate_items(bad, a_set(5, 20), Picky())  # pyright: ignore[reportArgumentType]
    assert ["'odd' has no tokens" in str(error) for error in report.errors] == [True]


def test_an_original_that_knows_little_is_warned_of():
    report = validate_items(
        a_set(0, 10), a_set(10, 30), scores=PairScores(share(3, 10), share(20, 20))
    )
    (warning,) = report.warnings
    assert "answers 3 of 10 forget items" in warning


def test_sizes_alone_only_hint_at_a_swap():
    report = validate_items(a_set(0, 60), a_set(60, 70))
    assert report.ok
    assert any("swapped" in text for text in report.warnings)
    assert not validate_items(a_set(0, 20), a_set(60, 70)).warnings


def pair(forget_kept, retain_kept, of=20):
    return PairScores(share(of, of), share(of, of), share(forget_kept, of), share(retain_kept, of))


def test_behaviour_shows_a_swap():
    forget, retain = a_set(0, 20), a_set(20, 40)
    swapped = validate_items(forget, retain, scores=pair(19, 1))
    with pytest.raises(InputError, match=r"look swapped.*19 of 20 forget items"):
        swapped.check()
    assert swapped.forget.kept == 19


@pytest.mark.parametrize(
    ("forget_kept", "retain_kept"),
    [(0, 18), (20, 20), (0, 0), (18, 12), (10, 2)],
    ids=["unlearned", "untouched", "collapsed", "side effects", "both lost"],
)
def test_other_outcomes_are_no_swap(forget_kept, retain_kept):
    forget, retain = a_set(0, 20), a_set(20, 40)
    report = validate_items(forget, retain, scores=pair(forget_kept, retain_kept))
    assert report.ok
    assert not report.warnings


def test_behaviour_outweighs_sizes():
    forget, retain = a_set(0, 60), a_set(60, 70)
    known = PairScores(share(60, 60), share(10, 10), share(2, 60), share(10, 10))
    assert not validate_items(forget, retain, scores=known).warnings


def test_too_few_known_items_show_no_swap():
    forget, retain = a_set(0, 20), a_set(20, 40)
    known = PairScores(share(20, 20), share(4, 20), share(20, 20), share(0, 20))
    assert validate_items(forget, retain, scores=known).ok


def test_kept_counts_only_what_the_original_knew():
    known = PairScores(scores([1, 1, 0, 0]), share(20, 20), scores([1, 0, 1, 1]), share(20, 20))
    report = validate_items(a_set(0, 4), a_set(20, 40), scores=known)
    assert (report.forget.known, report.forget.kept) == (2, 1)


def test_empty_sets_and_scores_of_other_sets_are_refused():
    report = validate_items(ItemSet(()), a_set(0, 5), byte_level())
    with pytest.raises(InputError, match="the forget set is empty"):
        report.check()
    with pytest.raises(InputError, match="not those of the retain set"):
        validate_items(a_set(0, 5), a_set(5, 9), scores=PairScores(share(5, 5), share(5, 5)))
