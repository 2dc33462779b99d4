# SPDX-License-Identifier: Apache-2.0
"""The state of an optimizer in parts: what one process reads of it, and damage that is refused."""

import pickle

import pytest
import torch
from ipu_trainer import merge_optimizer
from ipu_trainer.errors import CheckpointError
from ipu_trainer.optimizer_state import PARTS, saved_optimizer
from safetensors.torch import save_file

TENSORS = {"0.exp_avg": torch.arange(6.0).reshape(2, 3), "0.step": torch.tensor(3.0), "2.exp_avg": torch.ones(4)}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / PARTS
    folder.mkdir()
    for number in (0, 2):
        own = {key: value for key, value in TENSORS.items() if key.startswith(str(number))}
        save_file(own, folder / f"shard-{number}.safetensors")
    plain = {"param_groups": [{"lr": 0.1, "params": [0, 1, 2]}], "tensors": sorted(TENSORS), "others": {"1.count": 7}}
    torch.save(plain, folder / "plain.pt")
    return tmp_path


def test_a_process_reads_the_states_that_it_asks_for(checkpoint):
    saved = saved_optimizer(checkpoint)
    assert saved.groups[0]["lr"] == 0.1 and saved.state[2]["exp_avg"].shape == (4,)
    found = saved.read([0, 1, 3])
    assert found.keys() == {0, 1} and found[1] == {"count": 7} and found[0]["step"] == 3.0
    assert torch.equal(found[0]["exp_avg"], TENSORS["0.exp_avg"])


def test_a_checkpoint_of_one_process_has_no_parts_to_merge(tmp_path):
    with pytest.raises(CheckpointError, match="has no parts of an optimizer's state, `optimizer`: ranks wrote none"):
        merge_optimizer(tmp_path)
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match="it has `optimizer.pt` already"):
        merge_optimizer(tmp_path)


def test_parts_are_merged_into_one_file_and_stay(checkpoint):
    found = torch.load(merge_optimizer(checkpoint), weights_only=True)
    assert found["param_groups"][0]["lr"] == 0.1 and found["state"].keys() == {0, 1, 2}
    assert torch.equal(found["state"][2]["exp_avg"], TENSORS["2.exp_avg"]) and found["state"][1] == {"count": 7}
    assert sorted(path.name for path in checkpoint.iterdir()) == ["optimizer", "optimizer.pt"]


def cut_short(folder):
    part = folder / "shard-2.safetensors"
    part.write_bytes(part.read_bytes()[:40])


def lost(folder):
    (folder / "shard-2.safetensors").unlink()


def running_code(folder):
    (folder / "plain.pt").write_bytes(pickle.dumps(lost))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "a part in .* was cut short"),
        (lost, "has 2 tensors, and 3 were written; `2.exp_avg` is one of the others"),
        (running_code, "holds more than tensors and plain values"),
    ],
)
def test_parts_that_are_damaged_are_refused(damage, message, checkpoint):
    damage(checkpoint / PARTS)
    with pytest.raises(CheckpointError, match=message):
        saved_optimizer(checkpoint)
