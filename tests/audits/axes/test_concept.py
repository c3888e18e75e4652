"""The concept axis on models whose state is known by construction."""

from dataclasses import replace

import numpy as np
import pytest

from audits.axes.concept.axis import answer_concepts, fit_concepts, probe_of, run_concept
from audits.axes.decodability.tasks import make_tasks
from audits.axes.decodability.text_probes import ProbingData, capture_states, read_states
from audits.core.config import make_config
from audits.core.context import AuditedModel
from audits.run.planting import plant, planted_model
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from capture.data.invented_entities import invent_items
from capture.data.items import ItemSet, read_items
from evidence.progress import SILENT
from evidence.results import AxisResult
from evidence.seeds import numpy_rng


class Bench:
    """A small world opened as an audit opens it."""

    def __init__(self, world, root):
        self.world, self.root = world, root
        self.original = AuditedModel.of("original", open_checkpoint(world.original))
        self.tokenizer = open_checkpoint(world.original).tokenizer
        self.forget, self.retain = read_items(world.forget), read_items(world.retain)
        self.never = invent_items(self.forget, self.retain, numpy_rng(0, "never"))
        self.config = make_config({"seed": 0})
        self.store = ActivationStore(root / "store")
        names = self.retain.entities
        cut = int(0.8 * len(names))
        self.tasks, _ = make_tasks(
            {
                "fit": self.retain.of_entities(names[:cut]),
                "check": self.retain.of_entities(names[cut:]),
                "forget": self.forget,
                "never_taught": self.never,
            },
            self.tokenizer,
            wordings=2,
            statement_wordings=1,
            block_size=4,
            rng=numpy_rng(0, "blocks"),
        )
        plant(
            self.original,
            self.tokenizer,
            list(self.forget),
            list(self.retain)[:60],
            self.config.budget,
            root,
            device="cpu",
            seed=0,
            progress=SILENT,
        )
        self.planted = planted_model(self.original, root)

    def subjects(self, model) -> dict[str, AuditedModel]:
        candidate = model
        if not isinstance(model, AuditedModel):
            candidate = AuditedModel.of("unlearned", open_checkpoint(model))
        return {"original": self.original, "planted": self.planted, "unlearned": candidate}

    def concept(self, model) -> AxisResult:
        subjects = self.subjects(model)
        sites: list[str] = []
        for subject in subjects.values():
            sites = capture_states(subject, self.tokenizer, self.tasks, self.store, "cpu", SILENT)
        return run_concept(
            subjects,
            self.tokenizer,
            self.tasks,
            sites,
            list(self.forget),
            list(self.retain),
            self.store,
            self.config,
            device="cpu",
            notes=("a note",),
            progress=SILENT,
        )


@pytest.fixture(scope="session")
def bench(world, tmp_path_factory):
    return Bench(world, tmp_path_factory.mktemp("bench"))


def test_vectors_read_and_write_where_the_knowledge_is_only_suppressed(bench):
    # A last-block suppression: every state before that block is the original's.
    found = bench.concept(replace(bench.planted, role="unlearned"))
    assert found.status == "retained"
    assert found.main_reading.statistic > found.main_reading.floor + 0.4
    assert all(control.passed for control in found.controls)
    write = found.details["write"]
    assert write["original"]["check"] > 0.8 > write["random"] + 0.4
    # Taken out where it writes, the own vector silences an answer; noise does not.
    taken = write["ablated"]
    assert taken["own vector"] < 0.5 < 0.8 < taken["random direction"]
    traces = found.details["traces"]["unlearned"]["forgotten answers"]
    assert traces["cosine"] > 0.8 and "a note" in found.notes
    # The axis survives being written to a file and read back.
    reloaded = AxisResult.from_dict(found.to_dict())
    assert reloaded.to_dict() == found.to_dict()


def test_vectors_read_nothing_in_a_model_that_was_never_taught(bench, world):
    found = bench.concept(world.twin)
    assert found.status != "retained"
    assert found.main_reading.p_value > 0.05
    assert found.main_reading.statistic < 0.5 * found.main_reading.ceiling
    assert bench.concept(world.twin).to_dict() == found.to_dict()


def test_without_tasks_the_axis_has_no_power_and_still_shows_traces(bench, world):
    found = run_concept(
        bench.subjects(world.original),
        bench.tokenizer,
        [],
        [],
        list(bench.forget),
        list(bench.retain),
        bench.store,
        bench.config,
        device="cpu",
        notes=(),
        progress=SILENT,
    )
    assert found.status == "no_power" and not found.votes
    traces = found.details["traces"]["unlearned"]["forgotten answers"]
    assert traces["cosine"] == pytest.approx(1) and traces["jaccard"] == 1


def test_unique_answers_are_read_as_the_truth_of_statements(bench, world):
    tasks, _ = make_tasks(
        {
            part: ItemSet(
                tuple(
                    type(item)(item.id, item.entity, item.prompt, item.answer, item.relation)
                    for item in items
                )
            )
            for part, items in {
                "fit": bench.retain.of_entities(bench.retain.entities[:8]),
                "check": bench.retain.of_entities(bench.retain.entities[8:16]),
                "forget": bench.forget,
                "never_taught": bench.never,
            }.items()
        },
        bench.tokenizer,
        wordings=1,
        statement_wordings=1,
        block_size=4,
        rng=numpy_rng(0, "blocks"),
    )
    unique = [task for task in tasks if task.form == "unique"]
    assert unique
    concepts = answer_concepts(unique[0], unique[0].parts["fit"].labels)
    assert concepts.names == ("true",)
    sites = capture_states(bench.original, bench.tokenizer, unique, bench.store, "cpu", SILENT)
    states = read_states(bench.original, bench.tokenizer, unique, sites, bench.store)
    probing = ProbingData(unique, tuple(sites), {"original": states})
    vectors = fit_concepts(probing, "original", "mean")
    reader = probe_of(vectors[0])
    part = probing.states["original"].parts[0, "fit"]
    scores = reader.scores(part)
    np.testing.assert_allclose(scores[..., 0], vectors[0].scores(part)[:, 0], atol=1e-8)
