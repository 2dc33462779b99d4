# SPDX-License-Identifier: Apache-2.0
"""`IPUConfig`: defaults, fall-backs, checks, views, files."""

import dataclasses
import json

import pytest
from ipu_core import IncompatibleIPUConfigError, IPUConfig, split_encoder_decoder_ipu_config
from ipu_core.config.options import ATTRIBUTES, OPTIONS


def test_defaults():
    config = IPUConfig()
    assert config.layers_per_ipu == config.inference_layers_per_ipu == [-1]
    assert config.ipus_per_replica == config.inference_ipus_per_replica == 1
    assert config.optimizer_state_offchip is False
    assert config.enable_half_partials is True
    assert config.output_mode == "final"
    assert config.seed is None
    for layer in ("embedding", "projection"):
        for prefix in ("", "inference_"):
            assert getattr(config, f"{prefix}{layer}_serialization_factor") == 1
            assert getattr(config, f"{prefix}serialized_{layer}_splits_per_ipu") is None


def test_defaults_are_not_shared_between_configurations():
    IPUConfig().layers_per_ipu.append(3)
    assert IPUConfig().layers_per_ipu == [-1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers_per_ipu": [3, 3, 3, 3]}, {"ipus_per_replica": 4, "inference_ipus_per_replica": 4}),
        ({"ipus_per_replica": 4}, {"inference_ipus_per_replica": 4, "inference_layers_per_ipu": [-1]}),
        ({"layers_per_ipu": [1, 2], "inference_layers_per_ipu": [1, 1, 1]}, {"inference_ipus_per_replica": 3}),
        ({"ipus_per_replica": 4, "inference_layers_per_ipu": [1, 2]}, {"inference_ipus_per_replica": 2}),
        ({"matmul_proportion": 0.3}, {"inference_matmul_proportion": 0.3}),
        (
            {"layers_per_ipu": [1, 2], "matmul_proportion": [0.1, 0.2], "inference_layers_per_ipu": [3]},
            {"inference_matmul_proportion": 0.2},
        ),
        (
            {"layers_per_ipu": [1, 2], "matmul_proportion": [0.1, 0.3]},
            {"inference_matmul_proportion": [0.1, 0.3]},
        ),
        ({"layers_per_ipu": [1, 2], "devices": ("cuda:0", "cpu")}, {"inference_devices": ["cuda:0", "cpu"]}),
        (
            {"layers_per_ipu": [1, 2], "devices": ["cuda:0", "cpu"], "inference_devices": None},
            {"devices": ["cuda:0", "cpu"], "inference_devices": None},
        ),
        (
            {"layers_per_ipu": [1, 2], "serialized_embedding_splits_per_ipu": [2, 1]},
            {"embedding_serialization_factor": None, "inference_embedding_serialization_factor": 1},
        ),
    ],
)
def test_fall_backs(options, expected):
    config = IPUConfig(**options)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("name", [name for name in ATTRIBUTES if OPTIONS[name.removeprefix("inference_")].minimum])
def test_a_value_below_the_minimum_is_refused_by_name(name):
    option = OPTIONS[name.removeprefix("inference_")]
    low = option.minimum - 1
    with pytest.raises(ValueError, match=rf"`{name}` must be >= {option.minimum}"):
        setattr(IPUConfig(), name, [low] if isinstance(option.default, list) or "splits" in name else low)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers_per_ipu", [1.0]),
        ("layers_per_ipu", 3),
        ("layers_per_ipu", None),
        ("replication_factor", "2"),
        ("replication_factor", True),
        ("seed", 1.5),
        ("optimizer_state_offchip", 1),
        ("matmul_proportion", ["a"]),
        ("executable_cache_dir", None),
        ("output_mode", 3),
        ("devices", "cuda:0"),
        ("devices", [0]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(TypeError, match=rf"`{name}=.*must be"):
        IPUConfig(**{name: value})
    with pytest.raises(TypeError, match=name):
        setattr(IPUConfig(), name, value)


def test_an_unknown_output_mode_is_refused():
    with pytest.raises(ValueError, match="`output_mode='finale'` is not one of .* did you mean `final`"):
        IPUConfig(output_mode="finale")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"output_mode": "every_n", "output_return_period": 4, "device_iterations": 6},
            r"`output_return_period=4` does not divide `device_iterations=6`: set it to one of \[1, 2, 3, 6\]",
        ),
        (
            {"output_mode": "every_n", "output_return_period": 12, "device_iterations": 6},
            "`output_return_period=12` does not divide `device_iterations=6`",
        ),
        ({"output_mode": "every_n", "device_iterations": 6}, "`output_mode='every_n'` has no `output_return_period`"),
        ({"output_return_period": 1}, "`output_return_period=1` has no effect with `output_mode='final'`: leave it"),
    ],
)
def test_a_return_period_that_does_not_fit_is_refused(options, message):
    with pytest.raises(IncompatibleIPUConfigError, match=message):
        IPUConfig(**options)


