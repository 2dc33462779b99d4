# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of runs that are killed at any write, or run out of disk: the old one or the new one, never half."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import pickle
import random
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig
from ipu_core.samples import sample_batch
from ipu_trainer import IPUTrainer, IPUTrainingArguments
from ipu_trainer.checkpoints import ASIDE, clear_leftovers, surplus
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
QUIET = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
EXACT = {"atol": 0, "rtol": 0}


def model():
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **tiny))


def rows(count):
    batch = sample_batch(model(), batch_size=count, length=6)
    return [{name: tensor[i] for name, tensor in batch.items()} for i in range(count)]


def trainer(path, callbacks=None, **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    args = IPUTrainingArguments(str(path), **{**QUIET, **defaults, **options})
    return IPUTrainer(model(), CONFIG, args, train_dataset=rows(24), eval_dataset=rows(8), callbacks=callbacks)


class StopBeforeSaving(TrainerCallback):
    """Stops at a step, before its checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save, control.should_training_stop = False, True


def stopped_before_its_second_save(path, **options):
    made = trainer(path, [StopBeforeSaving(4)], **options)
    made.train()
    return made


def files(directory):
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


class DieAt:
    """Ends this process, as a kill would, at the n-th thing it writes; half of a file of tensors is written by then."""

    def __init__(self, number):
        self.number, self.count = number, 0

    def tick(self):
        self.count += 1
        if self.count == self.number:
            os._exit(9)

    def watch(self):
        sys.addaudithook(self._audit)
        fsync, save = os.fsync, torch.save
        os.fsync = lambda descriptor: (self.tick(), fsync(descriptor))
        torch.save = lambda state, path: self._in_halves(lambda file: save(state, file), path)
        module = transformers.modeling_utils
        write = module.safe_save_file
        module.safe_save_file = lambda tensors, path, **options: self._cut(
            lambda: write(tensors, path, **options), path
        )

    def _audit(self, event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            self.tick()

    def _in_halves(self, save, path):
        buffer = io.BytesIO()
        save(buffer)
        written = buffer.getvalue()
        Path(path).write_bytes(written[: len(written) // 2])
        self.tick()
        Path(path).write_bytes(written)

    def _cut(self, write, path):
        write()
        written = Path(path).read_bytes()
        Path(path).write_bytes(written[: len(written) // 2])
        self.tick()
        Path(path).write_bytes(written)


def in_a_child(act):
    """Do something in a copy of this process, and give its exit status and what it wrote to the file it is handed."""
    reading, writing = os.pipe()
    state = random.getstate()
    child = os.fork()
    if child == 0:
        random.setstate(state)  # Python seeds it anew in a copy of a process
        try:
            os.write(writing, str(act()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, repr(error).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def dying_at(number, act):
    def run():
        die = DieAt(number)
        die.watch()
        act()
        return die.count

    return in_a_child(run)


def restored(directory, backup):
    shutil.rmtree(directory)
    shutil.copytree(backup, directory)


@pytest.mark.parametrize("limit", [None, 1], ids=["keeping all", "keeping one"])
def test_a_run_killed_at_any_write_of_a_save_leaves_the_old_or_the_new_checkpoint(limit, tmp_path):
    out, backup = tmp_path / "out", tmp_path / "backup"
    killed = stopped_before_its_second_save(out, save_total_limit=limit)
    shutil.copytree(out, backup)
    old = files(out / "checkpoint-2")

    def save():
        killed._save_checkpoint(killed.model, None)

    status, count = dying_at(0, save)
    assert status == 0, count
    new = files(out / "checkpoint-4")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= new.keys()
    outcomes = []
    for number in range(1, int(count) + 1):
        restored(out, backup)
        status, _ = dying_at(number, save)
        assert status == 9
        last = get_last_checkpoint(out)
        outcomes.append(Path(last).name)
        assert files(Path(last)) == (old if outcomes[-1] == "checkpoint-2" else new), f"killed at write {number}"
        clear_leftovers(out)
        names = {path.name for path in out.iterdir()}
        assert outcomes[-1] in names <= {"checkpoint-2", "checkpoint-4"}
    assert [name for name, _ in itertools.groupby(outcomes)] == ["checkpoint-2", "checkpoint-4"]
    assert outcomes.count("checkpoint-2") > 20


@pytest.mark.parametrize("number", [5, 25, 0], ids=["early", "late", "after"])
def test_what_was_left_resumes_exactly(number, tmp_path, caplog):
    whole = trainer(tmp_path / "whole")
    whole.train()
    out = tmp_path / "out"
    killed = stopped_before_its_second_save(out)
    dying_at(number, lambda: killed._save_checkpoint(killed.model, None))
    assert (out / ASIDE).exists() == bool(number)
    resumed = trainer(out)
    resumed.train(resume_from_checkpoint=True)
    assert not (out / ASIDE).exists()
    assert ("a run that was killed left" in caplog.text) == bool(number)
    for name, tensor in resumed.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], **EXACT)
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]


def test_a_checkpoint_is_replaced_at_once(tmp_path):
    """The same step is saved again in a directory that an earlier run has used."""
    out, backup = tmp_path / "out", tmp_path / "backup"
    killed = stopped_before_its_second_save(out)
    shutil.copytree(out / "checkpoint-2", out / "checkpoint-4")
    shutil.copytree(out, backup)
    old = files(out / "checkpoint-4")
    status, count = dying_at(0, lambda: killed._save_checkpoint(killed.model, None))
    new = files(out / "checkpoint-4")
    assert status == 0 and old != new
    for number in range(1, int(count) + 1):
        restored(out, backup)
        dying_at(number, lambda: killed._save_checkpoint(killed.model, None))
        clear_leftovers(out)
        assert files(out / "checkpoint-4") in (old, new)


@pytest.mark.parametrize("limit", [5_000, 40_000], ids=["in the weights", "in the optimizer"])
def test_a_full_disk_leaves_the_old_checkpoint_and_is_reported(limit, tmp_path):
    out = tmp_path / "out"
    full = stopped_before_its_second_save(out)
    before = files(out)

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            full._save_checkpoint(full.model, None)
        except Exception as error:
            return error.__notes__[0], full.state.best_model_checkpoint
        return "nothing was raised"

    _, said = in_a_child(save)
    assert f"`{out}/checkpoint-4` could not be written, and what was written of it is removed" in said
    assert f"the last complete checkpoint is `{out}/checkpoint-2`" in said
    assert files(out) == before
    assert not (out / ASIDE).exists()


def test_a_failed_save_does_not_end_what_can_go_on(tmp_path, monkeypatch, caplog):
    made = stopped_before_its_second_save(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(made, "_save_rng_state", full)
        with pytest.raises(OSError, match="No space left"):
            made._save_checkpoint(made.model, None)
    assert "could not be written" in caplog.text
    made._save_checkpoint(made.model, None)
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_the_best_checkpoint_is_known_by_its_name(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}
    made = trainer(tmp_path, learning_rate=0.05, **options)
    made.train()
    best = Path(made.state.best_model_checkpoint)
    assert best == tmp_path / f"checkpoint-{made.state.best_global_step}"
    assert [path.name for path in tmp_path.iterdir()] == [best.name]
    state = transformers.TrainerState.load_from_json(str(best / "trainer_state.json"))
    assert state.best_model_checkpoint == str(best)
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, abs=1e-7)


def test_checkpoints_beyond_the_limit_go_the_latest_and_the_best_stay(tmp_path):
    for i, step in enumerate((2, 4, 6, 8)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (10 * i, 10 * i))
    names = [[path.name for path in surplus(tmp_path, limit, best)] for limit, best in LIMITS(tmp_path)]
    assert names == [[], [], ["checkpoint-2", "checkpoint-4"], ["checkpoint-4", "checkpoint-6"], []]


def LIMITS(directory):
    return [(None, None), (0, None), (2, None), (1, str(directory / "checkpoint-2")), (4, None)]


@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "over an earlier one"])
def test_a_model_saved_by_a_killed_run_is_whole_or_was_not_saved(earlier, tmp_path):
    made, out, backup = trainer(tmp_path / "run"), tmp_path / "out", tmp_path / "backup"
    out.mkdir()
    if earlier:
        made.save_model(str(out))
        for parameter in made.model.parameters():
            torch.nn.init.constant_(parameter.data, 0.5)
    shutil.copytree(out, backup)
    status, count = dying_at(0, lambda: made.save_model(str(out)))
    weights = (files(backup).get("model.safetensors"), files(out)["model.safetensors"])
    assert status == 0 and not (out / ASIDE).exists()
    for number in range(1, int(count) + 1):
        restored(out, backup)
        dying_at(number, lambda: made.save_model(str(out)))
        assert files(out).get("model.safetensors") in weights
        if (out / "model.safetensors").exists():  # what is needed to load it is there before
            transformers.BertForSequenceClassification.from_pretrained(out)


def test_weights_of_an_earlier_model_do_not_stay_beside_new_ones(tmp_path):
    made, out = trainer(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "mine.safetensors", "notes.txt"):
        (out / name).write_text("{}")
    (out / "README.md").write_text("mine")
    made.save_model(str(out))
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "mine.safetensors", "notes.txt", "README.md"} <= names
    assert not {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} & names


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_resuming_runs_no_code_of_a_checkpoint(name, save, tmp_path):
    trainer(tmp_path, max_steps=2).train()
    save({"state": Payload(tmp_path / "ran")}, tmp_path / "checkpoint-2" / name)
    resumed = trainer(tmp_path, max_steps=3)
    said = f"{name}` holds more than tensors and plain values, or was cut short, and "
    if name == "training_args.bin":  # which nothing reads, but for its checksum
        said = "`training_args.bin` changed since"
    with pytest.raises(ValueError, match=said):
        resumed.train(resume_from_checkpoint=True)
    if name == "training_args.bin":
        (tmp_path / "checkpoint-2" / "checksums.json").unlink()
        resumed.train(resume_from_checkpoint=True)
    assert not (tmp_path / "ran").exists()
