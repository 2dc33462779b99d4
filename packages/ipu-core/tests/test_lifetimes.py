# SPDX-License-Identifier: Apache-2.0
"""Executors and generators that are dropped leave nothing behind; several threads make and call their own at once."""

import contextlib
import gc
import io
import itertools
import linecache
import logging
import sys
import threading

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, plan, to_pipelined, training_model
from ipu_core.capture.capture import CAPTURING, capture

CONFIG = IPUConfig(layers_per_ipu=[1, 1])
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(2, 18).reshape(2, 8)


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, vocab_size=32, pad_token_id=0, eos_token_id=None)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def left():
    """Count the objects that each call leaves behind."""
    trace = logging.getLogger("torch.__trace")  # pytest keeps what torch logs
    level = trace.level
    trace.setLevel(logging.CRITICAL)

    def count(make):
        sizes = []
        for _ in range(5):
            make()
            gc.collect()
            sizes.append(len(gc.get_objects()))
        # What is filled once is filled by some call; what is left behind, by each.
        return min(after - before for before, after in itertools.pairwise(sizes))

    yield count
    trace.setLevel(level)


@pytest.mark.captures
def test_a_dropped_executor_leaves_nothing(left):
    """The tracer alone leaves 260 objects, and a source of each graph that it makes on the way."""
    model = llama()
    view = to_pipelined(model, CONFIG)
    before = {*linecache.cache}
    assert left(lambda: inference_model(view)(input_ids=IDS)) <= 10
    assert left(lambda: training_model(to_pipelined(model, CONFIG))(input_ids=IDS, labels=IDS)) <= 10
    assert not [name for name in linecache.cache.keys() - before if name.startswith("<eval_with_key>")]


@pytest.mark.captures
def test_a_dropped_generator_leaves_nothing(left):
    model = llama()
    asked = {"max_new_tokens": 2, "do_sample": False}
    assert left(lambda: generation_model(to_pipelined(model, CONFIG), max_length=16).generate(IDS, **asked)) <= 30


def at_once(*works):
    """Run functions in threads, all beginning together, and give what they returned."""
    barrier, found = threading.Barrier(len(works)), [None] * len(works)

    def run(i):
        barrier.wait()
        try:
            found[i] = works[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


class Writes(torch.nn.Module):
    """Writes to standard error in its forward, and in another thread meanwhile."""

    def __init__(self, seen):
        super().__init__()
        self.linear, self.config, self.seen = torch.nn.Linear(2, 2), None, seen

    def forward(self, x):
        print("here", file=sys.stderr)
        at_once(lambda: print("elsewhere", file=sys.stderr))
        self.seen()
        return {"logits": self.linear(x)}


@pytest.mark.captures
def test_what_another_thread_writes_is_not_held_back_by_a_capture(monkeypatch):
    written, seen = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", written)
    capture(Writes(lambda: seen.append(written.getvalue())), {"x": torch.ones(1, 2)}, training=False)
    assert seen[0] == "elsewhere\n"
    assert written.getvalue() == "elsewhere\nhere\n"


def test_a_model_is_rewritten_by_one_thread_after_the_other():
    is_free = []

    @contextlib.contextmanager
    def rewrite(model, config):
        is_free.extend(at_once(lambda: CAPTURING.acquire(blocking=False)))
        yield
        is_free.extend(at_once(lambda: CAPTURING.acquire(blocking=False)))

    to_pipelined(llama(), CONFIG, rewrites=[rewrite]).parallelize().deparallelize()
    assert is_free == [False, False]


@pytest.mark.captures
def test_threads_make_and_call_their_own_at_once():
    models = [llama() for _ in range(4)]
    asked = {"max_new_tokens": 3, "do_sample": False}
    logits, tokens = models[0](input_ids=IDS).logits, models[0].generate(IDS, **asked)
    views = [to_pipelined(model, CONFIG) for model in models]
    infer, train, generate, say = at_once(
        lambda: inference_model(views[0])(input_ids=IDS).logits,
        lambda: training_model(views[1])(input_ids=IDS, labels=IDS).loss,
        lambda: generation_model(views[2], max_length=16).generate(IDS, **asked),
        lambda: plan(views[3], {"input_ids": IDS, "labels": IDS}),
    )
    torch.testing.assert_close(infer, logits)
    torch.testing.assert_close(train, models[1].train()(input_ids=IDS, labels=IDS).loss)
    assert torch.equal(generate, tokens)
    assert str(say) == str(plan(views[0], {"input_ids": IDS, "labels": IDS}))


@pytest.mark.captures
def test_threads_share_a_model_and_an_executor_runs_while_another_is_made():
    model = llama()
    wanted = model(input_ids=IDS).logits
    running = inference_model(to_pipelined(model, CONFIG))
    running(input_ids=IDS)
    results = at_once(
        lambda: [running(input_ids=IDS).logits for _ in range(30)][-1],
        *[lambda: inference_model(to_pipelined(model, CONFIG))(input_ids=IDS).logits] * 2,
    )
    for found in results:
        torch.testing.assert_close(found, wanted)
    assert not any(logits.requires_grad for logits in results)


def test_an_executor_is_called_by_one_thread_after_the_other():
    model = llama()
    executor = training_model(to_pipelined(model, CONFIG))
    executor(input_ids=IDS, labels=IDS)
    one = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    losses = at_once(*[lambda: executor(input_ids=IDS, labels=IDS).loss] * 3)
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 3 * one[name])


def test_a_generator_is_called_by_one_thread_after_the_other():
    model = llama()
    asked = {"max_new_tokens": 5, "do_sample": False}
    prompts = [IDS, IDS + 3, IDS + 7]
    generator = generation_model(to_pipelined(model, CONFIG), max_length=16)
    found = at_once(*[lambda p=p: generator.generate(p, **asked) for p in prompts])
    assert all(torch.equal(tokens, model.generate(p, **asked)) for tokens, p in zip(found, prompts, strict=True))
