# SPDX-License-Identifier: Apache-2.0
"""Every option of `IPUConfig` has an effect that a test observes, or is a hint that the host engine names as such."""

from pathlib import Path

import pytest
from ipu_core.cli import main
from ipu_core.config.ipu_config import IPUConfig
from ipu_core.config.options import HARDWARE_HINTS, OPTIONS
from ipu_core.engines.host import HOST

HERE = Path(__file__).parent
# option -> the test that observes its effect
OBSERVED = {
    "layers_per_ipu": "test_executor.py::test_training_equals_plain_on_every_split",
    "ipus_per_replica": "test_host_schedules.py::test_every_schedule_gives_the_plain_models_outputs_and_gradients",
    "replication_factor": "test_executor.py::test_micro_batches_average_to_one_large_batch",
    "gradient_accumulation_steps": "test_executor.py::test_micro_batches_average_to_one_large_batch",
    "device_iterations": "test_executor.py::test_with_an_optimizer_it_steps_once_a_device_iteration",
    "recompute_checkpoint_every_layer": "test_recomputation.py::test_recomputation_keeps_less",
    "output_mode": "test_outputs.py::test_an_output_mode_returns_these_micro_batches_in_order",
    "output_return_period": "test_outputs.py::test_an_output_mode_returns_these_micro_batches_in_order",
    "schedule": "test_timeline.py::test_an_executor_measures_every_pass_of_its_last_update",
    "stages_per_ipu": "test_host_schedules.py::test_layers_go_round_the_ipus_when_an_ipu_holds_several_stages",
    "embedding_serialization_factor": "test_sharded_vocabulary.py::test_a_factor_leaves_the_stages_as_they_are",
    "projection_serialization_factor": "test_sharded_vocabulary.py::test_a_factor_leaves_the_stages_as_they_are",
    "serialized_embedding_splits_per_ipu": "test_sharded_vocabulary.py::test_embeddings_that_share_a_weight_are_split",
    "serialized_projection_splits_per_ipu": "test_sharded_vocabulary.py::test_an_untied_projection_is_split_alone",
    "max_masked_tokens": "test_masked_lm_head.py::test_the_plan_counts_a_head_of_so_many_tokens",
    "packed_rows": "test_sequence_packing.py::test_the_plan_counts_the_tokens_of_packed_rows",
    "packed_length": "test_sequence_packing.py::test_the_plan_counts_the_tokens_of_packed_rows",
    "devices": "test_devices.py::test_tensors_live_with_their_stage_and_only_what_crosses_is_copied",
    "device_memory": "test_memory.py::test_what_does_not_fit_is_refused_before_anything_runs",
    "cost_source": "test_auto_partition.py::test_measured_times_move_a_split_that_estimates_undervalue",
    "parameters_offchip": "test_streaming.py::test_training_equals_the_plain_model_with_two_stages_on_the_device",
    "optimizer_state_offchip": "test_memory.py::test_the_state_of_an_ipu_may_be_elsewhere",
    "replicated_tensor_sharding": "test_memory.py::test_the_state_of_an_ipu_may_be_elsewhere",
    "compile": "test_compile.py::test_equal_layers_are_compiled_once",
    "record": "test_recording.py::test_recorded_updates_equal_those_that_are_not",
    "executable_cache_dir": "test_compile.py::test_a_graph_that_is_kept_is_not_captured_again",
    "seed": "test_executor.py::test_a_seed_makes_a_run_repeatable_zero_included",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_an_observed_effect_or_is_a_hint(name):
    assert (name in OBSERVED) != (name in HOST.inert), f"`{name}` is to be in OBSERVED or in `HOST.inert`"
    if name in OBSERVED:
        file, _, test = OBSERVED[name].partition("::")
        assert f"def {test}(" in (HERE / file).read_text(), OBSERVED[name]


def test_what_only_hardware_reads_has_no_effect_on_the_host():
    assert set(HARDWARE_HINTS) <= set(HOST.inert) <= set(OPTIONS)


@pytest.mark.turns(1)
def test_doctor_says_of_every_option_whether_it_has_an_effect(capsys, tmp_path):
    IPUConfig().save_pretrained(tmp_path)
    assert main(["doctor", "--config", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.partition("at their defaults")[2].splitlines()
    for name in OPTIONS:
        (line,) = [line for line in printed if name in line.replace(",", " ").split()]
        assert line.startswith("  no effect on the host engine:" if name in HOST.inert else "  with an effect:"), name
