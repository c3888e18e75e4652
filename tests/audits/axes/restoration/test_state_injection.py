"""The published test: what each arm puts in, and that it follows the readout alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attribution.sae.autoencoder import Sae
from audits.axes.restoration.autoencoder import (
    ExpertAutoencoder,
    autoencoder_site,
    check_model,
    check_reconstruction,
    expert_latents,
    states_by_prompt,
    train_autoencoder,
)
from audits.axes.restoration.scoring import EncodedQuestions
from audits.axes.restoration.state_injection import (
    ALPHAS,
    ARMS,
    CONTROLS,
    InjectionSource,
    describe,
    inject_prompts,
    prompt_injection,
    untrained_model,
)
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.questions import build_questions
from capture.network.hooks import count_hooks
from capture.network.sites import find_sites
from evidence.errors import InputError

SITE = "resid.0"


class Plain:
    """Tied, without bias: the interface of sae-lens without its import."""

    def __init__(self, width, latents, seed=0):
        rng = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(latents, width, generator=rng) / width**0.5
        self.W_enc = self.W_dec.T.clone()
        self.cfg = SimpleNamespace(d_in=width, d_sae=latents, architecture=lambda: "plain")

    def encode(self, x):
        return torch.relu(x @ self.W_enc)

    def decode(self, z):
        return z @ self.W_dec


@pytest.fixture(scope="module")
def bench(world):
    original = open_checkpoint(world.original)
    asked = EncodedQuestions.of(build_questions(read_items(world.forget), 1), original.tokenizer)
    model = original.load()
    width = find_sites(model).d_model
    assert width is not None
    sae = Sae(Plain(width, 60), SITE)
    names = sorted(set(asked.classes))
    experts = {n: np.array([i % 60, (i + 7) % 60]) for i, n in enumerate(names)}
    coder = ExpertAutoencoder(sae, experts, 0.1)
    source = InjectionSource.of(model, asked, coder, 0)
    assert source.site == SITE
    return SimpleNamespace(
        original=original,
        model=model,
        asked=asked,
        coder=coder,
        source=source,
        given=states_by_prompt(model, asked.rows, SITE),
    )


def one_row(bench, arm, alpha, row=1, shift=1.0):
    """What an arm makes of one prompt whose states lie ``shift`` off the original's."""
    edit = prompt_injection(arm, bench.source, alpha)
    own = torch.from_numpy(bench.given[row]) - shift
    return own, edit(own[None], np.array([row]))[0], torch.from_numpy(bench.given[row])


def test_at_strength_one_the_last_state_is_copied_and_the_rest_follows_latents(bench):
    own, new, given = one_row(bench, "as published", 1.0)
    torch.testing.assert_close(new[-1], given[-1])
    index = bench.coder.experts[bench.asked.classes[1]]
    sae = bench.coder.sae.module
    wanted = (given - own) @ sae.W_enc[:, index] @ sae.W_dec[index]
    torch.testing.assert_close(new[:-1] - own[:-1], wanted[:-1])
    own, new, _ = one_row(bench, "latents only", 5.0)
    torch.testing.assert_close(new - own, 5 * wanted, rtol=1e-4, atol=1e-4)
    own, new, given = one_row(bench, "state only", 5.0)
    torch.testing.assert_close(new[:-1], own[:-1])
    torch.testing.assert_close(new[-1], own[-1] + 5 * (given[-1] - own[-1]))


def test_controls_match_the_latents_in_length_and_differ_in_direction(bench):
    _, real, _ = one_row(bench, "latents only", 1.0)
    for arm in CONTROLS[:2]:
        own, new, _ = one_row(bench, arm, 1.0)
        torch.testing.assert_close((new - own).norm(dim=1), (real - own).norm(dim=1))
        assert float((new - real).abs().max()) > 1e-3


def test_where_the_candidate_is_the_original_nothing_is_put_in(bench):
    for arm in ARMS[:5]:
        own, new, _ = one_row(bench, arm, 10.0, shift=0.0)
        torch.testing.assert_close(new, own)


def test_other_items_states_end_where_the_own_prompt_ends(bench):
    _, new, _ = one_row(bench, "other items' states", 1.0, row=0)
    ends = np.stack([each[-1] for each in bench.given])
    near = np.abs(ends - new[-1].numpy()).max(1).argmin()
    assert bench.asked.classes[near] != bench.asked.classes[0]


