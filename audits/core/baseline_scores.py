"""Scores of one model at the output, before any axis looks inside."""

from dataclasses import dataclass

from audits.core.scores import Part, ScoreTable


@dataclass(frozen=True)
class GeneralText:
    """Scores on general text, in nats.

    Attributes:
        logprob_per_token: Mean log-probability a token.
        logprob_of_guessing: The same of the uniform distribution over all tokens.
    """

    logprob_per_token: float
    logprob_of_guessing: float


@dataclass(frozen=True)
class SiteRank:
    """Effective rank of the states of retain items at one site."""

    site: str
    effective_rank: float


@dataclass(frozen=True)
class Utility:
    """What a model is still good for, away from the forget set.

    Attributes:
        retain: (row,) 1 where a retain item is answered.
        general: Scores on general text; None where they are meaningless.
        prompts: Prompts of the free text.
        texts: Free text after each prompt.
        ranks: Effective rank of retain states, by site.
    """

    retain: tuple[int, ...]
    general: GeneralText | None
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    ranks: tuple[SiteRank, ...]


@dataclass(frozen=True)
class RoleBaseline:
    """Scores of one model.

    Attributes:
        tables: Metric to part to (row, 1) scores.
        mean_logprob: (forget row,) mean log-probability per answer token, in nats; text only.
        truth_ratio: (forget item,) truth ratio; text only.
        utility: None for references.
        said: (asked forget row,) what the model said; empty where it was not asked to speak.
    """

    tables: dict[str, dict[Part, ScoreTable]]
    mean_logprob: tuple[float, ...] = ()
    truth_ratio: tuple[float, ...] = ()
    utility: Utility | None = None
    said: tuple[str, ...] = ()
