"""The same activations by another library, in a process of their own.

Both libraries change the process that imports them: nnsight patches torch and reads
``-v`` from the command line, TransformerLens changes what is logged. Run as
``python -m tests.helpers.activation_peers nnsight|transformer_lens [FOLDER]``; prints a
JSON object, case to largest absolute difference, and facts about what was unwrapped.
"""

import copy
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from capture.activations.capture import Activations, capture_activations, capture_images
from capture.activations.library_names import hook_names
from capture.activations.passes import accepted_inputs
from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences, pad
from capture.network.hooks import count_hooks, record
from capture.network.sites import find_sites
from evidence.errors import InputError
from tests.helpers.model_families import Cnn, pixels, rows, tiny

FAMILIES = ("llama", "gpt2", "neox", "bert", "vit")


def built(family):
    if family == "cnn":
        return Cnn().eval()
    if family == "bert":  # TransformerLens knows BERT with its output layer only
        torch.manual_seed(0)
        config = tiny("bert").config
        assert isinstance(config, BertConfig)
        return BertForMaskedLM(config).eval()
    return tiny(family)


def blocks(model):
    """The stream and what is added to it, under names that every library has."""
    kinds = ("embed", "resid", "attn", "mlp", "final")
    return [name for name in find_sites(model).names if name.split(".")[0] in kinds]


def ours(model, sites):
    """(site, row, d) by our own hooks, at the last token or the class token."""
    if family_of(model) == "text":
        return capture_activations(model, rows(), sites, "last")
    return capture_images(model, pixels(), sites, "first")


def family_of(model):
    return (
        "image"
        if not hasattr(model, "get_input_embeddings")
        or (getattr(model.config, "model_type", "") == "vit")
        else "text"
    )


def at_last(value, batch):
    """(row, d) at each row's last token, of the unpadded rows one by one."""
    last = batch.attention_mask.sum(1) - 1
    return value[torch.arange(len(last)), last]


def difference(expected, found, sites):
    return max(
        float((torch.as_tensor(expected.site(name)) - found[name]).abs().max()) for name in sites
    )


# nnsight ------------------------------------------------------------------------------


def by_nnsight(model, sites, sequences):
    """The values at ``sites`` read by an nnsight trace over a right-padded batch."""
    import nnsight

    wrapped = nnsight.NNsight(model)
    where = find_sites(model)
    # By module and not by name: BERT has parts called "output", which nnsight reads as
    # the output of the part around them.
    envoys = {id(envoy._module): envoy for envoy in wrapped.modules()}
    # Values have to be asked for in the order in which they come to be.
    places = [where.resolve(name) for name in sites]
    got = {}
    text = family_of(model) == "text"
    batch = pad(sequences) if text else None
    inputs: dict[str, Any] = {}
    if batch is not None:
        inputs |= accepted_inputs(model, batch.model_inputs)
    args = () if text else (pixels(),)
    with torch.no_grad():
        with wrapped.trace(*args, **inputs):
            for place in places:
                envoy = envoys[id(place.module)]
                value = envoy.input if place.side == "in" else envoy.output
                got[place.name] = nnsight.save(value)
    plain = {n: v if isinstance(v, torch.Tensor) else v[0] for n, v in got.items()}
    if not text:
        return {name: first_place(value) for name, value in plain.items()}, wrapped
    return {name: at_last(value, batch) for name, value in plain.items()}, wrapped


def first_place(value):
    if value.dim() == 4:
        return value[:, :, 0, 0]
    return value if value.dim() == 2 else value[:, 0]


def check_nnsight():
    results = {}
    for family in (*FAMILIES, "cnn"):
        model = built(family)
        sites = blocks(model)
        expected = ours(model, sites)
        found, wrapped = by_nnsight(model, sites, rows())
        results[family] = difference(expected, found, sites)
        checkpoint = open_checkpoint(wrapped)
        unwrapped = ours(checkpoint.load(), sites)
        results[f"{family} unwrapped"] = difference(
            expected, found | {name: torch.as_tensor(unwrapped.site(name)) for name in sites}, sites
        )
        results[f"{family} hooks"] = count_hooks(checkpoint.load())
    for family in ("llama", "gpt2", "neox", "vit"):
        results[f"{family} names"] = by_nnsight_names(built(family), eager=family != "vit")
    results["patched .save"] = float(hasattr(3, "save"))
    return results


