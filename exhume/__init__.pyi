"""Public names of ``exhume``, by theme, in the order of use.

This stub is the only list of the names: ``__init__.py`` reads it to find the module that
defines a name, and editors and type checkers read it as they read any stub.
"""

# Audits: from two checkpoints to a verdict.
from audits.run.api import audit as audit, load as load, Audit as Audit
from audits.run.planning import plan as plan, Plan as Plan
from audits.run.item_check import check_items as check_items
from audits.comparison.compare import compare as compare, Comparison as Comparison
from evidence.results import AxisResult as AxisResult, Reading as Reading, Control as Control

# Models and items: checkpoints, facts as prompts with answers, scores.
from capture.checkpoints.open import open_checkpoint as open_checkpoint, Checkpoint as Checkpoint
from capture.data.items import read_items as read_items, ItemSet as ItemSet, Item as Item
from capture.data.tokenization import encode as encode, encode_items as encode_items
from capture.data.sequences import Sequences as Sequences
from capture.scoring.answers import score_answers as score_answers, AnswerScores as AnswerScores
from capture.data.images import ImageSet as ImageSet
from evidence.errors import InputError as InputError
from evidence.progress import Bars as Bars

# Activations: sites of a model, capture, storage, interventions.
from capture.network.sites import find_sites as find_sites, Sites as Sites
from capture.activations.library_names import hook_names as hook_names
from capture.activations.capture import (
    capture_activations as capture_activations,
    capture_images as capture_images,
    Activations as Activations,
)
from capture.activations.store import ActivationStore as ActivationStore
from capture.checkpoints.cache import cache_root as cache_root
from capture.network.hooks import (
    record as record,
    patch as patch,
    steer as steer,
    project_out as project_out,
)

# Probes: linear classifiers of activations, with controls, and representation similarity.
from probes.sweeps.sweep import sweep as sweep
from probes.sweeps.layer_sweep import LayerSweep as LayerSweep
from probes.estimators.logistic import LogisticProbe as LogisticProbe
from probes.estimators.ridge import RidgeProbe as RidgeProbe
from probes.estimators.lda import LDAProbe as LDAProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe as MeanDifferenceProbe
from probes.estimators.classifier_battery import refit_battery as refit_battery
from probes.sweeps.membership_test import membership as membership, Membership as Membership
from probes.cka import debiased_cka as debiased_cka, cka_matrix as cka_matrix
from probes.subspaces import principal_angles as principal_angles, procrustes as procrustes

# Concept vectors: directions in activations, and their quality.
from probes.splits.folds import k_fold as k_fold
from probes.concepts.labels import (
    concepts_of as concepts_of,
    Concepts as Concepts,
    crossed_folds as crossed_folds,
    random_concepts as random_concepts,
)
from probes.concepts.vectors import (
    concept_vectors as concept_vectors,
    ConceptVectors as ConceptVectors,
)
from probes.concepts.quality import (
    separability as separability,
    Separability as Separability,
    stability as stability,
    alignment as alignment,
)
from probes.concepts.tcav import tcav as tcav, shift_vectors as shift_vectors

# Value vectors: feed-forward neurons that write an answer.
from attribution.value_vectors.find import (
    find_value_vectors as find_value_vectors,
    find_knowledge_neurons as find_knowledge_neurons,
)
from attribution.value_vectors.survival import (
    confirm_traces as confirm_traces,
    trace_survival as trace_survival,
    random_traces as random_traces,
)

# Circuits: edge attribution, and ablation of edges.
from attribution.circuits.prompt_pairs import (
    make_pairs as make_pairs,
    pair_items as pair_items,
    PromptPairs as PromptPairs,
)
from attribution.circuits.eap import score_edges as score_edges, EapMethod as EapMethod
from attribution.circuits.edge_scores import EdgeScores as EdgeScores
from attribution.circuits.circuit import (
    select_circuit as select_circuit,
    measure_circuit as measure_circuit,
    top_edges as top_edges,
    Circuit as Circuit,
)
from attribution.circuits.divergence import divergence as divergence, retained_mass as retained_mass
from attribution.circuit_plots import draw_circuit as draw_circuit

# Patching and steering: states of one model in another, and added vectors.
from attribution.patching.cross_model import (
    read_states as read_states,
    score_patched as score_patched,
)
from attribution.patching.depth_score import unlearning_depth as unlearning_depth
from attribution.patching.steering import score_edited as score_edited, add_vector as add_vector
from attribution.patching.control_vectors import (
    write_control_vector as write_control_vector,
    read_control_vector as read_control_vector,
)

# Logits: what states say through the model's own final norm and head, and what adds up to it.
from attribution.logit_lens import logit_lens as logit_lens, LogitLens as LogitLens
from attribution.logit_attribution import (
    logit_attribution as logit_attribution,
    LogitAttribution as LogitAttribution,
)

# Sparse autoencoders.
from attribution.sae.training import train_sae as train_sae, SaeConfig as SaeConfig
from attribution.sae.files import load_sae as load_sae
from attribution.sae.autoencoder import Sae as Sae
from attribution.sae.splicing import spliced as spliced, steer_latents as steer_latents
from attribution.sae.measures import (
    measure_quality as measure_quality,
    loss_recovered as loss_recovered,
)
from attribution.sae.features import rank_latents as rank_latents

# Concept erasers: removing a concept from activations and weights.
from erasure.concept.leace import Leace as Leace
from erasure.concept.label_aware import OracleLeace as OracleLeace, QuadraticLeace as QuadraticLeace

from erasure.concept.projections import (
    MeanDifference as MeanDifference,
    SpectralRemoval as SpectralRemoval,
    RandomProjection as RandomProjection,
)
from erasure.concept.inlp import IterativeNullspace as IterativeNullspace
from erasure.concept.rlace import RelaxedAdversarial as RelaxedAdversarial
from erasure.concept.md_pga import fit_md_pga as fit_md_pga
from erasure.concept.moments import Moments as Moments
from erasure.concept.affine import AffineEraser as AffineEraser
from erasure.weights.folding import fold_ as fold_, stream_erasers as stream_erasers

# Unlearning: published methods, fine-tuning, quantization.
from erasure.unlearning.run import unlearn_ as unlearn_
from erasure.unlearning.config import UnlearnConfig as UnlearnConfig
from erasure.unlearning.run import unlearn_images_ as unlearn_images_
from erasure.unlearning.config import ImageUnlearnConfig as ImageUnlearnConfig
from erasure.unlearning.methods.registry import unlearning_methods as unlearning_methods
from erasure.unlearning.training.settings import TrainingSettings as TrainingSettings
from erasure.unlearning.training.loop import finetune_ as finetune_
from erasure.weights.quantization import quantize_ as quantize_

# Models whose state is known by construction.
from testbeds.zoo.build import build_zoo as build_zoo, Specimen as Specimen
from testbeds.zoo.registry import list_kinds as list_kinds
from testbeds.worlds.biographies import build_bios as build_bios, BiosConfig as BiosConfig
from testbeds.planted import plant as plant
from testbeds.worlds.random_models import random_model as random_model
from testbeds.worlds.smollm2 import fetch_smollm2 as fetch_smollm2
