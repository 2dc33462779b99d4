# SPDX-License-Identifier: Apache-2.0
"""Options of the PopTorch interface: their rules, defaults and values (2.1 of the contract)."""

import copy
import json

import ipu_core.migration.poptorch as poptorch
import pytest
import torch
from ipu_core.migration.poptorch import enums
from ipu_core.migration.poptorch.options import ConfigFileError


@pytest.fixture
def options():
    return poptorch.Options()


def test_options_are_typed_values_under_fixed_names(options):
    assert options.set(device_iterations=3) is options and options.device_iterations == 3
    with pytest.raises(AssertionError, match="Invalid option colour, valid options are"):
        options.set(colour=1)
    with pytest.raises(AssertionError, match="Unexpected type .*str.* for option device_iterations. Expected .*int"):
        options.set(device_iterations="3")
    with pytest.raises(AttributeError, match=r"Invalid attribute colour\."):
        _ = options.colour
    with pytest.raises(AttributeError, match="Invalid private attribute _colour"):
        options._colour = 1
    assert options._popart is options._Popart
    assert options.deviceIterations(2).replicationFactor(2) is options


def test_a_frozen_set_of_options_is_not_changed_and_its_copies_are_free(options):
    poptorch.DataLoader(options, torch.utils.data.TensorDataset(torch.zeros(4, 1)), batch_size=2)
    for change in (
        lambda: options.deviceIterations(2),
        lambda: options.Training.gradientAccumulation(2),
        lambda: options._Popart.set("outlineThreshold", 10.0),
        lambda: options.setExecutionStrategy(poptorch.ShardedExecution()),
        lambda: options.anchorTensor("a", "b"),
    ):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change()
    for made in (options.clone(), copy.deepcopy(options)):
        made.deviceIterations(4).Training.gradientAccumulation(2)
        assert (made.device_iterations, options.device_iterations) == (4, 1)


def test_a_dictionary_of_options_needs_an_output_mode(options):
    with pytest.raises(AssertionError, match="An output mode must be picked before serialisation"):
        options.toDict()
    found = options.outputMode(poptorch.OutputMode.All).toDict()
    assert found["output_mode"] == 2 and found["gradient_accumulation"] == 1 and found["execution_mode"] == 0
    text = repr(options)
    assert "device_iterations = 1" in text and "gradient_accumulation = 1" in text


def test_defaults(options):
    expected = {
        "replication_factor": 1,
        "input_group_size": 1,
        "input_cgt": poptorch.CommGroupType.Consecutive,
        "broadcast_buffers": True,
        "device_iterations": 1,
        "log_dir": ".",
        "max_repeat_logs": 4,
        "auto_round_num_ipus": False,
        "anchored_tensors": {},
        "output_mode": 4,
        "output_return_period": 1,
        "connection_type": 0,
        "sync_pattern": 0,
        "available_memory_proportion": {},
    }
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.defaultOutputMode()
    assert (options.Distributed.numProcesses, options.Distributed.processId) == (1, 0)
    training = options.Training
    assert training.gradient_accumulation == 1
    assert training.accumulation_and_replication_reduction_type is poptorch.ReductionType.Mean
    assert training.meanAccumulationAndReplicationReductionStrategy is poptorch.MeanReductionStrategy.Post
    assert options._Popart.instrumentWithHardwareCycleCounter is False
    assert options._Popart.rearrangeAnchorsOnHost is False
    assert type(options.strategy) is poptorch.PipelinedExecution


def test_replica_groups_divide_the_replicas(options):
    kinds = poptorch.CommGroupType
    options.replicationFactor(4)
    with pytest.raises(ValueError, match="input_group_type cannot be All"):
        options.inputReplicaGrouping(2, kinds.All)
    for size in (8, 3):
        with pytest.raises(ValueError, match=f"input_group_size {size}"):
            options.inputReplicaGrouping(size, kinds.Consecutive)
    options.inputReplicaGrouping(2, kinds.Orthogonal)
    assert (options.input_group_size, options.input_cgt) == (2, kinds.Orthogonal)
    options.inputReplicaGrouping(2, kinds.NoGrouping)
    assert (options.input_group_size, options.input_cgt) == (1, kinds.Consecutive)


def test_every_n_needs_a_period_and_other_modes_ignore_one(options):
    modes = poptorch.OutputMode
    for period in (None, 0):
        with pytest.raises(AssertionError, match="must have a value that is greater than 0"):
            options.outputMode(modes.EveryN, period)
    options.outputMode(modes.EveryN, 3)
    assert (options.output_mode, options.output_return_period) == (1, 3)
    options.outputMode(modes.All, 3)
    assert (options.output_mode, options.output_return_period) == (2, 1)


def test_setters_store_what_they_are_given(options, monkeypatch):
    options.setAvailableMemoryProportion({"IPU0": 0.2, "IPU3": 0.4})
    assert options.available_memory_proportion == {0: 0.2, 3: 0.4}
    with pytest.raises(AssertionError, match="IPU0"):
        options.setAvailableMemoryProportion({"0": 0.2})
    options.maxRepeatLogs(None)
    assert options.max_repeat_logs == 2**64 - 1
    options.useOfflineIpuTarget()
    assert (options.connection_type, options.ipu_version) == (2, 2)
    options.enableSyntheticData(True)
    assert options._Popart.syntheticDataMode == 2
    options.logCycleCount(True)
    assert options._Popart.instrumentWithHardwareCycleCounter is True
    options.anchorTensor("grad", "Gradient___fc.weight")
    assert options.anchored_tensors == {"grad": ["Gradient___fc.weight", True, 4, 1]}
    with pytest.raises(AssertionError, match="strategy"):
        options.setExecutionStrategy("pipelined")
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/cache")
    assert poptorch.Options().cache_path == "/cache"


