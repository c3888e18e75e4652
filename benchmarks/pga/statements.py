"""What must not be copied from the published protocols, and the tests for it."""

STATEMENTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        '"Below chance" is no success',
        (
            "tests/probes/test_membership_test.py::"
            "test_an_eraser_that_saw_the_test_rows_reads_as_inverted",
            "tests/experiments/test_pga.py::"
            "test_a_probe_below_chance_is_a_claim_that_must_be_earned",
            "tests/experiments/test_pga.py::"
            "test_md_pga_drives_the_twin_below_chance_as_well",
            "tests/experiments/test_pga_published.py::"
            "test_orientation_is_ignored_where_it_should_be",
        ),
    ),
    (
        "Contexts are no independent samples",
        (
            "tests/probes/test_membership_test.py::test_more_contexts_make_no_more_sequences",
        ),
    ),
    (
        "One random network and one of its layers are no control",
        (
            "tests/repository/test_known_protocol_faults.py::"
            "test_all_random_networks_count_and_no_single_layer_of_one",
            "tests/experiments/test_pga_published.py::test_one_random_draw_is_not_a_control",
        ),
    ),
    (
        "An eraser is not fitted on a probe's test items",
        (
            "tests/experiments/test_pga.py::test_erased_and_tested_keys_are_disjoint",
            "tests/probes/test_membership_test.py::"
            "test_erased_on_one_part_and_tested_on_the_other_nothing_leaks",
            "tests/experiments/test_pga_published.py::"
            "test_pure_noise_goes_below_chance_when_the_eraser_saw_the_test_items",
            "tests/erasure/concept/test_below_chance.py::"
            "test_of_noise_the_nearest_mean_gets_every_left_out_row_wrong",
        ),
    ),
    (
        "No headline is a gap from a baseline below one half",
        (
            "tests/repository/test_known_protocol_faults.py::"
            "test_no_outcome_rests_on_a_difference_from_a_baseline",
            "tests/experiments/test_pga_published.py::"
            "test_a_gap_can_be_all_below_half_baseline",
        ),
    ),
    (
        "Original activations, let in by the label, say nothing of the unlearned "
        "model (another paper's)",
        (
            "tests/audits/axes/restoration/test_restoration.py::"
            "test_the_net_rate_is_what_is_restored_beyond_the_worst_control",
        ),
    ),
    (
        "A signature's strength is not measured in the sample",
        (
            "tests/repository/test_known_protocol_faults.py::"
            "test_a_signature_s_strength_is_measured_on_others_than_it_was_fitted_on",
            "tests/audits/axes/test_membership.py::"
            "test_scores_are_those_of_readers_that_saw_retain_entities_alone",
        ),
    ),
    (
        "A probability at the output is not called latent",
        (
            "tests/repository/test_known_protocol_faults.py::"
            "test_recall_is_read_at_the_output_and_the_signature_is_not",
        ),
    ),
    (
        "No width of a bin is taken for all (another paper's)",
        (
            "tests/erasure/weights/test_quantization.py::"
            "test_each_weight_gets_the_nearest_level_of_its_block",
        ),
    ),
    (
        "Perplexity alone is no utility: clean texts may be learned instead",
        (
            "tests/experiments/test_pga.py::"
            "test_fixed_clean_codes_are_memorised_and_flagged",
            "tests/experiments/test_pga_published.py::"
            "test_role_swap_is_seen_where_perplexity_is_content",
        ),
    ),
    (
        "What is not found is not called absent",
        (
            "tests/experiments/test_pga.py::"
            "test_gone_is_shown_by_equivalence_and_never_by_silence",
            "tests/experiments/test_pga.py::"
            "test_claims_never_call_below_chance_or_not_found_a_success",
        ),
    ),
)
"""What must not be copied, and the tests that hold us to it."""
