# SPDX-License-Identifier: Apache-2.0
"""Old import names: configurations mean what they meant, scripts run as scripts, names that are not served say so."""

import copy
import importlib
import sys
from unittest.mock import MagicMock, call

import pytest
import tiny_texts
import torch
import transformers
from ipu_core import IPUConfig as OrdinaryConfig, PipelineMixin, inference_model, migration
from ipu_core.cli import main
from ipu_core.errors import CacheError, IncompatibleIPUConfigError
from ipu_core.migration import install
from ipu_core.migration.arguments import note, translated
from ipu_core.migration.graphcore import modeling_utils
from ipu_core.migration.graphcore.data import (
    DataCollatorForLanguageModelingWithMaxTokensMasked,
    most_masked,
    pad_on_batch_axis,
)
from ipu_core.migration.graphcore.ipu_configuration import IPUConfig
from ipu_core.migration.graphcore.layers import (
    OnehotGather,
    SerializedEmbedding,
    SerializedLinear,
    SharedEmbedding,
    SplitProjection,
)
from ipu_core.migration.graphcore.versions import check_min_version
from ipu_core.migration.inventory import NAMES
from ipu_core.migration.modules import value_of


@pytest.fixture(autouse=True)
def _process(monkeypatch):
    """Leave finders, arguments, paths and modules of old names as they were."""
    for name in ("argv", "path", "meta_path"):
        monkeypatch.setattr(sys, name, list(getattr(sys, name)))
    note.cache_clear()
    yield
    for name in [name for name in sys.modules if name.startswith(("optimum.graphcore", "poptorch", "popart"))]:
        del sys.modules[name]
    vars(sys.modules["optimum"]).pop("graphcore", None)


# What each configuration of the inventory is: its options, and attributes that follow from them.
CONFIGS = [
    ({}, {"layers_per_ipu": [-1], "ipus_per_replica": 1, "inference_ipus_per_replica": 1}),
    ({"layers_per_ipu": [3] * 4}, {"ipus_per_replica": 4, "inference_ipus_per_replica": 4}),
    ({"layers_per_ipu": [-1], "ipus_per_replica": 4}, {"inference_ipus_per_replica": 4}),
    ({"ipus_per_replica": 10}, {"inference_ipus_per_replica": 10}),
    ({"ipus_per_replica": 10, "inference_layers_per_ipu": [1, 1, 1]}, {"inference_ipus_per_replica": 3}),
    ({"matmul_proportion": 0.6}, {"inference_matmul_proportion": 0.6}),
    (
        {"layers_per_ipu": [1, 1], "matmul_proportion": [0.1, 0.3], "inference_layers_per_ipu": [2]},
        {"inference_matmul_proportion": 0.2},
    ),
    ({"layers_per_ipu": [1, 1], "matmul_proportion": [0.1, 0.3]}, {"inference_matmul_proportion": [0.1, 0.3]}),
    (
        {},
        {
            **{
                f"{mode}{kind}_serialization_factor": 1
                for mode in ("", "inference_")
                for kind in ("embedding", "projection")
            },
            **{"optimizer_state_offchip": False, "replicated_tensor_sharding": False, "enable_half_partials": True},
            **{"recompute_checkpoint_every_layer": False, "output_mode": "final", "seed": None},
            **{"executable_cache_dir": "", "auto_loss_scaling": False, "device_iterations": 1},
        },
    ),
    (
        {"layers_per_ipu": [1, 1, 1], "serialized_embedding_splits_per_ipu": [3, 2, 0]},
        {"embedding_serialization_factor": None, "inference_embedding_serialization_factor": 1},
    ),
    # That of its trainer's tests.
    (
        {
            **{"ipus_per_replica": 4, "recompute_checkpoint_every_layer": True, "optimizer_state_offchip": True},
            **{"enable_half_partials": True, "output_mode": "all", "replicated_tensor_sharding": True},
            "executable_cache_dir": "disabled",
        },
        {"executable_cache_dir": "", "output_mode": "all", "optimizer_state_offchip": True},
    ),
    # Those of its pipelines and of Stable Diffusion.
    ({"ipus_per_replica": 2}, {"layers_per_ipu": [-1], "inference_ipus_per_replica": 2}),
    (
        {
            **{"ipus_per_replica": 4, "matmul_proportion": [0.6, 0.6, 0.1, 0.3], "attn_matrix_target_mem_mb": 100},
            **{"inference_device_iterations": 2, "inference_replication_factor": 1, "enable_half_partials": True},
        },
        {"inference_matmul_proportion": [0.6, 0.6, 0.1, 0.3]},
    ),
    ({"matmul_proportion": 0.6}, {"ipus_per_replica": 1, "matmul_proportion": 0.6}),
    ({"ipus_per_replica": 2, "matmul_proportion": 0.3}, {"inference_ipus_per_replica": 2}),
    (
        {"ipus_per_replica": 4, "matmul_proportion": [0.06, 0.1, 0.1, 0.1], "attn_matrix_target_mem_mb": 45},
        {"inference_matmul_proportion": [0.06, 0.1, 0.1, 0.1]},
    ),
    # Those that its encoders and decoders share.
    ({"layers_per_ipu": [6, 6]}, {"ipus_per_replica": 2}),
    ({"layers_per_ipu": [3, 3, 6]}, {"ipus_per_replica": 3}),
    ({"layers_per_ipu": [6, 0, 0, 6]}, {"ipus_per_replica": 4, "inference_layers_per_ipu": [6, 0, 0, 6]}),
    ({"layers_per_ipu": [2, 2, 2, 6]}, {"ipus_per_replica": 4}),
    ({"layers_per_ipu": [6, 2, 2, 2]}, {"ipus_per_replica": 4}),
    # Pod-keyed numbers, and keys that had no effect or are retired.
    ({"replication_factor": {"default": 2, "pod4": 1}}, {"replication_factor": 2}),
    ({"sharded_execution_for_inference": True, "enable_half_first_order_momentum": True}, {"ipus_per_replica": 1}),
    ({"parallelize_kwargs": {"use_cache": True}}, {"parallelize_kwargs": {"use_cache": True}}),
    ({"inference_parallelize_kwargs": {"use_cache": True}}, {"parallelize_kwargs": {}}),
]
assert len(CONFIGS) == 25


