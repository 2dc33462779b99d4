# SPDX-License-Identifier: Apache-2.0
"""Cases of the distributed engine, which the processes of one group run one after the other."""

from __future__ import annotations

import dataclasses
import os
import traceback
from typing import Any

import torch
from ipu_core import IPUConfig, to_pipelined, training_model
from ipu_core.batch import micro_batches
from ipu_core.engines.registry import usable_engine
from ipu_core.executor import Executor
from ipu_core.lowering import capture_model
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how it is run."""

    model: str
    schedule: str = "gpipe"
    ipus: int = 2
    rounds: int = 1
    replicas: int = 1
    micro_batches: int = 4
    tied: bool = True
    recompute: bool = False
    iterations: int = 3  # micro-batches of a replica in inference
    on_cards: bool = False

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        more = "-recompute" if self.recompute else ""
        more += "-cards" if self.on_cards else ""
        return f"{self.model}-{tied}-{self.schedule}-{self.ipus}x{self.rounds}-replicas{self.replicas}{more}"

    def ipu_config(self, **options: Any) -> IPUConfig:
        given = {
            "layers_per_ipu": [-1],
            "ipus_per_replica": self.ipus,
            "schedule": self.schedule,
            "stages_per_ipu": self.rounds,
            "replication_factor": self.replicas,
            "inference_replication_factor": self.replicas,
            "inference_stages_per_ipu": self.rounds,
            "inference_device_iterations": self.iterations,
            "gradient_accumulation_steps": self.micro_batches,
            "recompute_checkpoint_every_layer": self.recompute,
            "output_mode": "all",
        }
        return IPUConfig(**{**given, **options})


def make(case: Case) -> torch.nn.Module:
    """Make a tiny model with random weights, where the case runs."""
    return _made(case).to(device_of_rank(on_cards=case.on_cards))


def device_of_rank(*, on_cards: bool) -> torch.device:
    """Return where this process keeps its model: on the CPU, or on a card of its own."""
    return torch.device("cuda", int(os.environ.get("RANK", "0"))) if on_cards else torch.device("cpu")


def _made(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    if case.model == "bert":
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 37}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(**sizes, **dropout, num_hidden_layers=4, tie_word_embeddings=case.tied)
        return BertForMaskedLM(config).double()
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config = GPT2Config(
        n_embd=16,
        n_head=2,
        n_layer=4,
        vocab_size=37,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=1,
        **dropout,
        tie_word_embeddings=case.tied,
    )
    return GPT2LMHeadModel(config).double()


def batch(rows: int, length: int = 6, *, on_cards: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 37, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[:, -1] = torch.arange(rows) % 2
    made = {"input_ids": ids, "attention_mask": mask, "labels": ids.roll(1, 0)}
    return {name: tensor.to(device_of_rank(on_cards=on_cards)) for name, tensor in made.items()}


def plain(model: torch.nn.Module, inputs: dict[str, torch.Tensor], count: int) -> tuple[Any, dict[str, Any]]:
    """Return outputs, by micro-batch, and averaged gradients of the plain model."""
    model.zero_grad()
    size = len(inputs["input_ids"]) // count
    outputs = []
    for i in range(count):
        made = model(**{name: value[i * size : (i + 1) * size] for name, value in inputs.items()})
        (made.loss / count).backward()
        outputs.append(made)
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return outputs, gradients


class Runs:
    """Executors of cases; those that differ in where the graph is cut, and when its parts run, share a capture."""

    def __init__(self) -> None:
        self._captures: dict[Any, Any] = {}

    def executor(self, case: Case, model: torch.nn.Module, inputs: dict[str, torch.Tensor], **kind: bool) -> Executor:
        pipelined = to_pipelined(model, case.ipu_config())
        inference = kind.get("inference", False)
        config = pipelined.ipu_config.for_inference() if inference else pipelined.ipu_config.for_training()
        key = case.model, case.tied, inference
        if key not in self._captures:
            self._captures[key] = capture_model(pipelined, config, next(micro_batches(inputs, config)))
        engine = usable_engine("distributed")
        return Executor(pipelined, config, engine, captured=self._captures[key], on_all_ranks=True)

    def train(self, case: Case) -> set[str]:
        """Train, and compare; returns the names of the parameters whose gradients this rank has."""
        model = make(case)
        count = case.micro_batches * case.replicas
        inputs = batch(2 * count, on_cards=case.on_cards)
        outputs, gradients = plain(model, inputs, count)
        made = self.executor(case, model, inputs)(**inputs)
        close("the loss", made.loss.reshape(-1), torch.stack([o.loss for o in outputs]).detach())
        close("the logits", made.logits, torch.cat([o.logits for o in outputs]).detach())
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in found.items():
            close(f"the gradient of {name}", gradient, gradients[name])
        return set(found)

    def infer(self, case: Case) -> None:
        """Infer, and compare."""
        model = make(case).eval()
        inputs = batch(2 * case.replicas * case.iterations, on_cards=case.on_cards)
        del inputs["labels"]
        with torch.no_grad():
            expected = model(**inputs).logits
        close("the logits of inference", self.executor(case, model, inputs, inference=True)(**inputs).logits, expected)


def trained_names(case: Case) -> set[str]:
    """Return the parameters that the plain model gives gradients."""
    gradients = plain(make(case), batch(2, on_cards=case.on_cards), 1)[1]
    return {name for name, gradient in gradients.items() if gradient is not None}


def close(what: str, ours: Any, theirs: Any) -> None:
    assert ours is not None and ours.shape == theirs.shape, f"{what}: {ours} and {theirs.shape}"
    difference = (ours - theirs).abs().max().item()
    assert difference < 1e-10, f"{what} differs by {difference:.1e}"


def run_cases(rank: int, cases: list[Case]) -> dict[str, Any]:
    """Run each case; returns the gradients there are, or the traceback of the first that failed."""
    found: dict[str, Any] = {}
    runs = Runs()
    inferred = set()
    for case in cases:
        try:
            found[str(case)] = runs.train(case)
            cut = case.model, case.ipus, case.rounds, case.replicas
            if cut not in inferred:
                inferred.add(cut)
                runs.infer(case)
        except Exception:
            found[str(case)] = traceback.format_exc()
            break
    return found


def steps_of_replicas(rank: int) -> dict[str, Any]:
    """Train three steps with two replicas, plainly, clipped, and with the optimizer's state in shards."""
    case = Case(model="gpt2", replicas=2, micro_batches=2)
    inputs = batch(8)
    reference = make(case)
    expected = torch.optim.AdamW(reference.parameters(), lr=0.01)
    norms = []
    for _ in range(3):
        _, gradients = plain(reference, inputs, 4)
        for name, parameter in reference.named_parameters():
            parameter.grad = gradients[name]
        norms.append(float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)))
        expected.step()
    clipped = make(case)
    executor = training_model(to_pipelined(clipped, case.ipu_config()), engine="distributed")
    optimizer = torch.optim.AdamW(clipped.parameters(), lr=0.01)
    found: dict[str, Any] = {"plain_norms": norms, "norms": []}
    for _ in range(3):
        optimizer.zero_grad()
        executor(**inputs)
        found["norms"].append(float(executor.clip_gradients(0.5)))
        optimizer.step()
    executor.release()
    found["difference"] = largest_difference(clipped, reference)
    found["bytes"] = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if v.ndim)
    models = [make(case), make(case)]
    for model, is_sharded in zip(models, (False, True), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        pipelined = to_pipelined(model, case.ipu_config(replicated_tensor_sharding=is_sharded))
        executor = training_model(pipelined, optimizer, engine="distributed")
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            executor(**inputs)
        executor.release()
    found["sharded_difference"] = largest_difference(*models)
    found["sharded_bytes"] = executor._compiled.program._sharded.state_bytes()
    return found


def dropout(rank: int) -> dict[str, Any]:
    """Train with dropout in the first stage alone, under the host engine and on ranks."""
    case = Case(model="gpt2", micro_batches=4)
    inputs = batch(8)
    results = []
    for engine in ("host", "distributed"):
        model = make(case)
        model.transformer.drop.p = 0.5
        executor = training_model(to_pipelined(model, case.ipu_config(seed=3)), engine=engine)
        losses = [executor(**inputs).loss for _ in range(2)]
        results.append(torch.cat(losses))
    spans = {str(action) for action, _, _ in executor.timeline().spans}
    difference = float((results[0] - results[1]).abs().max())
    return {"difference": difference, "rows": torch.randperm(100).tolist(), "spans": spans}


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
