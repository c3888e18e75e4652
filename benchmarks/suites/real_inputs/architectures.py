"""A tiny model of every common architecture: are its sites what they say?"""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from benchmarks.harness import site_checks
from benchmarks.harness.architectures import tiny_model
from capture.checkpoints.causal import explain_not_causal
from capture.checkpoints.schemas.library_errors import quiet_transformers
from capture.network.contributions import CONTRIBUTIONS
from capture.network.sites import Sites, find_sites
from evidence.errors import InputError

SECONDS = 20
"""Limit of one architecture."""
# Beside the causal ones: vision-language models, and kinds that are refused.
OTHERS = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "bart encoder-decoder": "BartForConditionalGeneration",
    "bert masked": "BertForMaskedLM",
    "distilbert": "DistilBertModel",
    "clip": "CLIPModel",
}


# Status of an architecture and what it means, best first.
STATUSES = {
    "understood": "What the parts of a block add, at its sites, is the step of the residual "
    "stream; so it is with each part removed.",
    "normed": "A norm follows each addition, so that the step of the stream is no sum; each part "
    "is at its site, and removing it removes what the norm reads.",
    "stream only": "The sites of the stream are right; those of parts are refused with the reason.",
    "refused": "Refused in one sentence.",
    "not built": "transformers does not build a tiny one offline from its default configuration.",
    "wrong": "A site is not what it says.",
}


@dataclass(frozen=True)
class Outcome:
    """What becomes of one architecture.

    Attributes:
        model_type: Of its configuration.
        kind: Its class.
        status: One of ``STATUSES``.
        reason: Why it is refused, not built or wrong; of sites alone where they are refused.
        blocks: Number of blocks found.
        sites: Kinds of site.
    """

    model_type: str
    kind: str
    status: str
    reason: str = ""
    blocks: int = 0
    sites: tuple[str, ...] = ()


def outcome(model_type: str, kind: str) -> Outcome:
    """What becomes of a tiny model of an architecture, within the limit of time."""
    try:
        with _limit(SECONDS), quiet_transformers():
            return _outcome(model_type, kind)
    except TimeoutError:
        return Outcome(model_type, kind, "not built", f"not done in {SECONDS} s")


def _outcome(model_type: str, kind: str) -> Outcome:
    try:
        model = tiny_model(model_type, kind)
    except TimeoutError:
        raise
    except Exception as error:  # whatever the library raises is its reason
        return Outcome(model_type, kind, "not built", _short(error))
    config: Any = model.config
    reason = explain_not_causal(type(model), _settings(config))
    if reason:
        return Outcome(model_type, kind, "refused", f"it {reason}")
    try:
        sites = find_sites(model)
    except InputError as error:
        return Outcome(model_type, kind, "refused", refusal(error))
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    faults = site_checks.faults(model, sites, depth)
    kinds = tuple(dict.fromkeys(name.split(".")[0] for name in sites.names))
    status, reason = _status(sites, site_checks.is_normed(model, sites))
    if faults:
        status, reason = "wrong", "; ".join(faults)
    return Outcome(model_type, kind, status, reason, sites.n_layers, kinds)


def _status(sites: Sites, normed: bool) -> tuple[str, str]:
    reasons = {kind: why for kind, why in sites.refused.items() if kind in CONTRIBUTIONS}
    if reasons:
        return "stream only", next(iter(reasons.values()))
    left = "; ".join(f"{kind}: {why}" for kind, why in sites.refused.items())
    return ("normed" if normed else "understood"), left


def refusal(error: InputError) -> str:
    """The reason in the sentence of a refusal."""
    sentence = str(error).split(". Expected")[0].split("\n")[0]
    for start in (" is not understood: ", " cannot be checked: "):
        if start in sentence:
            return sentence.split(start, 1)[1]
    return sentence


def _settings(config: Any) -> Mapping[str, Any]:
    return config.to_dict()


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[-1].removeprefix("ValueError: ")
    return text[:160]


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