def test_inference_reads_no_return_period():
    config = IPUConfig(output_mode="every_n", output_return_period=2, device_iterations=4)
    assert config.for_training().output_return_period == 2
    assert (config.for_inference().output_mode, config.for_inference().output_return_period) == ("all", None)


@pytest.mark.parametrize("splits", [[3, 0, 2, 0], [0, 0, 0, 0]])
def test_splits_with_a_gap_or_without_any_are_refused(splits):
    with pytest.raises(ValueError, match="serialized_embedding_splits_per_ipu"):
        IPUConfig(layers_per_ipu=[1, 1, 1, 1], serialized_embedding_splits_per_ipu=splits)


@pytest.mark.parametrize("prefix", ["", "inference_"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers_per_ipu": [1, 2], "ipus_per_replica": 3}, r"layers_per_ipu=\[1, 2\]` has 2 values and .*=3"),
        ({"ipus_per_replica": 2, "matmul_proportion": [0.1]}, r"matmul_proportion=\[0.1\]` has 1 values"),
        ({"ipus_per_replica": 2, "devices": ["cpu"]}, r"devices=\['cpu'\]` has 1 values and .*=2`: give one value"),
        (
            {
                "ipus_per_replica": 2,
                "embedding_serialization_factor": 2,
                "serialized_embedding_splits_per_ipu": [1, 1],
            },
            "Only one of `.*embedding_serialization_factor=2`",
        ),
        ({"ipus_per_replica": 2, "serialized_projection_splits_per_ipu": [1, 1, 1]}, "projection_splits_per_ipu"),
    ],
)
def test_options_that_contradict_each_other_are_refused(prefix, options, message):
    with pytest.raises(IncompatibleIPUConfigError, match=message) as raised:
        IPUConfig(**{prefix + name: value for name, value in options.items()})
    assert prefix in str(raised.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_name():
    with pytest.raises(
        IncompatibleIPUConfigError, match="`layer_per_ipu` is not an option .*did you mean `layers_per_ipu`"
    ):
        IPUConfig(layer_per_ipu=[1])


def test_the_views_are_frozen_and_read_their_own_options():
    config = IPUConfig(
        layers_per_ipu=[1, 2],
        inference_layers_per_ipu=[3],
        replication_factor=2,
        gradient_accumulation_steps=4,
        device_iterations=3,
        inference_device_iterations=5,
        output_mode="default",
    )
    training, inference = config.for_training(), config.for_inference()
    assert (training.layers_per_ipu, training.ipus_per_replica, training.num_ipus) == ((1, 2), 2, 4)
    assert (inference.layers_per_ipu, inference.ipus_per_replica, inference.num_ipus) == ((3,), 1, 1)
    assert training.batch_size_factor == config.batch_size_factor() == 2 * 4 * 3
    assert inference.batch_size_factor == config.batch_size_factor(for_inference=True) == 5
    assert (training.output_mode, inference.output_mode) == ("final", "all")
    with pytest.raises(dataclasses.FrozenInstanceError):
        training.replication_factor = 3


@pytest.mark.parametrize("training", [0.1, [0.1, 0.2]])
@pytest.mark.parametrize("inference", [0.4, [0.3, 0.4, 0.5]])
def test_each_view_has_its_own_matmul_proportion(training, inference):
    config = IPUConfig(
        layers_per_ipu=[1, 2],
        matmul_proportion=training,
        inference_layers_per_ipu=[1, 1, 1],
        inference_matmul_proportion=inference,
    )
    assert config.for_training().matmul_proportion == (tuple(training) if isinstance(training, list) else (0.1, 0.1))
    expected = tuple(inference) if isinstance(inference, list) else (0.4,) * 3
    assert config.for_inference().matmul_proportion == expected


def test_seed_zero_is_a_seed():
    assert IPUConfig(seed=0).for_training().seed == 0


def test_saved_and_loaded_it_is_equal(tmp_path):
    config = IPUConfig(layers_per_ipu=[1, 2], seed=0, matmul_proportion=[0.1, 0.2], replication_factor=2)
    config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ipu_config.json"]
    assert IPUConfig.from_pretrained(tmp_path) == config
    assert IPUConfig.from_dict(config.to_dict()) == config
    assert config != IPUConfig(layers_per_ipu=[2, 1])


def test_a_loaded_configuration_follows_changes_as_the_written_one_does(tmp_path):
    IPUConfig(layers_per_ipu=[1, 2, 2, 1], gradient_accumulation_steps=4).save_pretrained(tmp_path)
    loaded = IPUConfig.from_pretrained(tmp_path)
    assert repr(loaded) == "IPUConfig(gradient_accumulation_steps=4, layers_per_ipu=[1, 2, 2, 1])"
    changed = loaded.replace(layers_per_ipu=[3, 3])
    assert (changed.ipus_per_replica, changed.inference_layers_per_ipu) == (2, [3, 3])
    assert loaded.layers_per_ipu == [1, 2, 2, 1]


OLD_FILES = {
    "0.6.1": {
        "auto_loss_scaling": False,
        "embedding_serialization_factor": 2,
        "gradient_accumulation_steps": 512,
        "inference_device_iterations": 4,
        "inference_replication_factor": 4,
        "ipus_per_replica": 4,
        "layers_per_ipu": [3, 3, 3, 3],
        "matmul_proportion": [0.15, 0.3, 0.3, 0.3],
        "optimizer_state_offchip": True,
        "optimum_version": "1.6.1",
        "output_mode": "final",
        "recompute_checkpoint_every_layer": True,
        "replicated_tensor_sharding": True,
        "replication_factor": 4,
        "seed": 42,
        "transformers_version": "4.25.1",
    },
    "pod-keyed": {
        "decompose_grad_sum": True,
        "enable_half_first_order_momentum": True,
        "execute_encoder_on_cpu_for_generation": False,
        "inference_replication_factor": {"default": 2, "pod4": 1},
        "layers_per_ipu": [2, 4],
        "profile_dir": "",
        "replication_factor": {"default": 4, "pod16": 4},
        "sharded_execution_for_inference": False,
        "synthetic_data": False,
        "use_popdist": False,
    },
    "transitional": {"training_replication_factor": 2, "training_device_iterations": 3, "layers_per_ipu": [2, 4]},
    "0.7": {"explicit_ir_inference": False, "parallelize_kwargs": {}, "inference_parallelize_kwargs": {}},
}


@pytest.mark.parametrize("written", OLD_FILES)
def test_files_of_optimum_graphcore_are_read_unchanged(written, tmp_path):
    values = OLD_FILES[written]
    (tmp_path / "ipu_config.json").write_text(json.dumps(values))
    config = IPUConfig.from_pretrained(tmp_path)
    for name, value in values.items():
        name = name.removeprefix("training_")
        if name in ATTRIBUTES:
            assert getattr(config, name) == (value["default"] if isinstance(value, dict) else value)


def test_a_pod_keyed_factor_without_a_default_is_refused():
    with pytest.raises(ValueError, match="keyed by pod and has no `default`"):
        IPUConfig(replication_factor={"pod4": 1})


def test_update_from_string_reads_each_option_as_its_type_and_works_fall_backs_out_again():
    config = IPUConfig(layers_per_ipu=[2, 2])
    config.update_from_string("layers_per_ipu=[1 1 1 1], optimizer_state_offchip=yes, matmul_proportion=0.5, seed=0")
    assert config.layers_per_ipu == config.inference_layers_per_ipu == [1, 1, 1, 1]
    assert config.ipus_per_replica == 4
    assert config.optimizer_state_offchip is True
    assert config.inference_matmul_proportion == 0.5
    assert config.seed == 0
    config.update_from_string("layers_per_ipu=[1 1],devices=[cuda:1, 'cpu']")
    assert config.inference_devices == ["cuda:1", "cpu"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer_per_ipu=3", "did you mean `layers_per_ipu`"),
        ("seed", "`seed` is not `option=value`"),
        ("optimizer_state_offchip=perhaps", "`optimizer_state_offchip=perhaps` cannot be read as a bool"),
        ("replication_factor=two", "`replication_factor=two` cannot be read as an int"),
    ],
)
def test_update_from_string_refuses_what_it_cannot_read(text, message):
    config = IPUConfig(seed=3)
    with pytest.raises(ValueError, match=message):
        config.update_from_string(f"seed=4,{text}")
    assert config == IPUConfig(seed=3)


