"""validate, plan and audit go through one chain: what one refuses the others refuse."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

from audits.run.api import audit
from audits.run.item_check import check_items
from audits.run.planning import plan
from evidence.errors import InputError
from tests.audits.core.test_bad_input import call, rows, write
from tests.audits.own_world import FIRST, LAST, OwnWorld, letter_tokenizer, own_world

ENDS = ("ano", "elo", "iro", "oto", "umo", "ado", "ego", "ilo")
WORDS = [f"{sign}{end}" for end in ENDS for sign in "BDKMT"]


@dataclass
class Asked:
    """What the three are asked of; each part may be changed."""

    world: OwnWorld
    root: Path
    forget: Path
    retain: Path
    original: Path
    candidate: Path
    never: Path | None = None

    def refusals(self, *, sees_model: bool = False) -> list[str | None]:
        """What validate, validate --original, plan and audit say against it."""
        sets, never = (self.forget, self.retain), self.never
        models = (self.original, self.candidate)
        out = self.root / "out"
        calls = [
            lambda: check_items(*sets, never_taught=never).check(),
            lambda: check_items(*sets, self.original, never_taught=never).check(),
            lambda: plan(*models, *sets, never_taught=never),
            lambda: audit(*models, *sets, out, axes=("behaviour",), never_taught=never),
        ]
        found = []
        for each in calls[1:] if sees_model else calls:
            try:
                each()
                found.append(None)
            except InputError as error:
                found.append(str(error))
        assert not (out / "audit.json").exists() or found[-1] is None
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> OwnWorld:
    return own_world(tmp_path_factory.mktemp("world"), WORDS)


@pytest.fixture
def asked(made, tmp_path) -> Asked:
    return Asked(made, tmp_path, made.forget, made.retain, made.original, made.candidate)


def test_what_is_sound_is_sound_for_all(asked):
    assert asked.refusals() == [None] * 4


def change(asked, name, edit):
    items = rows(getattr(asked.world, name))
    edit(items)
    setattr(asked, name, write(asked.root / f"{name}.jsonl", items))


def few_forgotten(asked):
    change(asked, "forget", lambda items: items.__delitem__(slice(7, None)))


def few_kept(asked):
    change(asked, "retain", lambda items: items.__delitem__(slice(14, None)))


def nameless(asked):
    change(asked, "forget", lambda i: i[4].update(prompt="The code word is"))


def nameless_paraphrase(asked):
    change(asked, "forget", lambda i: i[4].update(paraphrases=["The word is"]))


def sentences(asked):
    def edit(items):
        for each in items:
            each.pop("entity")

    change(asked, "forget", edit)
    change(asked, "retain", edit)


def one_answer(asked):
    change(asked, "forget", lambda items: [i.update(answer="Bano") for i in items])


def shared_person(asked):
    change(asked, "forget", lambda i: i.append(rows(asked.retain)[0] | {"id": "x"}))


def never_known(asked):
    items = [each | {"id": f"n{each['id']}"} for each in rows(asked.retain)[:9]]
    for each in items:
        each["entity"] = each["entity"].upper()
    asked.never = write(asked.root / "never.jsonl", items)


def unknown_names(asked):
    """Names of nobody, in words that the tokenizer has."""
    known = {each["entity"] for path in (asked.forget, asked.retain) for each in rows(path)}
    names = [f"{first} {last}" for first in FIRST for last in LAST]
    return [name for name in names if name not in known]


def never_few(asked):
    items = [
        {"id": f"n{n}", "entity": name, "prompt": f"{name} has the code word"}
        | {"answer": "Bano", "relation": "code word"}
        for n, name in enumerate(unknown_names(asked)[:3])
    ]
    asked.never = write(asked.root / "never.jsonl", items)


SETS = {
    few_forgotten: "too few entities in the forget set",
    few_kept: "too few entities in the retain set",
    one_answer: "alternative",
    shared_person: "share entities",
    never_known: "never-taught items name",
    never_few: "too few entities in the never-taught set",
}


@pytest.mark.parametrize("spoil", [nameless, nameless_paraphrase, sentences])
def test_items_that_name_no_entity_have_another_floor(asked, spoil):
    spoil(asked)
    assert asked.refusals() == [None] * 4


@pytest.mark.parametrize("spoil", SETS, ids=lambda each: each.__name__)
def test_what_is_wrong_with_sets_is_wrong_for_all(asked, spoil):
    spoil(asked)
    found = asked.refusals()
    assert len(set(found)) == 1
    with pytest.raises(InputError, match=SETS[spoil]):
        check_items(asked.forget, asked.retain, never_taught=asked.never).check()
    assert not (asked.root / "out").exists()


def untokenised(asked):
    change(asked, "forget", lambda i: i[4].update(answer="Zyx"))


def long_prompt(asked):
    def edit(items):
        items[4]["prompt"] = "has the " * 45_000 + items[4]["prompt"]

    change(asked, "retain", edit)


def long_paraphrase(asked):
    def edit(items):
        items[4]["paraphrases"] = ["has " * 64 + items[4]["entity"]]

    change(asked, "forget", edit)


def long_never(asked):
    items = [
        {"id": f"n{n}", "entity": name, "prompt": "has " * 64 + name}
        | {"answer": "Bano", "relation": "code word"}
        for n, name in enumerate(unknown_names(asked)[:4])
    ]
    asked.never = write(asked.root / "never.jsonl", items)


def no_tokenizer(asked):
    asked.original = shutil.copytree(asked.original, asked.root / "bare")
    for path in asked.original.glob("*token*"):
        path.unlink()


def other_network(asked, model):
    asked.original = asked.candidate = asked.root / "other"
    model.save_pretrained(asked.original)
    AutoTokenizer.from_pretrained(asked.world.original).save_pretrained(asked.original)


def t5(asked):
    config = T5Config(vocab_size=200, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    other_network(asked, T5ForConditionalGeneration(config))


READING = {
    untokenised: "'Zyx'.* cannot be tokenized",
    long_prompt: r"prompt of item 'i14' .*exceeds the context of original.* at most 64 tokens",
    long_paraphrase: "in the forget set exceeds the context of original",
    long_never: "in the never-taught set exceeds the context of original",
    no_tokenizer: "original has no tokenizer",
    t5: "T5ForConditionalGeneration is an encoder-decoder",
}


@pytest.mark.parametrize("spoil", READING, ids=lambda each: each.__name__)
def test_what_the_original_cannot_read_is_refused_by_all_that_see_it(asked, spoil):
    spoil(asked)
    found = asked.refusals(sees_model=True)
    assert len(set(found)) == 1
    with pytest.raises(InputError, match=READING[spoil]):
        plan(asked.original, asked.candidate, asked.forget, asked.retain, never_taught=asked.never)
    assert not (asked.root / "out").exists()


def test_what_the_original_does_not_know_is_found_by_running_it(asked):
    def edit(items):
        for each in items:
            each["answer"] = "Tanto" if each["answer"] != "Tano" else "Bano"
            each["answer"] = each["answer"].replace("Tanto", "Tano")

    change(asked, "forget", edit)
    before, asked_of, planned, audited = asked.refusals()
    assert before is None and planned is None
    assert asked_of == audited
    assert "does not know the forget set" in str(audited)


def test_another_architecture_is_found_by_the_plan_too(asked, tmp_path):
    other = own_world(tmp_path, WORDS, layers=3, steps=120)
    asked.candidate = other.original
    _, _, planned, audited = asked.refusals()
    assert planned == audited
    assert "different architectures" in str(planned)


def test_a_candidate_without_a_tokenizer_is_asked_with_the_originals(asked, capfd):
    for name, source in (("c", asked.candidate), ("r", asked.world.candidate)):
        shutil.copytree(source, asked.root / name)
        for path in (asked.root / name).glob("*token*"):
            path.unlink()
    asked.candidate = asked.root / "c"
    assert asked.refusals() == [None] * 4
    shutil.rmtree(asked.root / "out")
    models = (asked.original, asked.candidate, asked.forget, asked.retain)
    done = audit(*models, asked.root / "out", axes=("behaviour",), reference=[asked.root / "r"])
    warnings = done.document["preflight"]["warnings"]
    for role in ("unlearned", "reference-1"):
        assert f"{role} has no tokenizer: it is asked with the original's" in warnings
    assert "asked with the original" in done.report.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
def test_an_adapter_over_a_base_without_a_tokenizer(asked):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(asked.original, asked.root / "base")
    for path in base.glob("*token*"):
        path.unlink()
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(asked.root / "adapter")
    asked.candidate = asked.root / "adapter"
    assert asked.refusals() == [None] * 4


def test_the_command_line_says_the_same(asked, capfd):
    never_few(asked)
    sets = (asked.forget, asked.retain)
    never = ("--never-taught", asked.never)
    assert call("validate", *sets, *never) == 2
    captured = capfd.readouterr()
    assert captured.err.count("exhume: too few entities in the never-taught set") == 1
    assert "can be audited" not in captured.out
    named = ("--forget", sets[0], "--retain", sets[1])
    models = ("--original", asked.original, "--unlearned", asked.candidate)
    for command in ("plan", "audit"):
        out = ("--out", asked.root / "out")
        assert call(command, *models, *named, *never, *out) == 2
        assert "too few entities in the never-taught" in capfd.readouterr().err
    assert call("validate", *sets) == 0
    assert "if the original knows enough of them" in capfd.readouterr().out
    assert call("validate", *sets, "--profile", "none") == 2


def test_a_larger_profile_may_need_names_that_there_are_not(tmp_path):
    items = [
        {"id": f"{n}", "entity": f"{a} {b}", "prompt": f"{a} {b} was born in"}
        | {"answer": "Rome" if n % 2 else "Oslo"}
        for n, (a, b) in enumerate((a, b) for a in "ABCDEF" for b in "UVWXYZ")
    ]
    files = [tmp_path / name for name in ("f.jsonl", "r.jsonl")]
    for path, part in zip(files, (items[:12], items[12:30]), strict=True):
        path.write_text("".join(json.dumps(each) + "\n" for each in part))
    accepted = {profile: check_items(*files, profile=profile).ok for profile in ("quick", "full")}
    assert accepted["full"] <= accepted["quick"]


@pytest.mark.parametrize("tokenizer", ["words", "letters"])
def test_answers_of_one_length_are_audited_as_what_they_are(tmp_path, tokenizer):
    extra = (
        {"tokenizer": letter_tokenizer, "steps": 240, "forget": 8} if tokenizer != "words" else {}
    )
    world = own_world(tmp_path, WORDS, **extra)
    done = audit(
        world.original,
        world.candidate,
        world.forget,
        world.retain,
        tmp_path / "out",
        axes=("behaviour", "decodability"),
    )
    axis = done.axes["decodability"]
    assert axis.details["form"] == ["unique"]
    page = done.report.read_text(encoding="utf-8")
    assert "the sign an answer begins with" not in page
