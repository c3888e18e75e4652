"""Facts in scripts without spaces are known and audited as any other."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from audits.core.answers import distinct_share
from audits.run.api import audit
from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from testbeds.worlds.random_models import random_model
from tests.audits.own_world import letter_tokenizer, teach

CHINESE = [a + b for a in "王李张刘陈杨黄" for b in ("小明", "雪梅", "建国", "秀英")]
JAPANESE = [a + b for a in ("佐藤", "鈴木", "高橋", "田中") for b in "翔蓮陽湊葵凛結"]
THAI = (
    "สมชาย สมศรี วิชัย วิภา ประเสริฐ อนุชา นภา มาลี สุดา กมล ธนา พิมพ์ รัตนา ศักดิ์ดา ชูชาติ "
    "บุญมี จันทร์ ดวงใจ เอกชัย ปรีชา อารี สุรพล มานะ วันดี ไพศาล เกษม ลำดวน ทองคำ"
).split()
CITIES = {
    "Chinese": "北京市 上海市 成都市 西安市 武汉市 杭州市 青岛市 大连市",
    "Japanese": "大阪 京都 さっぽろ ナゴヤ 神戸 ふくおか センダイ 長崎",
    "Thai": "กรุงเทพ เชียงใหม่ ขอนแก่น ภูเก็ต อยุธยา ลำปาง สงขลา ตรัง",
}
WORLDS = {
    "Chinese": (CHINESE, ("{}出生于", "人们说{}的故乡是")),
    "Japanese": (JAPANESE, ("{}の出身地は", "みんなは{}の故郷を")),
    "Thai": (THAI, ("{}เกิดที่", "บ้านเกิดของ{}คือ")),
}
FORGET = 10


def byte_tokenizer(texts):
    """Byte-level pairs, as in most models of today."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[UNK]", "[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]")


def taught(language, make_tokenizer):
    """Items about people, a tokenizer, and a model that read them as text without spaces."""
    names, (prompt, paraphrase) = WORLDS[language]
    cities = CITIES[language].split()
    items = [
        Item(
            f"i{number}",
            name,
            prompt.format(name),
            cities[number % len(cities)],
            "birthplace",
            paraphrases=(paraphrase.format(name),),
        )
        for number, name in enumerate(names)
    ]
    texts = [f"{text}{x.answer}" for x in items for text in (x.prompt, *x.paraphrases)]
    tokenizer = make_tokenizer(texts)
    torch.manual_seed(0)
    model = random_model("llama", vocabulary=len(tokenizer), width=32, layers=2, heads=4, pad=1)
    spoken = tokenizer(texts)["input_ids"]
    asked = encode_items(tokenizer, items).ids + encode_items(tokenizer, items, 0).ids
    # What is taught and asked are the tokens of the text as it is written.
    assert {tokenizer.decode(list(ids)) for ids in asked} == set(texts)
    assert sum(list(ids) in spoken for ids in asked) > 0.9 * len(asked)
    teach(model, tokenizer, items, 150)
    return items, tokenizer, model


@pytest.mark.parametrize("language", WORLDS)
@pytest.mark.parametrize("make_tokenizer", [byte_tokenizer, letter_tokenizer])
def test_facts_without_spaces_are_known_and_not_unlearned(tmp_path, language, make_tokenizer):
    items, tokenizer, model = taught(language, make_tokenizer)
    forget, retain = ItemSet(tuple(items[:FORGET])), ItemSet(tuple(items[FORGET:]))
    assert score_answers(model, encode_items(tokenizer, forget)).greedy.all()
    candidate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.mul_(0.999)
    done = audit(
        model,
        candidate,
        forget,
        retain,
        tmp_path / "out",
        tokenizer=tokenizer,
        axes=("behaviour",),
        device="cpu",
    )
    assert done.verdict == "not_unlearned"
    assert done.document["preflight"]["known"]["forget_items"] == FORGET


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["and and and and"], 0.25),
        (["one two two"], 2 / 3),
        (["的的的的的的的的"], 1 / 8),
        (["北京是一座城市"], 1.0),
        (["ああああ and and"], 2 / 6),
        (["", "  "], 0.0),
    ],
)
def test_repeated_characters_are_degenerate_text(texts, share):
    assert distinct_share(texts) == pytest.approx(share)