def test_encoder_and_decoder_get_their_own_ipus():
    config = IPUConfig(
        layers_per_ipu=[3, 3, 6, 0],
        matmul_proportion=[0.1, 0.2, 0.3, 0.4],
        devices=["cuda:0", "cuda:1", "cpu", "cuda:0"],
        serialized_embedding_splits_per_ipu=[2, 0, 0, 0],
        serialized_projection_splits_per_ipu=[0, 0, 0, 3],
    )
    encoder, decoder = split_encoder_decoder_ipu_config(config, 6, 6)
    assert (encoder.layers_per_ipu, decoder.layers_per_ipu) == ([3, 3], [6, 0])
    assert (encoder.matmul_proportion, decoder.matmul_proportion) == ([0.1, 0.2], [0.3, 0.4])
    assert (encoder.devices, decoder.devices) == (["cuda:0", "cuda:1"], ["cpu", "cuda:0"])
    assert encoder.serialized_embedding_splits_per_ipu == [2, 0]
    assert decoder.serialized_projection_splits_per_ipu == [0, 3]
    assert encoder.serialized_projection_splits_per_ipu is decoder.serialized_embedding_splits_per_ipu is None


def test_encoder_and_decoder_split_in_inference_leaves_the_training_options():
    config = IPUConfig(layers_per_ipu=[12], inference_layers_per_ipu=[6, 6])
    encoder, decoder = split_encoder_decoder_ipu_config(config, 6, 6, for_inference=True)
    assert (encoder.inference_layers_per_ipu, decoder.inference_layers_per_ipu) == ([6], [6])
    assert encoder.layers_per_ipu == decoder.layers_per_ipu == [12]


