"""What is said of architectures: checks that find a site at a wrong place, and the table."""

from dataclasses import replace

import pytest

from benchmarks.harness import site_checks
from benchmarks.harness.architectures import tiny_model
from benchmarks.suites.real_inputs.architectures import outcome
from capture.network.sites import find_sites

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def moved(sites, **changes):
    """The sites with fields of some places changed."""
    places = dict(sites.places)
    for name, change in changes.items():
        name = name.replace("_", ".")
        places[name] = replace(places[name], **change)
    return replace(sites, places=places)


def test_right_sites_have_no_fault():
    for model_type in ("llama", "bert", "mamba"):
        model = tiny_model(model_type)
        assert site_checks.faults(model, find_sites(model), 2) == []


@pytest.mark.parametrize(
    ("model_type", "change", "fault"),
    [
        ("granite", lambda m: {"attn_1": {"factor": 1.0}}, "not the step"),
        ("gemma2", lambda m: {"mlp_0": {"module": m.model.layers[0].mlp}}, "no norm reads"),
        ("olmo2", lambda m: {"attn_0": {"module": m.model.layers[0].self_attn}}, "no norm reads"),
        ("cohere", lambda m: {"logits": {"factor": 1.0}}, "logits are not"),
        ("gemma2", lambda m: {"logits": {"cap": None}}, "logits are not"),
        ("llama", lambda m: {"resid_0": {"module": m.model.layers[0].mlp}}, "hidden state"),
        ("bert", lambda m: {"mlp_1": {"module": m.bert.encoder.layer[1]}}, "no norm reads"),
    ],
)
def test_a_site_at_a_wrong_place_is_found(model_type, change, fault):
    model = tiny_model(model_type)
    wrong = moved(find_sites(model), **change(model))
    assert any(fault in each for each in site_checks.faults(model, wrong, 2))


def test_heads_of_another_projection_are_found():
    model = tiny_model("phi3")
    sites = find_sites(model)
    fused = model.get_submodule("model.layers.0.self_attn.qkv_proj")
    places = {
        name: replace(place, module=fused) if name.startswith("head.0.") else place
        for name, place in sites.places.items()
    }
    found = site_checks.faults(model, replace(sites, places=places), 2)
    assert "attention does not change by the sum over heads" in found


def test_another_number_of_blocks_is_found():
    model = tiny_model("gpt2")
    assert site_checks.faults(model, find_sites(model), 3) == [
        "2 blocks, and the configuration states 3"
    ]


@pytest.mark.parametrize(
    ("model_type", "kind", "status", "reason"),
    [
        ("llama", "LlamaForCausalLM", "understood", ""),
        ("bert", "BertLMHeadModel", "normed", ""),
        ("doge", "DogeForCausalLM", "stream only", "no module outputs"),
        ("bert masked", "BertForMaskedLM", "refused", "it is an encoder"),
        ("t5", "T5ForConditionalGeneration", "refused", "it is an encoder-decoder"),
        ("zamba2", "Zamba2ForCausalLM", "refused", "information bypasses"),
        ("llama", "NoSuchClass", "not built", "NoSuchClass"),
    ],
)
def test_an_architecture_is_put_where_it_belongs(model_type, kind, status, reason):
    found = outcome(model_type, kind)
    assert found.status == status
    assert reason in found.reason