@pytest.mark.parametrize(("options", "attributes"), CONFIGS)
def test_a_configuration_means_what_it_meant_also_when_it_was_saved(options, attributes, tmp_path):
    config = IPUConfig(**options)
    assert {name: getattr(config, name) for name in attributes} == attributes
    config.save_pretrained(tmp_path)
    loaded = IPUConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert {name: getattr(loaded, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("options", "layers", "expected"),
    [
        ({"ipus_per_replica": 2}, 9, [4, 5]),
        ({"ipus_per_replica": 4}, 10, [2, 2, 2, 4]),
        ({"layers_per_ipu": [-1, -1, -1, -1]}, 10, [2, 2, 2, 4]),
        ({"layers_per_ipu": [1, -1, -1, 2]}, 8, [1, 2, 3, 2]),
        ({"layers_per_ipu": [3], "ipus_per_replica": 1}, 5, [5]),
        ({"layers_per_ipu": [2, 3]}, 5, [2, 3]),
    ],
)
def test_layers_lie_where_they_lay(options, layers, expected):
    config = IPUConfig(**options)
    assert modeling_utils._expand_layers_per_ipu_wildcard(config, layers) == expected
    ipus = [ipu for ipu, count in enumerate(expected) for _ in range(count)]
    assert modeling_utils.get_layer_ipu(config, ["layer"] * layers) == ipus


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        *[([6, 6], ([6], [6])), ([3, 3, 6], ([3, 3], [6])), ([6, 0, 0, 6], ([6, 0], [0, 6])), ([2, 2, 2, 6], None)],
        ([6, 2, 2, 2], ([6], [2, 2, 2])),
    ],
)
def test_encoder_and_decoder_are_cut_where_they_were(layers, expected):
    for mode in ("training", "inference"):
        config = IPUConfig(layers_per_ipu=layers)
        config.mode = mode
        if expected is None:
            with pytest.raises(IncompatibleIPUConfigError, match="cannot be split after 6"):
                modeling_utils.split_encoder_decoder_ipu_config(config, 6, 6)
            continue
        sides = modeling_utils.split_encoder_decoder_ipu_config(config, 6, 6)
        assert tuple(side._layers_per_ipu for side in sides) == expected
        assert {side.mode for side in sides} == {mode}