def test_the_published_test_follows_the_readout_and_not_what_a_model_holds(bench, planted):
    """A late suppression holds all and comes back with nothing; its states are same."""
    late = open_checkpoint(planted("last_block_relabel")).load()
    blank = untrained_model(bench.model, 0)
    assert blank is not None
    found = {
        "unlearned": inject_prompts(late, bench.source),
        "never-trained": inject_prompts(blank, bench.source),
    }
    arms = found["unlearned"].arms
    assert set(arms) == set(ARMS) and len(arms["as published"].share) == len(ALPHAS)
    assert found["unlearned"].before < 0.1
    assert arms["as published"].best == pytest.approx(0.0, abs=0.05)
    blank_rate = found["never-trained"].main.best
    assert blank_rate is not None and blank_rate < 0.2
    note = describe(SITE, found, "unlearned")
    assert note.startswith("State injection") and "never-trained" in note
    assert inject_prompts(late, bench.source) == found["unlearned"]
    assert count_hooks(bench.model) == 0


def test_without_a_loss_there_is_no_rate_and_without_a_coder_states_alone(bench):
    bare = InjectionSource.of(bench.model, bench.asked, None, 0)
    assert bare.site == SITE and bare.mean_latents is None and bench.source.mean_latents == 2.0
    found = inject_prompts(bench.model, bare)
    assert set(found.arms) == {"state only", "other items' states"}
    assert found.main.rate is None and found.main.share[0] > 0.9
    assert "not asked" in describe(SITE, {"unlearned": found}, "unlearned")


def test_a_never_trained_model_is_the_same_for_the_same_seed(bench):
    before = torch.random.get_rng_state()
    one, two, other = (untrained_model(bench.model, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one is not None and two is not None and other is not None
    states = [dict(each.state_dict()) for each in (one, two, other)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not all(torch.equal(states[0][n], states[2][n]) for n in states[0])
    # A class without a configuration cannot be built again.
    assert untrained_model(torch.nn.Linear(2, 2), 0) is None


def test_experts_are_the_best_of_an_answer_without_those_that_serve_most(bench, world):
    retain = read_items(world.retain)
    asked = EncodedQuestions.of(build_questions(retain, 1), bench.original.tokenizer)
    classes = asked.classes
    name = next(n for n in sorted(set(classes)) if (classes == n).sum() > 1)
    latents = np.zeros((len(classes), 6))
    latents[classes == name, 2] = 1.0
    latents[:, 4] = 1.0
    found = expert_latents(latents, asked, 2)
    assert found[name].tolist() == [2]
    assert all(4 not in each for each in found.values())


def test_the_latents_of_all_answers_leave_half_for_the_control(bench):
    many = {str(i): np.arange(i, i + 20) for i in range(30)}
    coder = ExpertAutoencoder(bench.coder.sae, many, 0.1)
    assert len(coder.all_experts) == 30 and set(coder.all_experts) == set(range(30))


def test_an_autoencoder_of_another_site_or_width_is_refused(bench):
    sae, model = bench.coder.sae, bench.model
    check_model(sae, model)
    with pytest.raises(InputError, match=r"no site 'resid\.77'"):
        check_model(Sae(sae.module, "resid.77"), model)
    with pytest.raises(InputError, match="another width than resid"):
        check_model(Sae(Plain(sae.d_in + 1, 9), SITE), model)


def test_a_coder_that_does_not_reconstruct_a_model_is_refused_in_words(bench):
    # Nothing was trained here, so most of the variance stays unexplained.
    fit = check_reconstruction(bench.coder, bench.model, bench.asked, "unlearned")
    assert fit.fvu is not None and fit.fvu > 0.3
    assert "refused" in fit.refusal and "unlearned" in fit.refusal


def test_without_sae_lens_the_axis_says_what_was_not_tried(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("audits.axes.restoration.autoencoder.find_spec", lambda name: None)
    coder, words = train_autoencoder(bench.model, "", bench.asked, bench.asked, tmp_path, 0)
    assert coder is None and "sae-lens is not installed" in words
    assert autoencoder_site(find_sites(bench.model)) == SITE