def everywhere(model, sites):
    """Values by our own hooks, whole."""
    is_image = family_of(model) == "image" and not hasattr(model, "hooked")
    args = (pixels(),) if is_image else (torch.tensor(rows().ids[:1]),)
    with torch.no_grad(), record(model, sites) as got:
        model(*args)
    return args, got


def largest(expected, found):
    assert expected and expected.keys() == found.keys()
    assert all(expected[name].shape == found[name].shape for name in expected)
    return max(float((expected[name] - found[name]).abs().max()) for name in expected)


def by_nnsight_names(model, *, eager):
    """Every site by its expression of the table, one trace each, as the order is ours."""
    import nnsight

    if eager:
        model.set_attn_implementation("eager")
    table = hook_names(model).dropna(subset="nnsight").set_index("site").nnsight
    missing = set(find_sites(model).names) - set(table.index)
    assert {name.split(".")[0] for name in missing} <= (set() if eager else {"pattern"})
    args, expected = everywhere(model, list(table.index))
    wrapped, found = nnsight.NNsight(model), {}
    for site, expression in table.items():
        with torch.no_grad():
            with wrapped.trace(*args):
                found[site] = nnsight.save(eval(f"wrapped.{expression}", {"wrapped": wrapped}))
    return largest(expected, found)


def smol_nnsight(model, sequences, sites):
    return by_nnsight(model, sites, sequences)[0]


# TransformerLens ----------------------------------------------------------------------


def bridged(model):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    # The bridge rewrites what it wraps, so it gets a copy.
    return build_bridge_from_module(
        copy.deepcopy(model), type(model).__name__, hf_config=model.config, tokenizer=None
    )


def hook_name(site):
    kind, _, layer = site.partition(".")
    names = {"resid": "hook_resid_post", "attn": "hook_attn_out", "mlp": "hook_mlp_out"}
    if kind == "embed":
        return "blocks.0.hook_resid_pre"
    return "unembed.hook_in" if kind == "final" else f"blocks.{layer}.{names[kind]}"


def by_bridge(bridge, sites, sequences):
    """The values at ``sites`` from the bridge's cache over a right-padded batch."""
    hooks = {name: hook_name(name) for name in sites}
    wanted = set(hooks.values())

    def cached(inputs, **named):
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                inputs, names_filter=lambda name: name in wanted, **named
            )
        assert wanted <= set(cache.keys()), wanted - set(cache.keys())
        return cache

    if sequences is None:
        cache = cached(pixels())
        return {name: first_place(cache[hook]) for name, hook in hooks.items()}
    batch = pad(sequences)
    cache = cached(batch.input_ids, attention_mask=batch.attention_mask)
    return {name: at_last(cache[hook], batch) for name, hook in hooks.items()}


def by_hook_names(model):
    """Every site by its hook point of the table, from the bridge's cache of everything."""
    # As the bridge computes attention.
    model.set_attn_implementation("eager")
    bridge, table = bridged(model), hook_names(model)
    other = hook_names(bridge)
    assert other.transformer_lens.equals(table.transformer_lens)
    assert other.nnsight.isna().all() and other.pyvene.isna().all()
    points = table.dropna(subset="transformer_lens").set_index("site").transformer_lens
    (ids,), expected = everywhere(model, list(points.index))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids)
    found = {}
    for site, point in points.items():
        kind, *numbers = str(site).split(".")
        found[site] = cache[point][:, :, int(numbers[1])] if kind == "head" else cache[point]
    return largest(expected, found)


def normed(model, expected):
    """What the bridge calls a BERT attention's output: the normed sum, not the part."""
    arrays = dict(expected.arrays)
    before = torch.as_tensor(arrays["embed"])
    for layer, block in enumerate(model.bert.encoder.layer):
        added = before + torch.as_tensor(arrays[f"attn.{layer}"])
        with torch.no_grad():
            arrays[f"attn.{layer}"] = block.attention.output.LayerNorm(added).numpy()
        before = torch.as_tensor(arrays[f"resid.{layer}"])
    return Activations(expected.sites, arrays)