MANAGED = {
    "layers_per_ipu": ([1], [2]),
    "ipus_per_replica": (2, 4),
    "matmul_proportion": (0.1, 0.3),
    "embedding_serialization_factor": (2, 3),
    "serialized_embedding_splits_per_ipu": ([1], [2]),
    "projection_serialization_factor": (2, 3),
    "serialized_projection_splits_per_ipu": ([1], [2]),
    "parallelize_kwargs": ({"use_cache": True}, {"max_length": 3}),
}


@pytest.mark.parametrize("name", MANAGED)
def test_private_names_follow_the_mode(name):
    config = IPUConfig()
    for mode, value in zip(("training", "inference"), MANAGED[name], strict=True):
        assert config._get_managed_attr_mode_name(f"_{name}") == (name if mode == "training" else f"inference_{name}")
        setattr(config, f"_{name}", value)
        assert getattr(config, f"_{name}") == value
        assert getattr(config, config._get_managed_attr_mode_name(name)) == value
        config.eval()
    assert getattr(config.train(), f"_{name}") == MANAGED[name][0]
    assert copy.deepcopy(config).mode == "training" == config.mode


def test_another_mode_and_another_option_are_refused():
    config = IPUConfig()
    with pytest.raises(ValueError, match="`mode='evaluation'` is no execution mode"):
        config.mode = "evaluation"
    with pytest.raises(IncompatibleIPUConfigError, match="`layer_per_ipu` is not an option"):
        IPUConfig(layer_per_ipu=[1])
    assert config._get_managed_attr_mode_name("seed") == "seed"


BELOW = {
    **dict.fromkeys(("replication_factor", "ipus_per_replica", "device_iterations"), 0),
    **dict.fromkeys(("embedding_serialization_factor", "projection_serialization_factor"), 0),
    **{"layers_per_ipu": [-2], "matmul_proportion": [-0.1]},
    **{"serialized_embedding_splits_per_ipu": [3, 0, 2, 0], "serialized_projection_splits_per_ipu": [3, 0, 2, 0]},
}


@pytest.mark.parametrize(
    ("option", "bad", "error"),
    [
        *((f"{mode}{name}", bad, ValueError) for mode in ("", "inference_") for name, bad in BELOW.items()),
        ("gradient_accumulation_steps", 0, ValueError),
        ("output_mode", "every", ValueError),
        ("serialized_projection_splits_per_ipu", [0, 0], ValueError),
        ("device_iterations", "1", TypeError),
        ("recompute_checkpoint_every_layer", 1, TypeError),
    ],
)
def test_values_are_checked_as_they_were(option, bad, error):
    config = IPUConfig()
    with pytest.raises(error, match=option):
        setattr(config, option, bad)


@pytest.mark.parametrize("mode", ["", "inference_"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matmul_proportion": [0.1]}, "matmul_proportion=.* has 1 values"),
        ({"layers_per_ipu": [1], "ipus_per_replica": 2}, "layers_per_ipu=.* has 1 values"),
        ({"embedding_serialization_factor": 2, "serialized_embedding_splits_per_ipu": [1, 1]}, "Only one of"),
        ({"projection_serialization_factor": 2, "serialized_projection_splits_per_ipu": [1, 1]}, "Only one of"),
        ({"serialized_embedding_splits_per_ipu": [1]}, "serialized_embedding_splits_per_ipu=.* has 1 values"),
    ],
)
def test_options_that_contradict_each_other_are_refused_as_they_were(mode, options, message):
    given = {f"{mode}{name}": value for name, value in options.items()}
    with pytest.raises(IncompatibleIPUConfigError, match=f"{mode}{message}" if "_" in message else message):
        IPUConfig(**{"layers_per_ipu": [1, 1], **given})


