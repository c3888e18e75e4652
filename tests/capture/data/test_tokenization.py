"""Answers sit where they should, whatever a tokenizer does to spaces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from capture.data.items import Item
from capture.data.tokenization import (
    encode,
    encode_items,
    joining_space,
    prompt_of,
    skip_joining_space,
    subject_ends,
)
from evidence.errors import InputError
from testbeds.worlds.code_text import make_tokenizer
from tests.helpers.tiny_models import byte_level, metaspace, word_level

TOKENIZERS = {
    "byte": byte_level(),
    "metaspace": metaspace(),
    "closed": metaspace(close=True),
    "word": word_level(),
}
CASES = [
    ("The capital city of Peru is", "Lima."),
    ("The capital city of Peru is", "New York,"),
    ("The capital city of Peru is", " Lima."),
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def split(tokenizer, prompt, answer):
    rows = encode(tokenizer, [prompt], [answer])
    start = rows.answer_start[0]
    return list(rows.ids[0][:start]), list(rows.ids[0][start:])


@pytest.mark.parametrize(("prompt", "answer"), CASES)
def test_the_row_is_the_joined_text_and_starts_with_the_prompt(tokenizer, prompt, answer):
    before, after = split(tokenizer, prompt, answer)
    closing = [tokenizer.eos_token_id] if tokenizer is TOKENIZERS["closed"] else []
    assert before + closing == tokenizer(prompt)["input_ids"]
    joined = tokenizer(f"{prompt} {answer.strip()}")["input_ids"]
    assert before + after + closing == joined
    assert tokenizer.decode(after).split() == answer.split()


@pytest.mark.parametrize(
    ("name", "space"),
    [
        *(("byte", space) for space in (" ", "  ", "\n", "\t", " \n")),
        *(("metaspace", space) for space in (" ", "  ")),
    ],
)
def test_a_prompt_that_ends_in_whitespace_gets_no_second_space(name, space):
    tokenizer = TOKENIZERS[name]
    prompt = "The capital city of Peru is" + space
    before, after = split(tokenizer, prompt, "Lima.")
    assert before == tokenizer(prompt)["input_ids"]
    text = tokenizer.decode(before + after, skip_special_tokens=True)
    assert text == prompt + "Lima."


def test_an_answer_with_its_own_space_gets_no_second():
    tokenizer = TOKENIZERS["byte"]
    assert split(tokenizer, "Peru is", " Lima") == split(tokenizer, "Peru is", "Lima")
    _, after = split(tokenizer, "Peru is", "\nLima")
    assert tokenizer.decode(after) == "\nLima"


@given(
    st.text(min_size=1, max_size=12).filter(str.strip),
    st.text(min_size=1, max_size=12).filter(str.strip),
)
def test_any_text_comes_back_from_byte_level_tokens(prompt, answer):
    tokenizer = TOKENIZERS["byte"]
    before, after = split(tokenizer, prompt, answer)
    gap = joining_space(prompt, answer)
    assert before == tokenizer(prompt)["input_ids"]
    assert after
    assert tokenizer.decode(before + after) == prompt + gap + answer


@pytest.mark.parametrize(
    ("prompt", "answer", "gap"),
    [
        ("The capital of France is", "Paris", " "),
        ("法国的首都是", "巴黎", ""),
        ("フランスの首都は", "パリ", ""),
        ("เมืองหลวงของฝรั่งเศสคือ", "ปารีส", ""),
        ("ເມືອງຫຼວງຂອງຝຣັ່ງແມ່ນ", "ປາຣີ", ""),
        ("រដ្ឋធានីនៃបារាំងគឺ", "ប៉ារីស", ""),
        ("ပြင်သစ်နိုင်ငံ၏မြို့တော်မှာ", "ပါရီ", ""),
        ("프랑스의 수도는", "파리", " "),  # Korean has spaces
        ("Столица Франции —", "Париж", " "),
        ("फ़्रांस की राजधानी", "पेरिस", " "),
        # Latin beside Chinese or Japanese, and English prompts with such answers.
        ("法国的首都是", "Paris", ""),
        ("总部设在巴黎的是UNESCO", "组织", ""),
        ("他出生于1990", "年", ""),
        ("Question: 法国的首都是哪里?\nAnswer:", "巴黎", " "),
        ("The capital of France is", "巴黎", " "),
        ("เกิดเมื่อปี", "1990", " "),
        # Full-width signs, brackets and quotation marks.
        ("问题：法国的首都是哪里？\n答案：", "巴黎", ""),
        ("答案：", "Paris", ""),
        ("他说「", "你好", ""),
        ("The capital (", "Paris", ""),
        ("Sie sagte “", "Paris", ""),
        ('He said "', "Paris", ""),
        ('He said "yes"', "and", " "),
        ("It's the students'", "choice", " "),
    ],
)
def test_prompt_and_answer_are_joined_as_they_are_written(prompt, answer, gap):
    assert joining_space(prompt, answer) == gap
    before, after = split(TOKENIZERS["byte"], prompt, answer)
    assert TOKENIZERS["byte"].decode(before + after) == prompt + gap + answer
    assert TOKENIZERS["byte"].decode(after) == gap + answer


def test_a_sentence_piece_is_not_joined_by_a_space_mark():
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False)
    raw.train_from_iterator(["法国的首都是巴黎", "首都是巴黎"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    before, after = split(tokenizer, "法国的首都是", "巴黎")
    assert "▁" not in tokenizer.convert_ids_to_tokens(after)[0]
    assert tokenizer.decode(before + after) == "法国的首都是巴黎"


def test_the_subject_ends_within_a_text_without_spaces():
    tokenizer = TOKENIZERS["byte"]
    prompt = "王小明出生于"
    (end,) = subject_ends(tokenizer, [Item("a", "王小明", prompt, "巴黎")])
    assert tokenizer.decode(list(encode(tokenizer, [prompt]).ids[0][: end + 1])) == "王小明"


def test_special_tokens_are_those_of_a_plain_text_and_no_more():
    opened = encode(TOKENIZERS["metaspace"], ["Peru is"], ["Lima."]).ids[0]
    assert opened.count(1) == 1
    assert opened[0] == 1
    for answers in (None, ["Lima."]):
        closed = encode(TOKENIZERS["closed"], ["Peru is"], answers).ids[0]
        assert 2 not in closed
        assert closed[0] == 1


def test_special_tokens_written_in_a_text_are_kept():
    # A tokenizer that closes nothing by itself: the closing mark is the user's.
    assert encode(TOKENIZERS["metaspace"], ["Peru is</s>"]).ids[0][-1] == 2
    byte = TOKENIZERS["byte"]
    _, after = split(byte, "Peru is", "Lima<|endoftext|>")
    assert after[-1] == byte.eos_token_id


def test_a_prompt_alone_has_its_answer_start_after_the_last_token():
    rows = encode(TOKENIZERS["byte"], ["The capital", "New York, Vienna"])
    assert rows.answer_start == tuple(len(ids) for ids in rows.ids)
    assert len(encode(TOKENIZERS["byte"], [])) == 0


def test_a_space_that_every_answer_begins_with_counts_with_the_prompt():
    signs = make_tokenizer()  # one token a sign
    rows = encode(signs, ["amber otter:", "red fox:"], ["40712", "4"])
    past = skip_joining_space(signs, rows)
    assert past.ids == rows.ids
    assert [
        (signs.decode(list(ids[:start])), signs.decode(list(ids[start:])))
        for ids, start in zip(past.ids, past.answer_start, strict=True)
    ] == [("amber otter: ", "40712"), ("red fox: ", "4")]
    # Already past it, there is nothing to step over.
    assert skip_joining_space(signs, past) == past


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("byte", ["Lima.", "Oslo"]),  # the space is glued to the word
        ("byte", ["New York,", "Lima."]),  # to one of the two words
        ("word", ["Lima.", "New York,"]),
    ],
)
def test_where_answers_begin_otherwise_nothing_moves(name, answers):
    tokenizer = TOKENIZERS[name]
    rows = encode(tokenizer, ["The capital city of Peru is"] * len(answers), answers)
    assert skip_joining_space(tokenizer, rows) == rows
    alone = encode(tokenizer, ["The capital city of Peru is"])
    assert skip_joining_space(tokenizer, alone) == alone


@pytest.mark.parametrize("answer", ["", "  ", "\n"])
def test_an_empty_answer_is_refused(tokenizer, answer):
    with pytest.raises(InputError, match="answer to 'Peru is' is empty"):
        encode(tokenizer, ["Peru is"], [answer])


def test_an_answer_of_unknown_words_is_refused():
    with pytest.raises(InputError, match="'Quito' to 'Peru is' cannot be tokenized"):
        encode(TOKENIZERS["word"], ["Peru is"], ["Quito"])
    with pytest.raises(InputError, match="cannot be tokenized"):
        encode(TOKENIZERS["metaspace"], ["Peru is"], ["東京"])


def test_an_empty_prompt_and_uneven_lists_are_refused():
    with pytest.raises(InputError, match="has no tokens"):
        encode(TOKENIZERS["byte"], [""], ["Lima"])
    with pytest.raises(InputError, match="differ in number"):
        encode(TOKENIZERS["byte"], ["Peru is"], ["Lima", "Oslo"])


def test_items_are_encoded_by_prompt_or_by_paraphrase():
    item = Item("a", "Peru", "The capital city of Peru is", "Lima.", paraphrases=("Peru is",))
    tokenizer = TOKENIZERS["byte"]
    assert encode_items(tokenizer, [item]) == encode(tokenizer, [item.prompt], ["Lima."])
    assert encode_items(tokenizer, [item], 0) == encode(tokenizer, ["Peru is"], ["Lima."])
    for wrong in (1, -1):
        with pytest.raises(InputError, match="no paraphrase"):
            prompt_of(item, wrong)


@pytest.mark.parametrize("name", ["byte", "metaspace"])
def test_the_subject_ends_at_the_last_token_of_its_last_mention(name):
    tokenizer = TOKENIZERS[name]
    item = Item("a", "Anna Keller", "Anna Keller, yes Anna Keller was born in", "Oslo")
    (end,) = subject_ends(tokenizer, [item])
    ids = encode_items(tokenizer, [item]).ids[0]
    read = tokenizer.decode(list(ids[: end + 1]), skip_special_tokens=True)
    assert read == "Anna Keller, yes Anna Keller"
    with pytest.raises(InputError, match="does not name its entity"):
        subject_ends(tokenizer, [Item("b", "Peru", "Where?", "Lima")])
