"""Amounts of text and images that an audit will score, before it runs."""

from collections.abc import Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from audits.asking.elicitation import preferred_way
from audits.core.config import AuditConfig
from audits.core.cost import Amount
from audits.core.inputs import ImageInputs, Inputs
from audits.core.item_sets import make_never_taught, within_budget
from audits.core.scores import Part
from audits.modalities.image_sets import MIN_NEVER_TAUGHT, NEVER_TAUGHT_FACTOR, RETAIN_FACTOR
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.data.tokenization import encode
from capture.network.network_size import meta_model
from capture.scoring.free_answers import MAX_NEW_TOKENS, MORE_TOKENS
from capture.scoring.scorers import SCORERS, choose_scorer


def text_amounts(inputs: Inputs, config: AuditConfig, n_prompts: int) -> dict[Part, Amount]:
    """Rows and prompt tokens of every part, with up to ``n_prompts`` prompts an item."""
    retain = within_budget(inputs.retain, config)
    never_taught, _ = make_never_taught(inputs.forget, retain, inputs.never_taught, config)
    tokenizer = inputs.original.tokenizer

    def amount(items: ItemSet) -> Amount:
        prompts: Sequence[str] = build_questions(items, n_prompts).prompts
        return Amount(len(prompts), sum(map(len, encode(tokenizer, prompts).ids)))

    return {
        Part.FORGET: amount(inputs.forget),
        Part.RETAIN: amount(retain),
        Part.NEVER_TAUGHT: amount(never_taught),
    }


def text_spoken(inputs: Inputs, config: AuditConfig, amounts: Mapping[Part, Amount]) -> int:
    """Upper bound of the tokens that one model reads and says in free answers."""
    asking, name = preferred_way(inputs.original.tokenizer, inputs.forget, config)
    items = inputs.forget.items
    scorer = SCORERS[name] if name != "auto" else choose_scorer(items, asking.chat)[0]
    if not scorer.generates:
        return 0
    prompts = [item.prompt for item in items]
    rows = encode(inputs.original.tokenizer, prompts, [item.answer for item in items])
    longest = max(len(ids) - start for ids, start in zip(rows.ids, rows.answer_start, strict=True))
    said = min(longest + MORE_TOKENS, MAX_NEW_TOKENS)
    asked = (amounts[Part.FORGET], amounts[Part.NEVER_TAUGHT])
    return sum(each.units + each.rows * said for each in asked)


def image_amounts(inputs: ImageInputs, config: AuditConfig, n_prompts: int) -> dict[Part, Amount]:
    """Images of every part; an image has one prompt."""
    max_images = config.budget.retain_entities
    forget = min(len(inputs.forget), max_images)
    retain = min(len(inputs.retain), RETAIN_FACTOR * max_images)
    never_taught = max(NEVER_TAUGHT_FACTOR * forget, MIN_NEVER_TAUGHT)
    if inputs.never_taught is not None:
        never_taught = len(inputs.never_taught)
    counts = {Part.FORGET: forget, Part.RETAIN: retain, Part.NEVER_TAUGHT: never_taught}
    return {part: Amount(count, count) for part, count in counts.items()}


def text_work(inputs: Inputs, parameters: int) -> float:
    """Floating-point operations of a forward pass over one token."""
    return 2.0 * parameters


def image_work(inputs: ImageInputs, parameters: int) -> float:
    """Floating-point operations of a forward pass over one image, counted on the meta device."""
    image = torch.empty(1, *inputs.forget.pixels.shape[1:], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_model(inputs.original)(image)
    return float(counter.get_total_flops())