def test_options_for_the_compiler_are_those_of_training_or_of_inference(monkeypatch):
    poptorch = MagicMock()
    monkeypatch.setitem(sys.modules, "poptorch", poptorch)
    config = IPUConfig(
        layers_per_ipu=[1, 1],
        **{"replication_factor": 2, "gradient_accumulation_steps": 3, "device_iterations": 4, "seed": 7},
        **{"inference_device_iterations": 5, "output_mode": "sum", "auto_loss_scaling": True},
        **{"optimizer_state_offchip": True, "replicated_tensor_sharding": True, "enable_half_partials": False},
        **{"matmul_proportion": [0.1, 0.3], "executable_cache_dir": "cache"},
    )
    calls = config.to_options().mock_calls
    for expected in (
        call.replicationFactor(2),
        call.deviceIterations(4),
        call.outputMode(poptorch.OutputMode.Sum),
        call.setExecutionStrategy(poptorch.PipelinedExecution.return_value),
        call.Training.gradientAccumulation(3),
        call.Training.setAutomaticLossScaling(True),
        call.randomSeed(7),
        call.setAvailableMemoryProportion({"IPU0": 0.1, "IPU1": 0.3}),
        call.enableExecutableCaching("cache"),
        call.Precision.enableStochasticRounding(True),
        call.Precision.setPartialsType(torch.float32),
        call._Popart.set("subgraphCopyingStrategy", 1),
    ):
        assert expected in calls, expected
    poptorch.TensorLocationSettings().useOnChipStorage.assert_called_with(False)
    poptorch.Options.return_value.reset_mock()
    calls = config.to_options(for_inference=True).mock_calls
    assert call.deviceIterations(5) in calls
    assert call.outputMode(poptorch.OutputMode.All) in calls
    assert call.setExecutionStrategy(poptorch.ShardedExecution.return_value) in calls
    assert not [each for each in calls if each[0].startswith("Training")]


def test_a_copy_with_other_options_is_of_the_same_class():
    assert type(IPUConfig().replace(seed=1)) is IPUConfig
    assert type(OrdinaryConfig().replace(seed=1)) is OrdinaryConfig


def test_an_argument_is_renamed_once_or_has_no_effect_and_says_so(caplog):
    table = {"renamed": {"tokenizer": "processing_class"}, "without_effect": {"force": "of no use"}}
    for _ in range(2):
        found = translated("IPUTrainer", {"tokenizer": 1, "force": True, "seed": 2}, **table)
        assert found == {"processing_class": 1, "seed": 2}
    assert [record.message for record in caplog.records] == [
        "`force` of `IPUTrainer` has no effect here: of no use",
        "`tokenizer` of `IPUTrainer` is now `processing_class`",
    ]
    with pytest.raises(ValueError, match="got `tokenizer=1` and `processing_class=2`, one argument"):
        translated("IPUTrainer", {"tokenizer": 1, "processing_class": 2}, **table)


def test_old_names_are_served_where_nothing_else_has_them():
    assert install() == ("optimum.graphcore", "poptorch", "popart") == install()
    graphcore = importlib.import_module("optimum.graphcore")
    assert graphcore.IPUConfig is IPUConfig
    assert importlib.import_module("optimum.graphcore.ipu_configuration").IPUConfig is IPUConfig
    assert importlib.import_module("popart").SubgraphCopyingStrategy.JustInTime == 1
    for statement, message in (
        ("from optimum.graphcore import IPUTraner", "did you mean `IPUTrainer`?"),
        ("from optimum.graphcore.models.gpt2 import OptimizedGPT2Attention", "upstream's own modules run"),
        ("from optimum.graphcore.pipelines import get_poplar_executor", "inference_model"),
    ):
        with pytest.raises(ImportError, match=message):
            exec(statement)


def test_a_module_within_an_old_name_is_one_module(tmp_path, monkeypatch):
    (tmp_path / "poptorch").mkdir()
    (tmp_path / "poptorch" / "__init__.py").write_text("from . import optim\n")
    (tmp_path / "poptorch" / "optim.py").write_text("class SGD: pass\n")
    monkeypatch.setattr(migration, "__path__", [str(tmp_path)])
    monkeypatch.setattr(migration, "poptorch", None, raising=False)  # an import sets it, and has to leave ours
    for name in [name for name in sys.modules if name.startswith("ipu_core.migration.poptorch")]:
        monkeypatch.delitem(sys.modules, name)
    install()
    poptorch, optim = importlib.import_module("poptorch"), importlib.import_module("poptorch.optim")
    assert optim is poptorch.optim
    assert (poptorch.__name__, optim.SGD.__module__) == (
        "ipu_core.migration.poptorch",
        "ipu_core.migration.poptorch.optim",
    )
    for name in [name for name in sys.modules if name.startswith("ipu_core.migration.poptorch")]:
        del sys.modules[name]


def test_an_old_name_without_a_package_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(migration, "__path__", [])
    for name in [name for name in sys.modules if name.startswith("ipu_core.migration.poptorch")]:
        monkeypatch.delitem(sys.modules, name)
    install()
    with pytest.raises(ModuleNotFoundError, match="this ipu-core has no `ipu_core.migration.poptorch`"):
        importlib.import_module("poptorch")


