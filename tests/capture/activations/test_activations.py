"""Kept positions are the right ones, whatever the batch around them looked like."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.activations.capture import Activations, capture_activations, capture_images
from capture.activations.passes import CPU_TOKENS_PER_THREAD
from capture.activations.positions import select_positions
from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks
from capture.network.sites import find_sites
from evidence.errors import InputError
from tests.helpers.model_families import TEXT, VOCABULARY, WIDTH, Cnn, pixels, rows, tiny

# Other batch shapes, other order of additions.
assert_close = partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
SUBJECTS = [2, 5, 1, 0, 3, 0, 11, 4, 1]


def alone(model, sites, ids):
    """(site, position, d): one row by itself, unpadded, nothing stopped or picked."""
    where, got = find_sites(model), {}
    handles = []
    for name in sites:
        place = where.resolve(name)

        def before(module, args, name=name, place=place):
            got[name] = place.read(args[0]).clone()

        def after(module, args, output, name=name, place=place):
            whole = output if isinstance(output, torch.Tensor) else output[0]
            got[name] = place.read(whole).clone()

        if place.side == "in":
            handles.append(place.module.register_forward_pre_hook(before))
        else:
            handles.append(place.module.register_forward_hook(after))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: value[0].numpy() for name, value in got.items()}


def expected_positions(positions, length, start, subject):
    return {
        "last_prompt": [start - 1],
        "last": [length - 1],
        "last_subject": [subject],
        "answer": list(range(start, length)),
    }.get(positions if isinstance(positions, str) else "", positions)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("tokens", [1, 40, 4096])
@pytest.mark.parametrize("family", TEXT)
def test_every_named_position_equals_each_row_run_alone(family, tokens, padding):
    model, data = tiny(family), rows()
    places = find_sites(model).places
    sites = [name for name, place in places.items() if place.is_plain and place.side != "pattern"]
    reference = [alone(model, sites, ids) for ids in data.ids]
    for positions in ("last_prompt", "last", "last_subject", "answer", [0, -1], "mean"):
        got = capture_activations(
            model,
            data,
            sites,
            positions,
            subject_end=SUBJECTS,
            batch_tokens=tokens,
            padding=padding,
        )
        for name in sites:
            values = got.site(name)
            assert values.dtype == np.float32 and len(values) == len(data)
            for row, ids in enumerate(data.ids):
                one = reference[row][name]
                if positions == "mean":
                    assert_close(values[row], one.mean(0))
                    continue
                places = expected_positions(
                    positions, len(ids), data.answer_start[row], SUBJECTS[row]
                )
                found = values[row][None] if values.ndim == 2 else values[row]
                assert_close(found[: len(places)], one[places], err_msg=f"{name} {positions}")
                if positions == "answer":
                    assert got.mask is not None
                    assert got.mask[row].sum() == len(places)
                    assert not found[len(places) :].any()


def test_without_an_answer_the_last_token_ends_the_prompt():
    data = Sequences(rows().ids, tuple(len(ids) for ids in rows().ids))
    model = tiny("llama")
    prompt = capture_activations(model, data, ["resid.1"], "last_prompt")
    last = capture_activations(model, data, ["resid.1"], "last")
    assert np.array_equal(prompt.values, last.values)


@pytest.mark.parametrize(
    ("tokens", "most"), [(10 * CPU_TOKENS_PER_THREAD, CPU_TOKENS_PER_THREAD), (100, 100)]
)
def test_no_batch_on_a_cpu_holds_more_than_makes_it_faster(tokens, most, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, sizes = tiny("llama"), []
    data = Sequences(((1, 2, 3, 4, 5),) * 500, (5,) * 500)
    embed = model.model.embed_tokens.forward
    monkeypatch.setattr(
        model.model.embed_tokens, "forward", lambda ids: sizes.append(ids.numel()) or embed(ids)
    )
    # Padded on the left nothing is shared between rows.
    capture_activations(model, data, ["resid.1"], "last", batch_tokens=tokens, padding="left")
    assert most / 2 < max(sizes) <= most and sum(sizes) == 2500


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_mixture_of_lengths_is_right_on_both_sides(data):
    model = MODELS.setdefault("gpt2", tiny("gpt2"))
    token = st.integers(0, VOCABULARY - 1)
    ids = data.draw(st.lists(st.lists(token, min_size=1, max_size=20), min_size=1))
    padding = data.draw(st.sampled_from(["left", "right"]))
    tokens = data.draw(st.integers(1, 100))
    sequences = Sequences(tuple(map(tuple, ids)), tuple(len(row) for row in ids))
    got = capture_activations(
        model, sequences, ["resid.2"], "last", batch_tokens=tokens, padding=padding
    )
    for row, values in zip(ids, got.site("resid.2"), strict=True):
        expected = alone(model, ["resid.2"], row)["resid.2"][-1]
        assert_close(values, expected)


MODELS = {}


@pytest.mark.parametrize("family", TEXT)
def test_the_model_is_left_as_found(family):
    model = tiny(family).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    capture_activations(model, rows(), ["resid.1", "head.0.1"], "mean")
    assert model.training and count_hooks(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_dropout_is_off_while_capturing():
    model = tiny("bert").train()
    assert model.config.hidden_dropout_prob > 0
    one = capture_activations(model, rows(), ["resid.2"])
    other = capture_activations(model, rows(), ["resid.2"])
    assert np.array_equal(one.values, other.values)


def test_the_output_layer_never_runs_on_whole_rows():
    model, shapes = tiny("llama"), []
    handle = model.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    capture_activations(model, rows(), ["resid.2", "final"])
    assert not shapes
    got = capture_activations(model, rows(), ["resid.2", "logits"])
    handle.remove()
    assert {shape[1:] for shape in shapes} == {(1, WIDTH)}
    assert sum(shape[0] for shape in shapes) == 9
    assert got.site("logits").shape == (9, VOCABULARY)


def test_the_pass_stops_after_the_deepest_site():
    model, ran = tiny("gpt2"), []
    for layer, block in enumerate(model.get_submodule("transformer.h").children()):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    capture_activations(model, rows(), ["attn.1", "resid.0"])
    assert set(ran) == {0}


def test_no_whole_hidden_state_outlives_its_block(monkeypatch):
    kept = []
    from capture.activations import passes

    original = passes.record

    def spy(model, sites, pick, **options):
        def note(site, value):
            result = pick(site, value)
            kept.append((result.numel(), value.numel()))
            return result

        return original(model, sites, note, **options)

    monkeypatch.setattr(passes, "record", spy)
    capture_activations(tiny("llama"), rows(), ["resid.0", "resid.1"])
    assert all(part < whole for part, whole in kept)
    assert sum(part for part, _ in kept) == 2 * 9 * WIDTH


def test_results_do_not_depend_on_the_sites_asked_for_together():
    model = tiny("neox")
    names = ["resid.2", "embed", "mlp.1"]
    together = capture_activations(model, rows(), names)
    assert together.sites == tuple(names)
    for name in names:
        one = capture_activations(model, rows(), [name])
        assert np.array_equal(one.site(name), together.site(name))


def test_half_precision_models_give_float32():
    model = tiny("llama").bfloat16()
    assert capture_activations(model, rows(), ["resid.1"]).values.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "last_promt"}, "unknown name"),
        ({"positions": "last_subject"}, "subject"),
        ({"positions": [0, 2]}, "1 rows lack the requested positions"),
        ({"positions": -3}, "1 rows"),
        ({"sites": ["resid.7"]}, "no site"),
        ({"sites": []}, "no sites"),
        ({"sequences": Sequences((), ())}, "no rows"),
        ({"sequences": Sequences(((1, 2), ()), (2, 0))}, "empty row"),
        (
            {"sequences": Sequences(((1, 2),), (0,)), "positions": "last_prompt"},
            "lack the requested positions",
        ),
        ({"sequences": Sequences(((1, 99),), (2,))}, "tokenizer"),
        ({"sequences": Sequences((tuple(range(1, 61)) * 2,), (60,))}, "120 tokens"),
        ({"sequences": Sequences(((1, 2),), (2,)), "positions": "answer"}, "have no answer"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_leaves_no_hook(change, message):
    model = tiny("gpt2")
    request = {"sequences": rows(), "sites": ["resid.1"], "positions": "last"} | change
    with pytest.raises(InputError, match=message):
        capture_activations(model, request["sequences"], request["sites"], request["positions"])
    assert count_hooks(model) == 0


def test_positions_are_worked_out_from_each_rows_own_end():
    data = Sequences(((1, 2, 3), (4, 5, 6, 7, 8)), (2, 3))
    for positions, expected in ((-1, [[2], [4]]), ([0, -2], [[0, 1], [0, 3]])):
        index = select_positions(data, positions).index
        assert index is not None and index.tolist() == expected
    answer = select_positions(data, "answer")
    assert answer.index is not None and answer.mask is not None
    assert answer.index.tolist() == [[2, 0], [3, 4]]
    assert answer.mask.tolist() == [[True, False], [True, True]]


def test_sites_of_several_widths_are_read_one_by_one():
    got = capture_activations(tiny("llama"), rows(), ["resid.1", "head.1.0"])
    assert got.site("head.1.0").shape == (9, 6)
    with pytest.raises(InputError, match="width"):
        _ = got.values
    with pytest.raises(InputError, match="not captured"):
        got.site("resid.0")


def test_chunks_make_up_the_whole():
    got = capture_activations(tiny("llama"), rows(), ["resid.0", "resid.2"])
    assert isinstance(got, Activations) and got.values.shape == (2, 9, WIDTH)
    parts = list(got.chunks("resid.2", 4))
    assert [len(part) for part in parts] == [4, 4, 1]
    assert np.array_equal(np.concatenate(parts), got.site("resid.2"))
    assert "2 sites" in repr(got) and len(got) == 9


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_images_through_a_vision_transformer(batch):
    model, images = tiny("vit"), pixels()
    sites = ["embed", "resid.0", "attn.2", "mlp.1", "resid.2"]
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    first = capture_images(model, images, sites, "first", batch_size=batch)
    mean = capture_images(model, images, sites, "mean", batch_size=batch)
    flat = capture_images(model, images, sites, "flat", batch_size=batch)
    third = capture_images(model, images, sites, 3, batch_size=batch)
    expected = output.hidden_states[1].numpy()
    assert_close(first.site("resid.0"), expected[:, 0])
    assert_close(mean.site("resid.0"), expected.mean(1))
    assert_close(third.site("resid.0"), expected[:, 3])
    assert_close(flat.site("resid.0"), expected.reshape(len(images), -1))
    logits = capture_images(model, images, ["logits"], batch_size=batch).site("logits")
    assert_close(logits, output.logits.numpy())


def test_images_through_a_convolutional_network():
    model, images = Cnn(), pixels()
    sites = find_sites(model).names
    got = capture_images(model, images, sites)
    with torch.no_grad():
        maps = torch.relu(model.first(images))
        output = model(images)
    assert_close(got.site("resid.0"), maps.mean((2, 3)))
    assert_close(got.site("logits"), output)
    flat = capture_images(model, images, ["resid.0"], "flat").site("resid.0")
    assert_close(flat, maps.flatten(1))
    first = capture_images(model, images, ["resid.0"], "first").site("resid.0")
    assert_close(first, maps[:, :, 0, 0])
    assert count_hooks(model) == 0


@pytest.mark.parametrize("pool", ["median", 500])
def test_an_impossible_pool_is_refused(pool):
    with pytest.raises(InputError, match="pool"):
        capture_images(tiny("vit"), pixels(), ["resid.0"], pool)


def test_no_images_are_refused():
    with pytest.raises(InputError, match="no images"):
        capture_images(tiny("vit"), pixels(0), ["resid.0"])
