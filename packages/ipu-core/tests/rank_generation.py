# SPDX-License-Identifier: Apache-2.0
"""What ranks generate, beside the plain model: each process runs all of it, and returns what it found."""

from __future__ import annotations

from typing import Any

import torch
from ipu_core import IPUConfig, generation_model, to_pipelined, training_model
from ipu_core.upstream import CACHE
from rank_faults import outcome
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

NEW_TOKENS = 8
KEPT = {"return_dict_in_generate": True, "output_scores": True}


class Pieces:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value)

    def end(self) -> None:
        self.given.append(torch.tensor([-1]))


def make(kind: str) -> Any:
    torch.manual_seed(0)
    special = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2}
        return T5ForConditionalGeneration(T5Config(**special, **sizes, decoder_start_token_id=0)).eval()
    if kind == "whisper":
        sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        sizes |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_model": 16, "num_mel_bins": 4}
        sizes |= {"max_source_positions": 10, "max_target_positions": 24, "decoder_start_token_id": 1}
        return WhisperForConditionalGeneration(WhisperConfig(**special, **sizes)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**special, n_embd=16, n_layer=4, n_head=2, n_positions=32)).eval()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**special, **sizes, num_key_value_heads=2)).eval()


def prompts(rows: int = 4, length: int = 5) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : row % 3] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def pipelined(model: Any, ipus: int, **options: Any) -> Any:
    return to_pipelined(model, IPUConfig(layers_per_ipu=[4 // ipus] * ipus, **options))


def on_ranks(model: Any, ipus: int, **options: Any) -> Any:
    return generation_model(pipelined(model, ipus), engine="distributed", **options)


def same_on_cards(rank: int) -> bool:
    """Return whether a model on two cards, one a rank, gives the tokens that the plain one gives on one of them."""
    model = make("llama").to(f"cuda:{rank}")
    given = {name: tensor.to(model.device) for name, tensor in prompts().items()}
    given |= {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    wanted = model.generate(**given)
    return torch.equal(on_ranks(model, 2, in_flight=2, on_all_ranks=True).generate(**given), wanted)


def options_of(model: Any) -> dict[str, dict[str, Any]]:
    """Return kinds of generation; one ends early, with rows that end at different steps."""
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    tokens = model.generate(**prompts(), **greedy, eos_token_id=None)[:, 5:]
    ends = sorted({int(row[2 + i % 2]) for i, row in enumerate(tokens)})
    return {
        "greedy": {**greedy, "eos_token_id": None},
        "ending": {**greedy, "eos_token_id": ends},
        "sampled": {"max_new_tokens": NEW_TOKENS, "do_sample": True, "temperature": 1.5, "top_k": 20},
    }


def differences(ours: Any, theirs: Any) -> list[str]:
    """Return the names of what differs between two results."""
    found = [] if torch.equal(ours.sequences, theirs.sequences) else ["sequences"]
    for name in ("scores", "sequences_scores", "beam_indices"):
        one, other = getattr(ours, name, None), getattr(theirs, name, None)
        pairs = list(zip(one, other, strict=True)) if other is not None else []
        if not all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in pairs):
            found.append(name)
    return found


def equal_runs(rank: int, kind: str, ipus: int, in_flight: int) -> dict[str, Any]:
    """Generate in several ways with one generator; returns what differs from the plain model, by way."""
    model, found = make(kind), {}
    generator = on_ranks(model, ipus, in_flight=in_flight, on_all_ranks=True, max_length=20)
    for name, options in options_of(model).items():
        torch.manual_seed(3)
        theirs = model.generate(**prompts(), **options, **KEPT)
        after = torch.rand(1)
        torch.manual_seed(3)
        ours = generator.generate(**prompts(), **options, **KEPT)
        found[name] = [*differences(ours, theirs), *([] if torch.equal(torch.rand(1), after) else ["the generator"])]
    found["stopped early"] = model.generate(**prompts(), **options_of(model)["ending"]).shape[1] < 5 + NEW_TOKENS
    found["cache"] = generator.decoder.num_bytes, sum(cache.nbytes for cache in whole_cache(model, 4 // in_flight))
    found["captures"] = generator.decoder.num_captures
    return found


def whole_cache(model: Any, rows: int) -> list[torch.Tensor]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    return [torch.empty(rows, heads, 20, size) for _ in range(2 * config.num_hidden_layers)]


def two_ranks(rank: int) -> dict[str, Any]:
    """Run what two ranks are tested for in one group of processes."""
    found: dict[str, Any] = {"llama": equal_runs(rank, "llama", ipus=2, in_flight=2)}
    found["beams"] = beams(rank)
    found["trained"] = trained(rank)
    found["refused"] = refused(rank)
    return found


def encoders(rank: int) -> dict[str, Any]:
    """Generate with models that have an encoder, greedily and with beams; the decoder is on both ranks."""
    found: dict[str, Any] = {}
    features = torch.randn(4, 4, 20, generator=torch.Generator().manual_seed(2))
    for kind, inputs in (("t5", prompts()), ("whisper", {"input_features": features})):
        model = make(kind)
        for num_beams in (1, 2):
            options = {"max_new_tokens": NEW_TOKENS, "num_beams": num_beams, "do_sample": False, **KEPT}
            config = IPUConfig(layers_per_ipu=[3, 1])
            more = {"in_flight": 2 if kind == "t5" else 1, "on_all_ranks": True}
            generator = generation_model(to_pipelined(model, config), engine="distributed", **more)
            theirs = model.generate(**inputs, **options)
            ours = generator.generate(**inputs, **options)
            # Upstream divides the cache of Whisper's rows, of which each rank has a part.
            has_cache = ours.get(CACHE) is not None
            found[f"{kind}, {num_beams} beams"] = not differences(ours, theirs) and has_cache is (kind == "t5")
            cache: Any = generator.new_cache()
            group = getattr(cache, "groups", (cache,))[0]
            found[f"{kind}, {num_beams} beams, here"] = [not tensor.is_meta for tensor in group.tensors]
    return found


def beams(rank: int) -> list[str]:
    model = make("llama")
    generator = on_ranks(model, 2, in_flight=2, on_all_ranks=True)
    options = {"max_new_tokens": NEW_TOKENS, "num_beams": 3, "num_return_sequences": 2, "do_sample": False, **KEPT}
    found = []
    for early in (False, True):
        theirs = model.generate(**prompts(), **options, early_stopping=early)
        found += differences(generator.generate(**prompts(), **options, early_stopping=early), theirs)
    return found


def trained(rank: int) -> dict[str, Any]:
    """Generate after an update on ranks, of which each has its own parameters; one of the ranks returns tokens."""
    model = make("gpt2")
    ours = pipelined(model, 2)
    inputs = {**prompts(), "labels": prompts()["input_ids"]}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    executor = training_model(ours, optimizer, engine="distributed", outputs=["loss"])
    generator, streamer = generation_model(ours, engine="distributed", in_flight=2), Pieces()
    executor(**inputs)
    model.eval()
    made = generator.generate(**prompts(), max_new_tokens=NEW_TOKENS, do_sample=False, streamer=streamer)
    executor.release()
    plain = model.generate(**prompts(), max_new_tokens=NEW_TOKENS, do_sample=False)
    return {
        "returns": made is not None,
        "is_equal": made is None or torch.equal(made, plain),
        "streamed": len(streamer.given),
    }


def refused(rank: int) -> dict[str, str]:
    model = make("llama")
    generator = on_ranks(model, 2, in_flight=2)
    found = {}

    def generate(**options: Any) -> Any:
        return outcome(lambda: generator.generate(**{**prompts(), "max_new_tokens": 3, "do_sample": False, **options}))

    found["batch"] = generate(**prompts(3))
    found["prompt"] = generate(input_ids=prompts()["input_ids"] + (1 if rank else 0))
    found["length"] = generate(max_new_tokens=3 + rank)
    found["use_cache"] = generate(use_cache=False)
    found["guidance_scale"] = generate(guidance_scale=2.0)
    found["hidden_states"] = generate(output_hidden_states=True, return_dict_in_generate=True)
    found["world"] = outcome(lambda: on_ranks(model, 4).generate(**prompts(), max_new_tokens=3))
    return found