def test_splits_on_the_wrong_side_are_refused():
    wrong = IPUConfig(layers_per_ipu=[6, 6], serialized_embedding_splits_per_ipu=[0, 2])
    with pytest.raises(ValueError, match=r"serialized_embedding_splits_per_ipu=\[0, 2\]` must lie on the encoder's"):
        split_encoder_decoder_ipu_config(wrong, 6, 6)
    wrong = IPUConfig(layers_per_ipu=[6, 6], serialized_projection_splits_per_ipu=[2, 0])
    with pytest.raises(ValueError, match="must lie on the decoder's"):
        split_encoder_decoder_ipu_config(wrong, 6, 6)


def test_one_ipu_cannot_be_split():
    with pytest.raises(
        IncompatibleIPUConfigError, match="`ipus_per_replica=1`: an encoder and a decoder need at least 2"
    ):
        split_encoder_decoder_ipu_config(IPUConfig(), 6, 6)


def test_options_of_a_machine_are_neither_saved_nor_taken_from_a_file(tmp_path, caplog):
    config = IPUConfig(layers_per_ipu=[1, 1], executable_cache_dir="mine", devices=["cpu", "cpu"])
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "ipu_config.json").read_text())
    assert (saved["executable_cache_dir"], saved["devices"], saved["inference_devices"]) == ("", None, None)
    IPUConfig.from_pretrained(tmp_path)
    assert not caplog.text, "what is saved of no machine is taken without a word"
    (tmp_path / "ipu_config.json").write_text(
        json.dumps({**saved, "executable_cache_dir": "theirs", "devices": ["cuda:0", "cuda:1"]})
    )
    loaded = IPUConfig.from_pretrained(tmp_path)
    assert (loaded.executable_cache_dir, loaded.devices) == ("", None)
    assert "`executable_cache_dir='theirs'` of `" in caplog.text
    assert "is not used, for it is of another machine: pass `devices=` to `from_pretrained`" in caplog.text
    given = IPUConfig.from_pretrained(tmp_path, executable_cache_dir="ours", devices=["cpu", "cpu"])
    assert (given.executable_cache_dir, given.devices) == ("ours", ["cpu", "cpu"])


def test_a_cache_directory_called_disabled_is_none():
    config = IPUConfig(executable_cache_dir="disabled")
    assert config.executable_cache_dir == config.for_training().executable_cache_dir == ""
    config.executable_cache_dir = "disabled"
    assert config.executable_cache_dir == ""


def test_a_misspelt_attribute_is_refused_with_the_nearest_one():
    config = IPUConfig()
    with pytest.raises(AttributeError, match="`sed` is not an option of IPUConfig, did you mean `seed`"):
        config.sed = 3
    with pytest.raises(AttributeError, match="`inference_seed` is not an option"):
        config.inference_seed = 3
    config.inference_devices = ["cpu"]