def test_a_seed_is_torchs_too(options):
    options.randomSeed(42)
    drawn = torch.rand(3)
    torch.manual_seed(42)
    assert options.random_seed == 42 and torch.equal(drawn, torch.rand(3))


def test_options_come_from_json_and_from_the_environment(options, monkeypatch):
    text = json.dumps(
        {"deviceIterations": 4, "outputMode": ["OutputMode.EveryN", 2], "Training.gradientAccumulation": 3}
    )
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", text)
    for made in (options.from_json(text), poptorch.Options()):
        assert (made.device_iterations, made.output_mode, made.output_return_period) == (4, 1, 2)
        assert made.Training.gradient_accumulation == 3
    with pytest.raises(AttributeError, match=r"Invalid attribute Training\.colour"):
        options.from_json('{"Training.colour": 1}')


def test_options_come_from_a_file_of_which_nothing_is_executed(options, tmp_path):
    file = tmp_path / "options"
    file.write_text(
        "deviceIterations(4)\n\n# a comment\nTraining.gradientAccumulation(8)\n"
        "outputMode(poptorch.OutputMode.EveryN, output_return_period=2)\n"
        "setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))\n"
    )
    options.loadFromFile(str(file))
    assert (options.device_iterations, options.Training.gradient_accumulation, options.output_mode) == (4, 8, 1)
    assert type(options.strategy) is poptorch.ShardedExecution
    for line in ("deviceIterations(4", "deviceIterations(__import__('os').getpid())", "__class__"):
        file.write_text(f"replicationFactor(2)\n{line}\n")
        with pytest.raises(ConfigFileError, match="SyntaxError at line 2 of"):
            options.loadFromFile(str(file))


def test_nested_options(options, monkeypatch):
    with pytest.raises(ValueError, match="reduction type"):
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.NoReduction)
    options.Precision.setPartialsType(torch.half)
    assert options.Precision.partials_type == "half"
    with pytest.raises(ValueError, match="Partials type"):
        options.Precision.setPartialsType(torch.float64)
    with pytest.warns(UserWarning, match="no effect"):
        options.Precision.halfFloatCasting(poptorch.HalfFloatCastingBehavior.Default)
    with pytest.raises(ValueError, match="takes a bool"):
        options.Precision.runningStatisticsAlwaysFloat(1)
    for number in (31, 33, 194):
        with pytest.raises(AssertionError, match="numIOTiles must be an even number between 32 and 192"):
            options.TensorLocations.numIOTiles(number)
    settings = poptorch.TensorLocationSettings().useOnChipStorage(False).useReplicatedTensorSharding(True)
    options.TensorLocations.numIOTiles(64).setOptimizerLocation(settings)
    assert options.TensorLocations.location_optimizer == {"onChip": False, "useReplicatedTensorSharding": True}
    with pytest.raises(ValueError, match="no longer supported"):
        options.Jit.traceModel(True)
    with pytest.warns(UserWarning, match="deprecated"):
        options.Jit.traceModel(False)
    options.Distributed.configureProcessId(1, 4)
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 4)
    assert options.Distributed.disable().numProcesses == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    made = poptorch.Options().Distributed
    assert (made.processId, made.numProcesses) == (5, 8)


VALUES = {
    "OutputMode": {"Final": 0, "EveryN": 1, "All": 2, "Sum": 3, "Default": 4},
    "ConnectionType": {"Always": 0, "OnDemand": 1, "Never": 2},
    "ReductionType": {"Sum": 0, "Mean": 1, "NoReduction": 2},
    "MeanReductionStrategy": {"Running": 0, "Post": 1, "PostAndLoss": 2},
    "SyncPattern": {"Full": 0, "SinglePipeline": 1, "ReplicaAndLadder": 2},
    "MatMulSerializationMode": {
        "InputChannels": "input_channels",
        "ReducingDim": "reducing_dim",
        "OutputChannels": "output_channels",
        "Disabled": "none",
    },
    "Liveness": {"AlwaysLive": 0, "OffChipAfterFwd": 1, "OffChipAfterFwdNoOverlap": 2, "OffChipAfterEachPhase": 3},
    "OverlapMode": {
        "NoOverlap": "no_overlap",
        "OverlapAccumulationLoop": "overlap_accumulation_loop",
        "OverlapDeviceIterationLoop": "overlap_device_iteration_loop",
    },
    "AutoStage": {"SameAsIpu": 0, "AutoIncrement": 1},
    "MultiConvPlanType": {"Parallel": 0, "Serial": 1},
    "CommGroupType": {"All": 0, "Consecutive": 1, "Orthogonal": 2, "NoGrouping": 3},
    "VariableRetrievalMode": {"OnePerGroup": 0, "AllReplicas": 2},
    "DataLoaderMode": {"Sync": 0, "Async": 1, "AsyncRebatched": 2},
    "SharingStrategy": {"SharedMemory": 0, "FileSystem": 1, "Fork": 2, "ForkServer": 3},
}


def test_enumerations_have_the_values_that_files_hold():
    found = {name: {member.name: member.value for member in getattr(enums, name)} for name in VALUES}
    assert found == VALUES
