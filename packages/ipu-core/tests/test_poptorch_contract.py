# SPDX-License-Identifier: Apache-2.0
"""The numbered rules of PopTorch's contract: which hold, by which tests, and which do not; docs/poptorch.md says why.

Numbers are those of the contract: sections 2.1 to 2.12, and of section 3 the restrictions that raise there. A rule
"holds", holds in "part", or does "not".
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (Path(__file__).parents[3] / "docs/poptorch.md").read_text(encoding="utf-8")

# rule -> (state, the files, its tests)
SEMANTICS = {
    "2.1.1": (
        "holds",
        "options",
        "options_are_typed_values_under_fixed_names "
        "a_frozen_set_of_options_is_not_changed_and_its_copies_are_free a_dictionary_of_options_needs_an_output_mode",
    ),
    "2.1.2": ("holds", "options", "defaults"),
    "2.1.3": (
        "part",
        "options",
        "replica_groups_divide_the_replicas every_n_needs_a_period_and_other_modes_ignore_one "
        "setters_store_what_they_are_given a_seed_is_torchs_too options_come_from_json_and_from_the_environment "
        "options_come_from_a_file_of_which_nothing_is_executed",
    ),
    "2.1.4": ("holds", "options", "nested_options"),
    "2.1.5": ("holds", "options", "enumerations_have_the_values_that_files_hold"),
    "2.2.1": (
        "holds",
        "batches",
        "rows_are_iterations_then_accumulation_then_replicas_and_an_update_is_each_iteration "
        "groups_of_replicas_have_the_same_input rows_that_do_not_divide_are_refused_with_the_arithmetic",
    ),
    "2.2.2": ("holds", "batches", "dtypes_become_those_that_ipus_have an_input_no_ipu_takes_is_refused"),
    "2.2.3": (
        "holds",
        "batches",
        "an_output_mode_returns_these_micro_batches a_period_that_does_not_divide_the_iterations_is_refused "
        "a_scalar_stays_one_where_one_micro_batch_returns_it_and_defaults_are_final_and_all "
        "what_depends_on_no_input_is_returned_once_and_a_tensor_of_the_host_as_it_is",
    ),
    "2.2.4": ("holds", "batches", "the_structure_of_what_is_returned_is_kept_and_each_tensor_is_fresh"),
    "2.2.5": ("holds", "batches", "an_input_that_is_changed_in_place_changes_for_the_caller"),
    "2.2.6": (
        "holds",
        "batches",
        "anchors_are_returned_as_outputs_are an_anchor_is_a_value_of_the_forward_or_is_refused_by_name",
    ),
    "2.3": (
        "holds",
        "arguments",
        "arguments_are_bound_as_python_does_with_defaults nested_and_variadic_arguments_are_compared_by_path "
        "a_type_of_ones_own_is_an_argument_and_a_result",
    ),
    "2.4.1": (
        "holds",
        "executor",
        "a_model_is_wrapped_once_and_given_back what_an_executor_cannot_be_made_of_is_refused "
        "weights_that_a_training_executor_has_are_plain_in_copies_and_files "
        "a_buffer_of_a_class_of_its_own_is_refused_in_training",
    ),
    "2.4.2": (
        "holds",
        "executor",
        "compiling_twice_is_ignored_and_a_time_is_kept an_offline_target_compiles_and_does_not_run",
    ),
    "2.4.3": (
        "holds",
        "executor",
        "what_needs_an_executable_says_so weights_travel_when_somebody_says_so named_buffers_alone_are_uploaded "
        "what_calls_made_of_weights_is_lost_where_older_ones_are_uploaded_first "
        "inference_follows_the_training_of_its_module_and_not_edits",
    ),
    "2.4.4": ("holds", "executor", "executors_share_a_pool_of_ipus a_model_is_wrapped_once_and_given_back"),
    "2.4.5": ("part", "executor", "a_file_of_an_executable_holds_no_code"),
    "2.4.6": ("holds", "executor", "an_executor_has_random_numbers_of_its_own"),
    "2.4.7": ("holds", "executor", "cycles_are_counted_by_hardware_alone there_is_a_tick_for_each_micro_batch"),
    "2.4.8": (
        "holds",
        "replicas",
        "replicas_have_weights_of_their_own groups_of_replicas_train_weights_of_their_own "
        "groups_that_do_not_fit_are_refused",
    ),
    "2.4.9": ("holds", "executor", "hooks_run_around_recording"),
    "2.5.1": ("part", "recording", "a_forward_is_recorded_once a_tensor_of_the_graph_prints_no_values"),
    "2.5.2": ("holds", "recording", "new_tensors_go_to_the_ipu_and_constants_are_moved_there"),
    "2.5.3": (
        "holds",
        "recording",
        "a_tensor_of_the_host_is_not_mixed_in a_forward_that_looks_at_values_is_refused_and_the_model_is_as_before",
    ),
    "2.5.4": (
        "holds",
        "recording batches",
        "integer_buffers_are_constants_and_others_persist_with_every_micro_batch "
        "replicas_that_change_buffers_keep_their_own a_buffer_that_is_set_anew_or_removed_is_refused "
        "tied_weights_stay_one_and_frozen_ones_as_they_are inputs_that_share_memory_are_not_both_changed_in_place",
    ),
    "2.5.5": ("holds", "batches", "what_depends_on_no_input_is_returned_once_and_a_tensor_of_the_host_as_it_is"),
    "2.5.6": (
        "holds",
        "recording executor",
        "a_tensor_of_the_graph_has_no_64_bits_of_a_fraction "
        "dtypes_promote_as_in_torch_and_inputs_have_no_gradients weights_of_64_bits_have_32_on_the_device",
    ),
    "2.5.7": ("holds", "recording", "tied_weights_stay_one_and_frozen_ones_as_they_are"),
    "2.5.8": ("holds", "recording", "views_may_be_changed_in_place"),
    "2.6": (
        "holds",
        "recording",
        "one_loss_is_final a_loss_of_several_elements_is_trained_on_their_sum",
    ),
    "2.7.1": ("holds", "recording", "blocks_begin_at_modules_and_are_named_and_removed"),
    "2.7.2": (
        "holds",
        "recording",
        "what_follows_a_block_that_was_left_needs_another "
        "stages_that_count_begin_at_one_and_blocks_come_back_to_theirs blocks_that_no_strategy_places_are_refused",
    ),
    "2.7.3": ("holds", "recording", "strategies_place_blocks a_pipeline_trains_as_the_plain_model"),
    "2.7.4": ("holds", "recording", "a_pipeline_has_a_micro_batch_for_each_stage"),
    "2.8": (
        "part",
        "ops",
        "hints_give_what_they_are_given transfers_do_not_overlap_with_a_pipeline a_loss_is_reduced "
        "slices_begin_where_a_tensor_says_and_wrap_round loops_and_conditions_run_in_inference "
        "loops_conditions_and_host_functions_are_refused_in_training a_function_of_the_host_is_called_with_values "
        "a_printed_tensor_is_printed_for_each_micro_batch_with_its_gradient custom_operators_are_python_functions "
        "convolutions_of_a_multi_conv_give_what_they_give_alone "
        "beams_of_a_ctc_head_add_up_to_the_probabilities_of_its_paths points",
    ),
    "2.9.1": ("holds", "optim", "only_five_kinds_are_taken a_subclass_is_named_and_its_step_is_never_called"),
    "2.9.2": ("holds", "optim", "constructors_have_torchs_defaults_and_refuse_what_no_ipu_has"),
    "2.9.3": (
        "holds",
        "optim",
        "an_attribute_that_nobody_knows_is_told_once what_was_given_may_change_and_the_rest_is_constant "
        "a_constant_attribute_does_not_change_and_a_variable_one_does_when_it_is_set",
    ),
    "2.9.4": (
        "holds",
        "executor",
        "attributes_change_when_an_optimizer_is_set gradients_accumulate_in_half_precision_where_an_optimizer_says_so",
    ),
    "2.9.5": ("holds", "executor", "a_state_goes_on_in_another_executor"),
    "2.9.6": (
        "holds",
        "optim",
        "steps_are_torchs_where_the_rules_agree dampening_holds_from_the_first_step_on "
        "adamw_corrects_its_bias_whatever_it_is_told_and_lamb_does_not "
        "lamb_steps_by_the_ratio_of_norms_and_can_on_the_host "
        "the_variant_of_tensorflow_has_epsilon_under_the_root "
        "gradients_are_clipped_by_one_norm_over_all_weights "
        "a_loss_scale_is_divided_out_and_groups_have_their_own_attributes",
    ),
    "2.10.1": (
        "holds",
        "loader",
        "a_batch_is_what_a_call_takes a_smaller_last_batch_is_warned_of a_stream_is_read_in_order_and_has_no_parts "
        "a_batch_sampler_makes_micro_batches each_process_has_a_part_and_what_is_left_over_takes_turns "
        "reading_ahead_gives_the_same_batches_pass_after_pass batches_of_workers_are_cut_anew",
    ),
    "2.10.2": (
        "holds",
        "loader",
        "items_keep_their_structure_and_are_overwritten_later a_dataset_that_cannot_be_read_ahead_is_refused "
        "arguments_of_an_accessor_are_checked a_failure_of_the_process_is_told "
        "processes_that_start_anew_read_ahead_with_workers_of_their_own a_program_that_terminates_no_loader_ends",
    ),
    "2.11": (
        "part",
        "ops",
        "errors_have_a_type_a_message_and_a_place levels_of_the_log profiles_and_comparisons",
    ),
    "2.12": (
        "part",
        "replicas",
        "processes_train_together processes_that_do_not_know_where_to_meet_are_refused",
    ),
}

# Of section 3, the restrictions that raise: row -> (state, the file, its tests).
RESTRICTIONS = {
    "1": ("holds", "arguments", "arguments_are_bound_as_python_does_with_defaults"),
    "2": ("holds", "recording", "a_forward_that_looks_at_values_is_refused_and_the_model_is_as_before"),
    "4": ("holds", "recording", "shapes_that_depend_on_values_are_refused"),
    "5": ("holds", "ops recording", "slices_begin_where_a_tensor_says_and_wrap_round a_slice_has_elements"),
    "6": ("holds", "recording", "an_operator_that_poptorch_does_not_lower_is_refused_by_name"),
    "7": ("holds", "recording", "a_tensor_of_the_host_is_not_mixed_in"),
    "9": ("holds", "batches", "an_input_no_ipu_takes_is_refused"),
    "10": ("holds", "ops", "loops_conditions_and_host_functions_are_refused_in_training"),
    "11": ("holds", "batches", "the_structure_of_what_is_returned_is_kept_and_each_tensor_is_fresh"),
    "13": ("holds", "batches", "rows_that_do_not_divide_are_refused_with_the_arithmetic"),
    "14": ("holds", "batches", "rows_that_do_not_divide_are_refused_with_the_arithmetic"),
    "15": ("holds", "batches", "a_period_that_does_not_divide_the_iterations_is_refused"),
    "16": ("holds", "executor", "what_an_executor_cannot_be_made_of_is_refused"),
    "18": ("holds", "options", "replica_groups_divide_the_replicas"),
    "20": ("holds", "batches", "an_input_no_ipu_takes_is_refused"),
    "23": ("holds", "executor", "a_buffer_of_a_class_of_its_own_is_refused_in_training"),
    "24": ("holds", "recording", "a_buffer_that_is_set_anew_or_removed_is_refused"),
    "25": ("holds", "recording", "replicas_that_change_buffers_keep_their_own"),
    "29": ("holds", "executor", "a_model_is_wrapped_once_and_given_back"),
    "30": ("holds", "options", "a_frozen_set_of_options_is_not_changed_and_its_copies_are_free"),
    "31": ("holds", "recording", "one_loss_is_final"),
    "32": ("holds", "recording", "what_follows_a_block_that_was_left_needs_another"),
    "33": ("holds", "recording", "blocks_that_no_strategy_places_are_refused"),
    "34": ("holds", "recording", "blocks_begin_at_modules_and_are_named_and_removed"),
    "35": ("holds", "recording", "a_pipeline_has_a_micro_batch_for_each_stage"),
    "36": ("holds", "recording", "a_weight_of_a_pipeline_is_read_on_one_ipu"),
    "37": ("holds", "recording", "values_of_a_pipeline_go_to_later_stages_whatever_ipus_these_are_on"),
    "40": ("holds", "recording", "blocks_that_no_strategy_places_are_refused"),
    "42": (
        "holds",
        "ops",
        "transfers_do_not_overlap_with_a_pipeline transfers_that_overlap_take_io_tiles_and_return_every_micro_batch",
    ),
    "44": ("holds", "executor", "numbers_of_ipus"),
    "45": ("holds", "executor", "numbers_of_ipus"),
    "46": ("holds", "executor", "the_ipu_model_takes_no_ipus_and_has_limits"),
    "47": ("holds", "executor", "an_offline_target_compiles_and_does_not_run"),
    "50": ("holds", "optim", "only_five_kinds_are_taken"),
    "52": ("holds", "optim", "a_constant_attribute_does_not_change_and_a_variable_one_does_when_it_is_set"),
}
RULES = SEMANTICS | RESTRICTIONS


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_holds_has_its_tests(rule):
    state, file, names = RULES[rule]
    assert names or state == "not"
    text = "".join((TESTS / f"test_poptorch_{each}.py").read_text(encoding="utf-8") for each in file.split())
    missing = [name for name in names.split() if f"def test_{name}(" not in text]
    assert not missing


def test_the_page_says_the_same_of_every_rule_and_why_one_does_not_hold():
    rows = re.findall(r"^\| ([\d.]+) \| (.+?) \| (holds|part|not) \|(.*)\|$", PAGE, re.MULTILINE)
    assert {number: state for number, _, state, _ in rows} == {number: rule[0] for number, rule in RULES.items()}
    assert not [number for number, _, state, why in rows if state != "holds" and not why.strip()]


def test_the_page_counts_the_rules():
    for rules, name in ((SEMANTICS, "semantics"), (RESTRICTIONS, "restrictions")):
        states = [state for state, _, _ in rules.values()]
        counts = (len(states), *(states.count(state) for state in ("holds", "part", "not")))
        assert f"Of {counts[0]} {name}, {counts[1]} hold, {counts[2]} hold in part, {counts[3]} do not." in PAGE