def test_what_is_installed_is_used_and_said(tmp_path, monkeypatch, caplog):
    (tmp_path / "poptorch.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert install() == ("optimum.graphcore", "popart")
    assert "`poptorch` is installed: it is used, and not the one of ipu-core" in caplog.text
    assert importlib.import_module("poptorch").real


def test_a_name_of_a_package_that_is_not_installed_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipu_trainer", None)
    old = next(old for old in NAMES if old.name == "IPUTrainingSummary")
    with pytest.raises(ImportError, match="needs ipu-trainer, which is not installed: `pip install ipu-trainer`"):
        value_of(old)


def test_a_script_runs_with_its_arguments_and_keeps_its_exit_status(tmp_path, capsys):
    script = tmp_path / "old.py"
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    script.write_text(
        "import sys\nfrom optimum.graphcore import IPUConfig\nfrom beside import NAME\n"
        "print(__name__, sys.argv[1:], NAME, IPUConfig(ipus_per_replica=2).ipus_per_replica)\nsys.exit(3)\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(script), "--json", "1"])
    assert ended.value.code == 3
    assert capsys.readouterr().out == "__main__ ['--json', '1'] beside 2\n"


def test_a_script_that_raises_raises(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("raise RuntimeError('of the script')\n")
    with pytest.raises(RuntimeError, match="of the script"):
        main(["run", str(script)])


def test_a_script_that_is_not_there_is_one_error(tmp_path, capsys):
    (tmp_path / "train.py").write_text("")
    assert main(["run", str(tmp_path / "trian.py")]) == 2
    said = capsys.readouterr().err
    assert said == f"ipu run: the script `{tmp_path / 'trian.py'}` is not there: `{tmp_path}` has train.py\n"
    assert main(["run", str(tmp_path)]) == 2
    assert "is a folder: give a Python file in it: train.py" in capsys.readouterr().err
    assert main(["run"]) == 2
    assert main(["run", "--help"]) == 0
    assert "usage: ipu run SCRIPT" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["input_channels", "reducing_dim", "output_channels", "disabled"])
def test_a_linear_layer_in_parts_is_the_plain_one(mode):
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 4)
    given = torch.randn(2, 4, 6)
    parts = SerializedLinear.from_model(plain, 2, mode)
    torch.testing.assert_close(parts(given), plain(given))
    assert type(parts.to_model()) is torch.nn.Linear
    torch.testing.assert_close(parts.to_model()(given), plain(given))


def test_embeddings_and_projections_in_parts_are_the_plain_ones():
    torch.manual_seed(0)
    table, linear = torch.nn.Embedding(6, 3, padding_idx=4), torch.nn.Linear(6, 4)
    ids, given = torch.tensor([[0, 5, 2], [3, 1, 4]]), torch.randn(2, 6)
    parts = SerializedEmbedding.from_model(table, 3)
    torch.testing.assert_close(parts(ids), table(ids))
    assert [part.padding_idx for part in parts.split_embeddings] == [None, None, 0]
    torch.testing.assert_close(parts.to_model().weight, table.weight)
    torch.testing.assert_close(SplitProjection.from_model(linear, 2)(given), linear(given))
    torch.testing.assert_close(SplitProjection(linear, 2).to_model()(given), linear(given))
    assert SharedEmbedding(table)(ids)[1] is None
    torch.testing.assert_close(SharedEmbedding(table)(ids, ids, 2.0)[0], 2 * table(ids))
    torch.testing.assert_close(OnehotGather()(table(ids), torch.tensor([[1], [2]]))[:, 0], table(torch.tensor([5, 4])))
    with pytest.raises(ValueError, match="6 entries do not divide into 4"):
        SerializedEmbedding(table, 4)
    with pytest.raises(ValueError, match="6 features do not divide into 4"):
        SplitProjection(linear, 4)


def test_a_batch_is_filled_up_with_its_rows():
    collate = pad_on_batch_axis(5)(lambda rows: {"x": torch.tensor(rows), "name": "rows"})
    assert collate([1, 2])["x"].tolist() == [1, 2, 1, 2, 1]
    assert collate([1, 2])["name"] == "rows"


def test_the_bound_of_masked_tokens_is_that_of_the_collator():
    assert (most_masked(128, 0.15), most_masked(512, 0.15), most_masked(8, 0.15)) == (32, 96, 8)


def test_a_release_that_never_was_is_refused():
    check_min_version("0.6.1")
    check_min_version("0.7.1.dev0")
    with pytest.raises(ImportError, match="needs optimum-graphcore 0.8.0"):
        check_min_version("0.8.0")


def test_a_row_with_too_many_masked_tokens_has_some_unmasked():
    tokenizer = tiny_texts.tokenizer()
    collator = DataCollatorForLanguageModelingWithMaxTokensMasked(48, tokenizer, mlm_probability=0.9)
    torch.manual_seed(0)
    rows = [tokenizer(text, padding="max_length", max_length=16, truncation=True) for text in tiny_texts.TEXTS]
    whole = collator(rows)
    plain = torch.tensor([row["input_ids"] for row in rows])
    assert ((whole["labels"] != -100).sum(dim=1) > 2).any()
    collator.max_num_masked_tokens = 2
    batch = collator(rows)
    is_masked = batch["labels"] != -100
    assert is_masked.sum(dim=1).max() == 2
    torch.testing.assert_close(batch["labels"][is_masked], plain[is_masked])
    torch.testing.assert_close(batch["input_ids"][~is_masked], plain[~is_masked])


def test_a_model_has_its_old_methods_and_generates_with_caches_of_the_sizes_it_is_given():
    model = tiny_texts.gpt2()
    ids = torch.tensor([[5, 6, 7]])
    config = IPUConfig(layers_per_ipu=[2, 2])
    pipelined = modeling_utils.to_pipelined(model, config, force=True)
    assert isinstance(pipelined, modeling_utils.PipelineMixin) and isinstance(pipelined, PipelineMixin)
    assert isinstance(pipelined, modeling_utils.IPUGenerationMixin)
    assert pipelined.parallelize(for_generation=True, use_cache=True, batch_size=1, max_length=8) is pipelined
    expected = model.generate(ids, max_length=8, do_sample=False)
    assert pipelined.generate(ids, max_length=8, do_sample=False).tolist() == expected.tolist()
    assert pipelined.deparallelize() is pipelined
    with pytest.raises(CacheError):
        pipelined.generate(torch.cat([ids, ids]), max_length=8)
    assert type(pipelined).plain_class() is transformers.GPT2LMHeadModel


def test_a_class_of_a_scripts_own_runs_in_the_place_of_the_plain_one(monkeypatch):
    monkeypatch.setattr(modeling_utils, "REGISTERED", {})
    model = tiny_texts.gpt2()

    @modeling_utils.register()
    class PipelinedLouder(transformers.GPT2LMHeadModel, modeling_utils.PipelineMixin):
        def parallelize(self):
            super().parallelize()
            self.louder = len(modeling_utils.get_layer_ipu(self.ipu_config, self.transformer.h))
            return self

        def forward(self, *args, **kwargs):
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * self.louder
            return outputs

    pipelined = modeling_utils.to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2]))
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "use_cache": False}
    torch.testing.assert_close(inference_model(pipelined)(**batch).logits, 4 * model(**batch).logits)
    assert not hasattr(model, "louder")
    with pytest.raises(ValueError, match="`Nothing` has no base that is a model"):
        modeling_utils.register()(type("Nothing", (modeling_utils.PipelineMixin,), {}))


def test_a_pipeline_takes_the_old_arguments(caplog):
    from ipu_core.migration.graphcore.pipelines import IPUFillMaskPipeline, list_tasks, pipeline

    model, tokenizer = tiny_texts.bert("BertForMaskedLM"), tiny_texts.tokenizer()
    config = IPUConfig(layers_per_ipu=[2, 2], inference_parallelize_kwargs={"use_cache": True})
    fill = pipeline("fill-mask", model, config, tokenizer, fp16=False, padding="max_length", max_length=32)
    assert isinstance(fill, IPUFillMaskPipeline)
    expected = transformers.pipeline("fill-mask", model, tokenizer=tokenizer)("the [MASK] fox")
    tiny_texts.assert_equal_answers(fill("the [MASK] fox"), expected)
    assert "`max_length` of `pipeline` has no effect here" in caplog.text
    assert "`inference_parallelize_kwargs` has no effect here" in caplog.text
    assert "fill-mask" in list_tasks()
    with pytest.raises(TypeError, match="`pipeline_class=int` is none of `FillMaskPipeline`"):
        pipeline("fill-mask", model, config, tokenizer, pipeline_class=int)
