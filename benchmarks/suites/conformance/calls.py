"""Public functions, each as a call whose result is an array that can be compared.

A call gets a live model and the same rows in some form. ``by_rows`` are functions that batch rows
themselves; ``in_context`` are context managers around the user's own call of the model.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import exhume
from attribution.sae.autoencoder import Sae
from attribution.sae.features import ablation_effect, latent_attribution
from benchmarks.suites.conformance.models import LAYERS, WIDTH

IDS = ((5, 6, 7, 8), (9, 3), (11, 12, 13, 14, 15, 16, 2), (7, 7, 21, 40, 33))
STARTS = (3, 1, 5, 4)
ROWS = exhume.Sequences(IDS, STARTS)
SITES = ("embed", "resid_pre.1", "attn.1", "mlp.0", "resid.1", "head.1.2", "final")
MIDDLE = ("resid_mid.1", "neurons.0", "pattern.1")

Call = Callable[[Any, Any], Any]


def vector(seed: int = 0, rows: int | None = None) -> Tensor:
    """A random vector, or one a row."""
    shape = (WIDTH,) if rows is None else (rows, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_sae() -> Sae:
    """A random autoencoder of ``resid.1``."""
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return Sae(sae.eval(), "resid.1")


def prompt_pairs() -> Any:
    """Four aligned pairs."""
    corrupt = tuple((row[0] + 1, *row[1:]) for row in IDS)
    return exhume.PromptPairs(
        ROWS,
        exhume.Sequences(corrupt, STARTS),
        foils=(1, 2, 3, 4),
        entities=("a", "b", "c", "d"),
        ids=("a", "b", "c", "d"),
    )


def _sites(model: Any) -> Any:
    sites = exhume.find_sites(model)
    return [len(sites.of(kind)) for kind in ("resid", "attn", "mlp", "head", "pattern", "neurons")]


def _captured(*sites: str, positions: Any = "last") -> Call:
    def call(model: Any, rows: Any) -> Any:
        states = exhume.capture_activations(model, rows, sites, positions)
        return np.concatenate([states.site(name).reshape(len(IDS), -1) for name in sites], 1)

    return call


def _scores(model: Any, rows: Any) -> Any:
    return exhume.score_answers(model, rows).logprob


def _within(edit: Callable[[Any], Any], measure: Any = _scores) -> Any:
    def call(model: Any, rows: Any) -> Any:
        with edit(model):
            return measure(model, rows)

    return call


def _patched(model: Any, rows: Any) -> Any:
    donors = {"self": exhume.read_states(model, rows, ["resid.0"])}
    shifted = donors["self"]
    values = exhume.score_patched(model, rows, {"self": shifted})
    return values["self"]["resid.0"].logprob


def _lens(model: Any, rows: Any) -> Any:
    lens = exhume.logit_lens(model, rows, ["resid.0", f"resid.{LAYERS - 1}"], keep_logits=True)
    return np.asarray(lens.logits)


def _logit_attribution(model: Any, rows: Any) -> Any:
    return np.asarray(exhume.logit_attribution(model, rows, heads=False).values)


def _loss_recovered(model: Any, rows: Any) -> Any:
    found = exhume.loss_recovered(model, small_sae(), rows)
    return [found.plain, found.spliced, found.ablated]


def _value_vectors(model: Any, rows: Any) -> Any:
    traces = exhume.find_value_vectors(model, {"a": [5, 6], "b": [7, 8]}, k=4)
    return traces.to_frame().select_dtypes("number").to_numpy()


def _neurons(model: Any, rows: Any) -> Any:
    traces = exhume.find_knowledge_neurons(model, rows, ["a", "a", "b", "b"], k=4)
    return traces.to_frame().select_dtypes("number").to_numpy()


def _edges(model: Any, rows: Any) -> Any:
    return exhume.score_edges(model, prompt_pairs()).values


def _edges_without_gradients(model: Any, rows: Any) -> Any:
    with torch.inference_mode():
        return exhume.score_edges(model, prompt_pairs()).values


def _circuit(model: Any, rows: Any) -> Any:
    pairs = prompt_pairs()
    graph = exhume.score_edges(model, pairs).graph
    mask = np.arange(len(graph.edges)) % 2 == 0
    found = exhume.measure_circuit(model, pairs, mask, metric="kl")
    return [found.faithfulness, found.completeness]


def _finetuned(model: Any, rows: Any) -> Any:
    exhume.finetune_(model, rows, lr=1e-2, steps=2, seed=0)
    return _scores(model, rows)


def _unlearned(model: Any, rows: Any) -> Any:
    config = exhume.UnlearnConfig("grad_diff", lr=1e-2, steps=2)
    exhume.unlearn_(model, rows, rows, config, seed=0)
    return _scores(model, rows)


def _quantized(model: Any, rows: Any) -> Any:
    exhume.quantize_(model, "int8")
    return _scores(model, rows)


BY_ROWS: dict[str, Any] = {
    "find_sites": lambda model, rows: _sites(model),
    "capture_activations": _captured(*SITES),
    "capture_activations, all positions": _captured("resid.1", positions="all"),
    "capture_activations, logits": _captured("logits"),
    "capture_activations, resid_mid, neurons, pattern": _captured(*MIDDLE),
    "score_answers": _scores,
    "steer": _within(lambda model: exhume.steer(model, {"resid.0": vector().numpy()})),
    "steer, one vector a row": _within(
        lambda model: exhume.steer(model, {"resid.0": vector(rows=len(IDS))})
    ),
    "steer, last position": _within(
        lambda model: exhume.steer(model, {"resid.0": vector()}, 1.0, [-1]),
        _captured("resid.1", positions="all"),
    ),
    "patch, one vector a row": _within(
        lambda model: exhume.patch(model, {"resid.0": vector(rows=len(IDS))}), _captured("resid.1")
    ),
    "patch, resid_mid": _within(
        lambda model: exhume.patch(model, {"resid_mid.1": lambda value: value + 1})
    ),
    "patch, pattern": _within(
        lambda model: exhume.patch(model, {"pattern.1": lambda value: value.square()})
    ),
    "project_out": _within(lambda model: exhume.project_out(model, {"resid.0": vector()})),
    "score_edited": lambda model, rows: (
        exhume.score_edited(model, rows, {"resid.0": exhume.add_vector(vector())}).logprob
    ),
    "read_states, score_patched": _patched,
    "logit_lens": _lens,
    "logit_attribution": _logit_attribution,
    "spliced": _within(lambda model: exhume.spliced(model, small_sae(), keep_error=False)),
    "steer_latents": _within(lambda model: exhume.steer_latents(model, small_sae(), {3: 2.0})),
    "loss_recovered": _loss_recovered,
    "latent_attribution": lambda model, rows: latent_attribution(model, small_sae(), rows),
    "ablation_effect": lambda model, rows: ablation_effect(model, small_sae(), rows, [1, 2]),
    "find_value_vectors": _value_vectors,
    "find_knowledge_neurons": _neurons,
    "score_edges": _edges,
    "score_edges in inference_mode": _edges_without_gradients,
    "measure_circuit": _circuit,
    "finetune_": _finetuned,
    "unlearn_": _unlearned,
    "quantize_": _quantized,
}
"""Name to a function of a live model and of rows in any form."""


def recorded(model: Any, run: Callable[[], Tensor], real: Tensor) -> Any:
    """``record`` around the user's own call, at real tokens."""
    with torch.no_grad(), exhume.record(model, ["resid.1", "attn.2"]) as got:
        run()
    return torch.cat([got["resid.1"][real], got["attn.2"][real]]).float().numpy()


def gradient(model: Any, run: Callable[[], Tensor], real: Tensor) -> Any:
    """Gradient of a logit with respect to the recorded stream, at real tokens."""
    with exhume.record(model, ["resid.0"]) as got:
        logits = run()
    (found,) = torch.autograd.grad(logits[real].float()[:, 3].sum(), got["resid.0"])
    return found[real].float().numpy()


def steered(model: Any, run: Callable[[], Tensor], real: Tensor) -> Any:
    """Logits of the user's own call under ``steer``."""
    with torch.no_grad(), exhume.steer(model, {"resid.0": vector()}):
        return run()[real].float().numpy()


def spliced(model: Any, run: Callable[[], Tensor], real: Tensor) -> Any:
    """Logits of the user's own call with an autoencoder in place."""
    with torch.no_grad(), exhume.spliced(model, small_sae(), keep_error=False):
        return run()[real].float().numpy()


IN_CONTEXT: dict[str, Any] = {
    "record, own call": recorded,
    "record, gradient": gradient,
    "steer, own call": steered,
    "spliced, own call": spliced,
}
"""Name to a function of a live model, the user's call of it, and where real tokens are."""