def check_transformer_lens():
    results = {}
    for family in FAMILIES:
        model = built(family)
        sites = blocks(model)
        expected = ours(model, sites)
        bridge = bridged(model)
        sequences = None if family == "vit" else rows()
        found = by_bridge(bridge, sites, sequences)
        if family == "bert":
            expected = normed(model, expected)
        results[family] = difference(expected, found, sites)
        rebuilt = open_checkpoint(bridge)
        state, back = model.state_dict(), rebuilt.load().state_dict()
        results[f"{family} rebuilt"] = max(
            float((state[name] - back[name]).abs().max()) for name in state
        )
        results[f"{family} hash"] = float(
            rebuilt.weights_hash != open_checkpoint(model).weights_hash
        )
        expected, unwrapped = ours(model, sites), ours(rebuilt.load(), sites)
        results[f"{family} unwrapped"] = max(
            float(abs(expected.site(name) - unwrapped.site(name)).max()) for name in sites
        )
    for family in ("llama", "gpt2", "neox", "gemma2", "bert"):
        results[f"{family} names"] = by_hook_names(built(family))
    results |= check_hooked()
    bridge = bridged(built("llama"))
    bridge.enable_compatibility_mode()
    try:
        open_checkpoint(bridge)
    except InputError:
        results["compatibility mode refused"] = 0.0
    else:
        results["compatibility mode refused"] = 1.0
    return results


def check_hooked():
    """``HookedTransformer``: our hooks on it against its own cache, and its sums."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_ctx=32,
        d_head=4,
        n_heads=4,
        d_vocab=61,
        act_fn="gelu",
        seed=0,
        init_weights=True,
    )
    hooked = HookedTransformer(config).eval()
    model = open_checkpoint(hooked).load()
    kinds = ("embed", "head", "resid", "attn", "mlp", "final", "logits")
    sites = [name for name in find_sites(model).names if name.split(".")[0] in kinds]
    worst, logits = 0.0, 0.0
    got = capture_activations(model, rows(), sites, "last")
    for row, ids in enumerate(rows().ids):
        with torch.no_grad():
            output, cache = hooked.run_with_cache(torch.tensor([ids]))
        assert output is not None and not isinstance(output, tuple)
        for name in sites:
            kind, *numbers = name.split(".")
            if kind == "head":
                value = cache[f"blocks.{numbers[0]}.attn.hook_z"][0, -1, int(numbers[1])]
            elif kind == "final":
                value = cache["ln_final.hook_normalized"][0, -1]
            elif kind == "logits":
                value = output[0, -1]
            else:
                value = cache[hook_name(name)][0, -1]
            far = float((torch.as_tensor(got.site(name)[row]) - value).abs().max())
            worst = max(worst, far)
        call = model(torch.tensor([ids])).logits
        logits = max(logits, float((call - output).abs().max()))
    table = hook_names(hooked).dropna(subset="transformer_lens").set_index("site")
    (ids,), expected = everywhere(model, list(table.index))
    _, cache = hooked.run_with_cache(ids)
    values = {site: cache[point] for site, point in table.transformer_lens.items()}
    for site in expected:
        if site.startswith("head."):
            values[site] = values[site][:, :, int(site.split(".")[2])]
    return {"hooked": worst, "hooked logits": logits, "hooked names": largest(expected, values)}


# SmolLM2 ------------------------------------------------------------------------------


def check_folder(library, folder):
    """The same on a real model, rows of mixed length, every layer."""
    checkpoint = open_checkpoint(folder)
    model = checkpoint.load()
    assert isinstance(model, PreTrainedModel)
    # The bridge always computes attention this way; another kernel rounds otherwise,
    # by 4e-4 where the last layer's values reach 500.
    model.set_attn_implementation("eager")
    texts = [
        "The capital city of France is",
        "Water boils at a temperature of one hundred degrees",
        "Once",
        "Anna Keller was born in Lisbon and lives in Vienna with her two brothers",
    ]
    ids = tuple(tuple(checkpoint.tokenizer(text).input_ids) for text in texts)
    sequences = Sequences(ids, tuple(len(row) for row in ids))
    sites = blocks(model)
    expected = capture_activations(model, sequences, sites, "last")
    if library == "nnsight":
        found = smol_nnsight(model, sequences, sites)
    else:
        found = by_bridge(bridged(model), sites, sequences)
    return {name: difference(expected, found, [name]) for name in sites}


def main(library, folder=None):
    with tempfile.TemporaryDirectory() as place:
        settings = Path(place) / "nnsight.yaml"
        settings.write_text("APP:\n  PYMOUNT: false\n")
        os.environ["NNSIGHT_CONFIG"] = str(settings)
        warnings.simplefilter("ignore")
        if folder is not None:
            results = check_folder(library, folder)
        elif library == "nnsight":
            results = check_nnsight()
        else:
            results = check_transformer_lens()
    print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
