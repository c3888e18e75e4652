"""Large forget sets: work that is shared or sampled, and gives what the whole would."""

from collections import Counter

import numpy as np
import pytest

from audits.axes.causal_depth.state_transfer import with_unrelated_receiver
from audits.axes.membership.scores import MembershipScores, outranked
from audits.core import answers as answer_scores
from audits.core.config import AuditConfig
from audits.core.item_sets import (
    MAX_INVENTED_ENTITIES,
    TextSets,
    make_never_taught,
    measured_entities,
)
from audits.modalities.planting import wrong_answers
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.questions import build_questions
from capture.scoring.choices import alternatives_of
from evidence.progress import SILENT
from evidence.seeds import numpy_rng
from tests.helpers import tiny_models


def people(n, relations=1, prefix="Per", cities=7):
    return ItemSet(
        tuple(
            Item(
                f"{prefix}{k}-{r}",
                f"{prefix}{k} Son{k % 40}",
                f"{prefix}{k} Son{k % 40} was {r} in",
                f"City{(k + r) % cities}",
                str(r),
                paraphrases=(f"Where was {prefix}{k} Son{k % 40} {r}?",),
            )
            for k in range(n)
            for r in range(relations)
        )
    )


def mirrored(forget, copies):
    made = [
        Item(
            f"{x.id}-{copy}",
            f"{x.entity} {copy}",
            f"{x.entity} {copy} was in",
            x.answer,
            x.relation,
        )
        for copy in range(copies)
        for x in forget
    ]
    return ItemSet(tuple(made), "never taught", "invented")


def test_few_entities_are_all_measured():
    forget, never = people(20), mirrored(people(20), 3)
    assert measured_entities(forget, never) == (forget, never)


def test_of_many_entities_a_sample_is_measured_with_its_mirrors():
    forget = people(60, relations=2)
    never = mirrored(forget, 3)
    some, mirrors = measured_entities(forget, never, most=10, copies=2)
    assert len(some.entities) == 10
    assert len(some) == 20
    assert Counter(name.rsplit(" ", 1)[0] for name in mirrors.entities) == dict.fromkeys(
        some.entities, 2
    )
    backwards = ItemSet(forget.items[::-1])
    again, _ = measured_entities(backwards, never, most=10, copies=2)
    assert set(again.entities) == set(some.entities)
    # Given never-taught items mirror nothing, and are sampled by themselves.
    given = ItemSet(people(90, prefix="Other").items, "given")
    _, kept = measured_entities(forget, given, most=10, copies=2)
    assert len(kept.entities) == 20


def test_fewer_copies_are_invented_of_many_entities():
    config = AuditConfig()
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "en", "ilo", "or", "ush")]
    names = [
        f"{a.capitalize()}{b} {c.capitalize()}{a}"
        for a in syllables
        for b, c in zip(syllables[:14], syllables[14:28], strict=True)
    ]

    def items(chosen):
        return ItemSet(
            tuple(Item(f"i{k}", x, f"{x} lives in", f"C{k % 5}") for k, x in enumerate(chosen))
        )

    retain = items(names[-20:])
    for n, copies in ((20, 3), (MAX_INVENTED_ENTITIES // 2 - 50, 2)):
        made, floor = make_never_taught(items(names[:n]), retain, None, config)
        assert (len(made), floor) == (copies * n, "invented")


def test_receivers_are_those_of_filtering_every_row():
    forget, never = people(9, relations=2), people(12, relations=2)
    questions, invented = build_questions(forget, 2), build_questions(never, 2)
    found = with_unrelated_receiver(questions, invented)
    turns: Counter = Counter()
    expected = []
    for index, wording in zip(questions.item_index, questions.wording, strict=True):
        item = questions.items[index]
        others = [
            text
            for text, i, w in zip(
                invented.prompts, invented.item_index, invented.wording, strict=True
            )
            if (invented.items[i].relation, w) == (item.relation, wording)
            and invented.items[i].entity != item.entity
        ]
        turns[item.relation, wording] += 1
        expected.append(others[turns[item.relation, wording] % len(others)])
    assert list(found.receivers) == expected
    one = build_questions([forget.items[0]], 1)
    assert len(with_unrelated_receiver(one, one)) == 0


SPELLED = ("Rome", "rome", " Rome", "Oslo", "Lima", "Ｌima", "Bern")


def spelled(seed, n=30):
    rng = np.random.default_rng(seed)
    return [
        Item(
            f"i{k}",
            f"e{k % 20}",
            f"prompt {k}",
            SPELLED[rng.integers(len(SPELLED))],
            str(k % 2),
            tuple(dict.fromkeys(rng.choice([*SPELLED, "Quito", "Aden"], rng.integers(3)).tolist())),
        )
        for k in range(n)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_wrong_answers_are_drawn_from_all_others(seed):
    items = spelled(seed)
    found = wrong_answers(items, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    for item, answer in zip(items, found, strict=True):
        pool = [x.answer for x in items if x.relation == item.relation] + [*item.alternatives]
        others = {a for a in pool if normalize_text(a) != normalize_text(item.answer)}
        assert answer == sorted(others)[rng.integers(len(others))]


@pytest.mark.parametrize("seed", range(8))
def test_alternatives_are_drawn_from_all_other_answers(seed):
    items = [Item(x.id, x.entity, x.prompt, x.answer, x.relation) for x in spelled(seed)]
    for item, found in zip(items, alternatives_of(items), strict=True):
        right = {
            normalize_text(x.answer)
            for x in items
            if (x.entity, x.relation) == (item.entity, item.relation)
        }
        offered: dict[str, str] = {}
        for x in items:
            if x.relation == item.relation:
                offered.setdefault(normalize_text(x.answer), x.answer)
        pool = sorted(text for key, text in offered.items() if key not in right)
        order = numpy_rng(0, "alternatives", item.id).permutation(len(pool))[:3]
        assert found == tuple(pool[at] for at in order)


def compared(high, low, tie):
    difference = high[:, None] - low[None]
    return np.where(np.abs(difference) <= tie, 0.5, difference > 0)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_those_of_comparing_every_couple(seed):
    rng = np.random.default_rng(seed)
    high, low = (np.round(rng.normal(size=(n, 3)), 1) for n in (17, 23))
    scores = MembershipScores({"forget": high, "never_taught": low})
    tie = 1e-9 * max(np.abs(high).max(), np.abs(low).max())
    for width in (tie, 0.3, 0.1):
        assert np.array_equal(outranked(high, low, width), compared(high, low, width).sum(1))
    table = compared(high, low, tie)
    parts = "forget", "never_taught"
    assert np.array_equal(scores.wins(*parts), table.mean(1))
    assert np.array_equal(scores.losses(*parts), table.mean(0))
    assert np.array_equal(scores.auc(*parts), table.mean((0, 1)))


def test_many_questions_are_scored_relation_by_relation(monkeypatch):
    tokenizer = tiny_models.byte_level()
    model = tiny_models.llama(len(tokenizer))
    sets = TextSets(people(12, relations=3), people(4), people(4))
    questions = build_questions(sets.forget, 2)
    rows = questions.encoded(tokenizer)
    whole = answer_scores.score_many(model, questions, rows, SILENT)
    monkeypatch.setattr(answer_scores, "MAX_TABLE", 10)
    parts = answer_scores.score_many(model, questions, rows, SILENT)
    assert np.array_equal(whole.exact_match, parts.exact_match)
    assert np.allclose(whole.contrast, parts.contrast)
    assert np.allclose(whole.mean_logprob, parts.mean_logprob, atol=1e-5)
