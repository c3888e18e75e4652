"""Conversations become questions, or keep their turns where one question does not say it all."""

import json

import pytest

from capture.data.items import read_items
from evidence.errors import InputError

ASK, SAY = "Where was Ada Stone born?", "In Rome."
USER, ANSWER = {"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": ASK}, {"from": "gpt", "value": SAY}


@pytest.fixture
def read(tmp_path):
    def from_rows(*rows, name="facts.jsonl", **options):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_items(path, **options)

    return from_rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"messages": json.dumps([USER, ANSWER])},
        {"messages": [["user", ASK], ["assistant", SAY]]},
        {"messages": [USER], "answer": SAY},
        {"messages": [USER | {"content": [{"type": "text", "text": ASK}]}, ANSWER]},
        {"conversations": [HUMAN, GPT]},
        {
            "contents": [
                {"role": r, "parts": [{"text": t}]} for r, t in (("user", ASK), ("model", SAY))
            ]
        },
        {"conversation": [USER, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": SAY},
        {"prompt": [USER], "answer": SAY},
        {"prompt": ASK, "completion": " " + SAY},
        {"prompt": ASK, "response": SAY},
        {"prompt": f"Question: {ASK}\nAnswer:", "response": SAY},
        {"prompt": ASK, "output": SAY},
        {"input": ASK, "output": SAY},
        {"instruction": ASK, "input": "", "output": SAY},
        {"instruction": ASK, "context": "", "response": SAY, "category": ""},
    ],
    ids=lambda row: ",".join(row),
)
def test_one_question_is_a_plain_question(read, row):
    (item,) = read(row)
    assert (item.prompt, item.answer) == (f"Question: {ASK}\nAnswer:", SAY)
    assert item.messages == ()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"system": "Be brief.", "conversations": [HUMAN, GPT]},
        {"system": "Be brief.", "instruction": ASK, "output": SAY},
        {"prompt": [SYSTEM, USER], "answer": SAY},
    ],
    ids=lambda row: ",".join(row),
)
def test_a_system_prompt_is_kept(read, row):
    (item,) = read(row)
    assert item.messages == (("system", "Be brief."), ("user", ASK))
    assert item.prompt == f"Be brief.\nQuestion: {ASK}\nAnswer:"
    assert item.answer == SAY


def test_earlier_turns_are_kept_and_the_last_answer_is_the_fact(read):
    (item,) = read(
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                ANSWER | {"content": "Yes?"},
                USER,
                ANSWER,
            ]
        }
    )
    assert item.messages == (("user", "Hi"), ("assistant", "Yes?"), ("user", ASK))
    assert item.prompt == f"Question: Hi\nAnswer: Yes?\nQuestion: {ASK}\nAnswer:"


def test_an_instruction_has_its_input_below_it(read):
    (item,) = read({"instruction": "Name the town.", "input": ASK, "output": SAY})
    assert item.prompt == f"Question: Name the town.\n\n{ASK}\nAnswer:"


def test_a_response_answers_a_turn_whatever_its_last_sign(read):
    (item,) = read({"prompt": "Tell me where Ada Stone was born", "response": SAY})
    assert item.prompt == "Question: Tell me where Ada Stone was born\nAnswer:"
    (item,) = read({"prompt": "The town of Ada Stone", "response": SAY})
    assert item.prompt.startswith("Question: The town")
    (item,) = read({"prompt": f"<|user|>\n{ASK}<|assistant|>", "response": SAY})
    assert item.prompt == f"<|user|>\n{ASK}<|assistant|>"


def test_the_start_of_a_text_is_no_question(read):
    (item,) = read({"prompt": "Ada Stone was born in ", "completion": " Rome"})
    assert (item.prompt, item.answer) == ("Ada Stone was born in", "Rome")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [USER]}, "does not end in a question and its answer"),
        ({"messages": [USER, ANSWER, USER]}, "does not end in a question"),
        ({"messages": [ANSWER]}, "does not end in a question"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "no known role"),
        ({"messages": [USER | {"content": 7}, ANSWER]}, "text in every message"),
        ({"messages": [USER | {"content": [{"type": "image"}]}, ANSWER]}, "text in every message"),
    ],
)
def test_conversations_without_a_fact_are_refused(read, row, why):
    with pytest.raises(InputError, match=why):
        read({"messages": [USER, ANSWER]}, row)


def test_preference_pairs_are_refused_with_the_mapping_that_reads_them(read):
    pair = {"prompt": ASK, "chosen": SAY, "rejected": "In Oslo."}
    with pytest.raises(InputError, match="question=prompt,answer=chosen"):
        read(pair)
    with pytest.raises(InputError, match="question=prompt,answer=rejected"):
        read(pair | {"chosen": "I don't know.", "rejected": SAY})
    (item,) = read(pair, columns={"question": "prompt", "answer": "chosen"})
    assert (item.prompt, item.answer) == (f"Question: {ASK}\nAnswer:", SAY)
    turns = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "In Oslo."}]}
    with pytest.raises(InputError, match="messages=chosen"):
        read(turns)
    (item,) = read(turns, columns={"messages": "rejected"})
    assert item.answer == "In Oslo."
    (item,) = read(
        {"prompt": ASK, "chosen": [ANSWER], "rejected": [ANSWER]},
        columns={"question": "prompt", "answer": "chosen"},
    )
    assert (item.prompt, item.answer) == (f"Question: {ASK}\nAnswer:", SAY)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\nQUE<|im_end|>\n<|im_start|>assistant\nANS<|im_end|>\n",
        "<|endoftext|><|im_start|>user\nQUE<|im_end|>\n<|im_start|>assistant\nANS",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQUE<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nANS<|eot_id|>",
        "<bos><start_of_turn>user\nQUE<end_of_turn>\n<start_of_turn>model\nANS<end_of_turn>\n",
        "<|user|>\nQUE<|end|>\n<|assistant|>\nANS<|end|>",
        "<|user|>\nQUE</s>\n<|assistant|>\nANS</s>",
        "<s>[INST] QUE [/INST] ANS </s>",
        "### Human: QUE\n### Assistant: ANS",
        "### Instruction:\nQUE\n\n### Response:\nANS",
        "Question: QUE\nAnswer: ANS",
        "Q: QUE\nA: ANS",
        "User: QUE\nAssistant: ANS",
    ],
)
def test_a_rendered_conversation_is_a_question_and_no_running_text(read, text):
    (item,) = read({"text": text.replace("QUE", ASK).replace("ANS", SAY)})
    assert (item.prompt, item.answer) == (f"Question: {ASK}\nAnswer:", SAY)


def test_a_system_prompt_in_a_rendered_conversation_is_kept(read):
    text = f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{ASK} [/INST] {SAY} </s>"
    (item,) = read({"text": text})
    assert item.messages == (("system", "Be brief."), ("user", ASK))
    assert item.answer == SAY


def test_a_text_with_signs_of_a_template_is_never_cut_as_running_text(read):
    with pytest.raises(InputError, match="no conversation that ends in an answer"):
        read({"text": f"<|im_start|>user\n{ASK}<|im_end|>\n"})
    with pytest.raises(InputError, match="line 2: the text is no conversation"):
        read({"text": f"[INST] {ASK} [/INST] {SAY}"}, {"text": "one two three four five six"})
    prose = "The answer: a river. It ran on\nand on until the sea."
    assert read({"text": prose}).items[0].passage
