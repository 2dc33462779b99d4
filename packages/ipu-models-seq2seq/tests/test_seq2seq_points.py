# SPDX-License-Identifier: Apache-2.0
"""Points of GPT-2 and GPT-NeoX, with the parallel residual and without, on one, two and four IPUs."""

import copy
import functools
import importlib.util

import pytest
import torch
import transformers
from ipu_core import IPUConfig, generation_model, inference_model, points, to_pipelined, training_model
from ipu_core.errors import CaptureError, GenerationModeError, PointError

LAYERS, HEADS, WIDTH, HIDDEN, TOKENS = 4, 2, 16, 24, 5
KINDS = ["gpt2", "parallel", "sequential"]
SPLITS = [[4], [2, 2], [1, 1, 1, 1]]
IDS = torch.randint(3, 50, (2, TOKENS), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(3, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))


def make(kind, attention="eager", **options):
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 50}
    special |= dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"] if kind == "gpt2" else [], 0.0)
    special |= {"attn_implementation": attention, **options}
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": HIDDEN, "n_positions": 32}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **special))
    else:
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        sizes |= {"intermediate_size": HIDDEN, "max_position_embeddings": 32}
        residual = {"use_parallel_residual": kind == "parallel"}
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, **residual, **special))
    for parameter in model.parameters():  # norms and biases too are to do something
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    model.generation_config.eos_token_id = None
    return model.eval()


model_of = functools.cache(make)


def pipelined(kind, split=(4,), **options):
    return to_pipelined(model_of(kind), IPUConfig(layers_per_ipu=list(split), **options))


def block(kind, layer):
    return model_of(kind).transformer.h[layer] if kind == "gpt2" else model_of(kind).gpt_neox.layers[layer]


def parts(kind, layer):
    """Name the modules of a block alike."""
    one = block(kind, layer)
    if kind == "gpt2":
        return {
            **{"ln1": one.ln_1, "qkv": one.attn.c_attn, "out": one.attn.c_proj, "ln2": one.ln_2},
            **{"pre": one.mlp.c_fc, "post": one.mlp.c_proj, "mlp": one.mlp.c_proj, "block": one},
        }
    attention, mlp = one.attention, one.mlp
    return {
        **{"ln1": one.input_layernorm, "qkv": attention.query_key_value, "out": attention.dense},
        **{"ln2": one.post_attention_layernorm, "pre": mlp.dense_h_to_4h, "post": mlp.dense_4h_to_h},
        **{"mlp": mlp, "block": one},
    }


@functools.cache
def plain_values(kind):
    """Compute every point of the plain model, from its modules' inputs and outputs and its attentions."""
    model, seen, handles = model_of(kind), {}, []
    base = model.transformer if kind == "gpt2" else model.gpt_neox
    ends = {"embed": base.wte, "final": base.ln_f} if kind == "gpt2" else {"embed": base.embed_in}
    ends = {"final": base.final_layer_norm, **ends} if kind != "gpt2" else {**ends, "pos": base.wpe}
    watched = ends | {f"{i}.{name}": part for i in range(LAYERS) for name, part in parts(kind, i).items()}
    for name, module in watched.items():
        keep = functools.partial(lambda name, module, args, output: seen.update({name: (args[0], output)}), name)
        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        outputs = model(input_ids=IDS, output_attentions=True)
    for handle in handles:
        handle.remove()
    found = {"hook_embed": seen["embed"][1], "logits": outputs.logits}
    found |= norm_values("ln_final", watched["final"], seen["final"])
    if kind == "gpt2":
        found["hook_pos_embed"] = seen["pos"][1].repeat(2, 1, 1)
    for i in range(LAYERS):
        found |= block_values(kind, i, {name: seen[f"{i}.{name}"] for name in parts(kind, i)}, outputs.attentions[i])
    return found


def norm_values(name, norm, seen):
    x, normalized = seen
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return {f"{name}.hook_scale": scale, f"{name}.hook_normalized": normalized}


def block_values(kind, layer, seen, pattern):
    name, shape = f"blocks.{layer}", (2, TOKENS, HEADS, WIDTH // HEADS)
    if kind == "gpt2":
        q, k, v = (part.view(shape) for part in seen["qkv"][1].split(WIDTH, dim=2))
    else:
        q, k, v = seen["qkv"][1].view(2, TOKENS, HEADS, 3 * WIDTH // HEADS).chunk(3, dim=-1)
    found = {
        f"{name}.hook_resid_pre": seen["block"][0],
        **norm_values(f"{name}.ln1", parts(kind, layer)["ln1"], seen["ln1"]),
        **{f"{name}.attn.hook_{letter}": value for letter, value in zip("qkv", (q, k, v), strict=True)},
        f"{name}.attn.hook_pattern": pattern,
        f"{name}.attn.hook_z": seen["out"][0].view(shape),
        f"{name}.hook_attn_out": seen["out"][1],
        f"{name}.hook_mlp_in": seen["ln2"][0],
        **norm_values(f"{name}.ln2", parts(kind, layer)["ln2"], seen["ln2"]),
        f"{name}.mlp.hook_pre": seen["pre"][1],
        f"{name}.mlp.hook_post": seen["post"][0],
        f"{name}.hook_mlp_out": seen["mlp"][1],
        f"{name}.hook_resid_post": seen["block"][1],
    }
    if kind != "parallel":
        found[f"{name}.hook_resid_mid"] = seen["block"][0] + seen["out"][1]
    return found


@pytest.mark.turns(6)
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_point_has_the_plain_models_value_and_the_logits_stay_the_same(kind, split):
    outputs = inference_model(pipelined(kind, split), activations=["*"])(input_ids=IDS)
    found, expected = dict(outputs.activations), dict(plain_values(kind))
    assert torch.equal(outputs.logits, expected.pop("logits"))
    for i in range(LAYERS):  # what the plain model shows nowhere is told by what is made of it
        scores = found.pop(f"blocks.{i}.attn.hook_attn_scores")
        queries, keys = (found[f"blocks.{i}.attn.hook_{letter}"] for letter in "qk")
        if kind != "gpt2":
            assert not torch.equal(queries, found[f"blocks.{i}.attn.hook_rot_q"])
            queries, keys = (found.pop(f"blocks.{i}.attn.hook_rot_{letter}") for letter in "qk")
        products = torch.einsum("bqhd,bkhd->bhqk", queries, keys) / (WIDTH // HEADS) ** 0.5
        is_seen = torch.ones(TOKENS, TOKENS).tril().bool()
        torch.testing.assert_close(scores[..., is_seen], products[..., is_seen])
        assert (scores[..., ~is_seen] < -1e30).all()  # masked already
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    of_layer, others = {"gpt2": (17, 4), "parallel": (16, 3), "sequential": (17, 3)}[kind]  # beside those told above
    assert len(expected) == LAYERS * of_layer + others


def times(tensor, value):
    return tensor * value


READ = ["hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "hook_mlp_in", "ln2.hook_scale"]
READ += ["hook_mlp_out", "hook_resid_post"]


@functools.cache
def written(kind):
    """An executor whose points of layer 1, and those of no layer, are multiplied by values of each call."""
    shapes = points_of_layer_1(kind)
    executor = inference_model(
        pipelined(kind, [2, 2]),
        interventions=dict.fromkeys(shapes, points.given(times)),
        activations=[f"blocks.1.{name}" for name in READ],
    )
    ones = {name: torch.ones(shape) for name, shape in shapes.items()}

    def run(**factors):
        changed = {name: factor.expand(shapes[name]) for name, factor in factors.items()}
        return executor(input_ids=IDS, interventions={**ones, **changed})

    return run


def points_of_layer_1(kind):
    """Return the shapes of values for each point: of rows, of heads before tokens or behind them, of the last axis."""
    named = {n: v.shape for n, v in plain_values(kind).items() if n.startswith("blocks.1.") or "blocks" not in n}
    del named["logits"]
    named["blocks.1.attn.hook_attn_scores"] = named["blocks.1.attn.hook_pattern"]
    if kind != "gpt2":
        named |= dict.fromkeys(["blocks.1.attn.hook_rot_q", "blocks.1.attn.hook_rot_k"], named["blocks.1.attn.hook_q"])
    return {n: (2, *[size if size == HEADS else 1 for size in shape[1:-1]], shape[-1]) for n, shape in named.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_at_any_point_changes_the_logits_and_one_that_changes_nothing_does_not(kind):
    run, plain = written(kind), plain_values(kind)["logits"]
    torch.testing.assert_close(run().logits, plain, rtol=1e-5, atol=1e-4)
    for name, shape in points_of_layer_1(kind).items():
        factors = 2.0 - torch.arange(shape[-1]) % 2  # norms do not see what is the same for the whole width
        assert (run(**{name: factors}).logits - plain).abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", KINDS)
def test_ablating_a_head_equals_zeroing_its_slice_of_the_output_projection(kind):
    kept = torch.tensor([1.0, 0.0]).view(1, 1, HEADS, 1)
    found = written(kind)(**{"blocks.1.attn.hook_z": kept}).logits
    weight = parts(kind, 1)["out"].weight
    inputs, before = slice(WIDTH // HEADS, WIDTH), weight.detach().clone()
    with torch.no_grad():
        (weight if kind == "gpt2" else weight.T)[inputs] = 0  # a Conv1D has its inputs first
        expected = model_of(kind)(input_ids=IDS).logits
        weight.copy_(before)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_scale_is_what_the_norm_divides_by(kind):
    found = written(kind)(**{"blocks.1.ln1.hook_scale": torch.tensor(2.0)}).activations
    x, norm = found["blocks.1.hook_resid_pre"], parts(kind, 1)["ln1"]
    scale = 2 * (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    expected = (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias  # neither inverted, nor the bias scaled
    torch.testing.assert_close(found["blocks.1.ln1.hook_scale"], scale)
    torch.testing.assert_close(found["blocks.1.ln1.hook_normalized"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_to_the_residual_stream_reaches_the_norm_behind_it_and_one_to_an_mlps_input_not_the_stream(kind):
    run, two = written(kind), torch.tensor(2.0)
    before = run().activations
    stream = run(**{"blocks.1.hook_resid_pre": two}).activations
    torch.testing.assert_close(stream["blocks.1.ln1.hook_scale"], 2 * before["blocks.1.ln1.hook_scale"])
    mlp = run(**{"blocks.1.hook_mlp_in": two}).activations
    torch.testing.assert_close(mlp["blocks.1.ln2.hook_scale"], 2 * before["blocks.1.ln2.hook_scale"])
    for found in (before, mlp):
        found["rest"] = found["blocks.1.hook_resid_post"] - found["blocks.1.hook_mlp_out"]
    torch.testing.assert_close(mlp["rest"], before["rest"], rtol=1e-4, atol=1e-4)
    if kind != "parallel":
        middle = run(**{"blocks.1.hook_resid_mid": two}).activations
        torch.testing.assert_close(middle["blocks.1.ln2.hook_scale"], 2 * before["blocks.1.ln2.hook_scale"])
        rest = middle["blocks.1.hook_resid_post"] - middle["blocks.1.hook_mlp_out"]
        torch.testing.assert_close(rest, 2 * before["rest"], rtol=1e-4, atol=1e-4)


@pytest.mark.turns(6)
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_patching_the_residual_from_another_prompt_equals_a_module_hook(kind, split):
    name = "blocks.3.hook_resid_pre"
    executor = inference_model(pipelined(kind, split), activations=[name], interventions={name: points.given()})
    own = torch.zeros(2, TOKENS, WIDTH)
    other = plain_values_of(kind, OTHER, name)
    handle = block(kind, 3).register_forward_pre_hook(lambda module, args: (other, *args[1:]))
    with torch.no_grad():
        expected = model_of(kind)(input_ids=IDS).logits
    handle.remove()
    outputs = executor(input_ids=IDS, interventions={name: other})
    torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-6)
    assert torch.equal(outputs.activations[name], other)
    assert torch.equal(executor(input_ids=IDS, interventions={name: own}).activations[name], own)


def plain_values_of(kind, ids, name):
    return points.run_with_cache(model_of(kind), {"input_ids": ids}, activations=[name])[1][name]


def double_second_head(z):
    return torch.cat([z[:, :, :1], 2 * z[:, :, 1:]], dim=2)


@pytest.mark.parametrize("kind", ["gpt2", "sequential"])
def test_training_takes_gradients_through_interventions(kind):
    """Two micro-batches, two stages, a value for each row; the first layers get their gradients through both points."""
    steps = torch.randn(4, 1, WIDTH, generator=torch.Generator().manual_seed(2))
    ids = torch.cat([IDS, OTHER])
    executor = training_model(
        pipelined(kind, [2, 2], gradient_accumulation_steps=2, output_mode="all"),
        activations=["blocks.2.hook_resid_post"],
        interventions={"blocks.1.attn.hook_z": double_second_head, "blocks.2.hook_resid_post": points.steer()},
    )
    model = model_of(kind)

    def gradients():
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        return found

    model.zero_grad()
    outputs = executor(input_ids=ids, labels=ids, interventions={"blocks.2.hook_resid_post": steps})
    ours = gradients()
    halves = slice(0, WIDTH // HEADS), slice(WIDTH // HEADS, WIDTH)

    def doubled(module, args):
        return (torch.cat([args[0][..., halves[0]], 2 * args[0][..., halves[1]]], -1),)

    number = iter((0, 2))

    def steered(module, args, output):
        first = next(number)
        return output + steps[first : first + 2]

    handles = [parts(kind, 1)["out"].register_forward_pre_hook(doubled)]
    handles.append(block(kind, 2).register_forward_hook(steered))
    model.train()
    for rows in (slice(0, 2), slice(2, 4)):
        (model(input_ids=ids[rows], labels=ids[rows]).loss / 2).backward()
    model.eval()
    for handle in handles:
        handle.remove()
    assert outputs.activations["blocks.2.hook_resid_post"].shape == (4, TOKENS, WIDTH)
    for name, expected in gradients().items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.turns(6)
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "parallel"])
def test_a_trainable_vector_and_a_fixed_one_change_gradients_as_hooks_of_the_plain_model_do(kind, split):
    model = make(kind)
    layers = model.transformer.h if kind == "gpt2" else model.gpt_neox.layers
    gain, fixed = torch.nn.Parameter(torch.linspace(0.5, 1.5, WIDTH)), torch.linspace(1.5, 0.5, WIDTH)
    layers[2].register_parameter("gain", gain)
    changes = {"blocks.2.hook_resid_post": lambda x: x * gain, "blocks.1.hook_resid_post": lambda x: x * fixed}
    executor = training_model(to_pipelined(model, IPUConfig(layers_per_ipu=split)), interventions=changes)
    batch = {"input_ids": IDS, "labels": IDS}

    def gradients(run):
        model.zero_grad()
        loss = run(**batch).loss
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), found

    def plainly(**batch):
        outputs = model.train()(**batch)
        outputs.loss.backward()
        return outputs

    loss, ours = gradients(executor)
    _, untouched = gradients(plainly)
    for layer, vector in ((2, gain), (1, fixed)):
        layers[layer].register_forward_hook(lambda module, args, output, vector=vector: output * vector)
    expected_loss, expected = gradients(plainly)
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    embedding = next(iter(expected))  # upstream of both
    assert not torch.allclose(expected[embedding], untouched[embedding], rtol=0.1)
    assert gain.grad.abs().min() > 0


REFUSED = [
    ("gpt2", "sdpa", "blocks.*.attn.hook_pattern", "load the model with `attn_implementation='eager'`"),
    ("parallel", "sdpa", "blocks.0.attn.hook_attn_scores", "`attn_implementation='sdpa'`"),
    ("parallel", "eager", "blocks.*.hook_resid_mid", "there is no middle"),
    ("parallel", "eager", "hook_pos_embed", "positions rotate queries and keys"),
    ("gpt2", "eager", "blocks.0.hook_q_input", "one product over one input"),
    ("sequential", "eager", "blocks.0.hook_attn_in", "one product over one input"),
    ("gpt2", "eager", "blocks.0.attn.hook_result", "sums over heads"),
    ("gpt2", "eager", "blocks.0.attn.hook_ptern", "did you mean `blocks.0.attn.hook_pattern`"),
    ("gpt2", "eager", "blocks.9.hook_resid_pre", "no point 'blocks.9.hook_resid_pre'"),
]


@pytest.mark.parametrize(("kind", "attention", "name", "message"), REFUSED)
def test_a_point_that_is_not_there_is_refused_by_name_and_reason(kind, attention, name, message):
    model = to_pipelined(make(kind, attention), IPUConfig())
    with pytest.raises(PointError, match=message.replace("(", r"\(")):
        inference_model(model, activations=[name])
    with pytest.raises(PointError, match=message.replace("(", r"\(")):
        inference_model(model, interventions={name: torch.neg})


MIDDLE = "blocks.1.hook_mlp_out"
BAD = [
    (lambda x: x[:, :1], PointError, r"returns torch.float32 \[2, 1, 16\], and takes torch.float32 \[2, 5, 16\]"),
    (lambda x: x.double(), PointError, "returns torch.float64"),
    (lambda x: None, PointError, "returns a NoneType"),
    (lambda x: x if x.sum() > 0 else -x, CaptureError, f"the intervention at `{MIDDLE}`.*looks at a value"),
    (points.Intervention(function=torch.neg, from_step=1), PointError, "begins with a step, which only generation has"),
    (points.given(), PointError, "takes a value, and the call gives none"),
]


@pytest.mark.parametrize(("function", "error", "message"), BAD)
def test_an_intervention_that_does_not_fit_is_refused(function, error, message):
    with pytest.raises(error, match=message):
        inference_model(pipelined("gpt2"), interventions={MIDDLE: function})(input_ids=IDS)


def test_values_that_nobody_takes_are_refused():
    executor = inference_model(pipelined("gpt2"))
    with pytest.raises(PointError, match="none takes one"):
        executor(input_ids=IDS, interventions={MIDDLE: torch.zeros(2, 1, 1)})


def test_a_point_that_never_runs_is_an_error():
    embeddings = torch.randn(2, TOKENS, WIDTH)
    with pytest.raises(PointError, match="the point `hook_embed` never ran"):
        inference_model(pipelined("gpt2"), activations=["hook_embed"])(inputs_embeds=embeddings)
    with pytest.raises(PointError, match="the intervention at `hook_embed` never ran"):
        inference_model(pipelined("gpt2"), interventions={"hook_embed": torch.neg})(inputs_embeds=embeddings)


def test_reordered_attention_of_gpt2_has_the_same_points():
    upcast = make("gpt2", reorder_and_upcast_attn=True)
    names = ["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern", "blocks.0.ln_1.hook_scale"]
    _, cache = points.run_with_cache(upcast, {"input_ids": IDS}, activations=names)
    assert list(cache) == names
    for name, plain in zip(names[1:], ("attn.hook_pattern", "ln1.hook_scale"), strict=True):
        torch.testing.assert_close(cache[name], plain_values("gpt2")[f"blocks.0.{plain}"])
    scores = cache[names[0]]
    torch.testing.assert_close(scores.softmax(-1), cache[names[1]])


def test_micro_batches_and_selected_outputs_keep_activations():
    name = "blocks.2.hook_resid_post"
    executor = inference_model(
        pipelined("gpt2", [2, 2], inference_device_iterations=2), outputs=["logits"], activations=[name]
    )
    found = executor(input_ids=IDS)
    torch.testing.assert_close(found.activations[name], plain_values("gpt2")[name])
    torch.testing.assert_close(found.logits, plain_values("gpt2")["logits"], rtol=1e-5, atol=1e-4)


def test_points_are_in_the_model_within_adapters():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query_key_value"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make("sequential"), config).eval()
    names = ["blocks.1.attn.hook_pattern", "blocks.3.attn.hook_v"]
    executor = inference_model(to_pipelined(model, IPUConfig(layers_per_ipu=[2, 2])), activations=names)
    found, plain = executor(input_ids=IDS), model(input_ids=IDS, output_attentions=True)
    assert torch.equal(found.logits, plain.logits)
    torch.testing.assert_close(found.activations[names[0]], plain.attentions[1])


def test_a_model_is_left_as_it_was():
    model = model_of("gpt2")
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    inference_model(pipelined("gpt2"), activations=["*"])(input_ids=IDS)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    assert not any("forward" in vars(module) for module in model.modules())


VECTOR = 4 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
POINT = "blocks.2.hook_resid_post"


def added_from_step(vector, from_step, prompt_length):
    """A hook that adds to tokens from a step on; the last token of the prompt is that of step 0."""

    def hook(module, args, output):
        steps = torch.arange(output.shape[1]) - (prompt_length - 1)
        return torch.where((steps >= from_step)[:, None], output + vector, output)

    return hook


def greedy(kind, vector, from_step, new_tokens=5):
    """Generate with the plain model, whole sequences each step, a hook adding `vector` to tokens from a step on."""
    ids = IDS
    handle = block(kind, 2).register_forward_hook(added_from_step(vector, from_step, TOKENS))
    for _ in range(new_tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model_of(kind)(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    handle.remove()
    return ids


@pytest.mark.turns(4)
@pytest.mark.parametrize(("kind", "split"), [("gpt2", [4]), ("parallel", [1, 1, 1, 1])], ids=str)
def test_steering_while_generating_begins_with_a_step_and_takes_a_value_for_each_row(kind, split):
    generator = generation_model(pipelined(kind, split), interventions={POINT: points.steer(from_step=2)})
    values = torch.stack([VECTOR, -VECTOR])[:, None]
    plain = greedy(kind, torch.zeros(WIDTH), 0)
    expected = greedy(kind, values, 2)
    assert not torch.equal(expected, plain)
    for value, tokens in ((values, expected), (0 * values, plain)):
        given = {"interventions": {POINT: value}}
        assert torch.equal(generator.generate(IDS, max_new_tokens=5, do_sample=False, **given), tokens)
    with pytest.raises(PointError, match="has 1 rows, and 2 sequences are generated"):
        generator.generate(IDS, max_new_tokens=5, interventions={POINT: values[:1]})
    with pytest.raises(PointError, match="takes a value, and the call gives none"):
        generator.generate(IDS, max_new_tokens=5)


@pytest.mark.turns(4)
def test_steering_works_for_several_tokens_a_call_groups_and_without_a_cache():
    expected = greedy("parallel", VECTOR, 1)
    steered = {POINT: points.steer(VECTOR, from_step=1)}
    loops = ({"tokens_per_call": 3, "in_flight": 2}, {})
    for options, more in zip(loops, ({}, {"use_cache": False}), strict=True):
        generator = generation_model(pipelined("parallel", [2, 2]), interventions=steered, **options)
        assert torch.equal(generator.generate(IDS, max_new_tokens=5, do_sample=False, **more), expected)


@pytest.mark.turns(4)
def test_activations_of_each_step_are_those_of_a_whole_run():
    names = ["blocks.1.attn.hook_pattern", POINT]
    generator = generation_model(pipelined("sequential", [2, 2]), activations=names, prefill_chunk_size=2)
    outputs = generator.generate(IDS, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    whole = points.run_with_cache(model_of("sequential"), {"input_ids": outputs.sequences[:, :-1]}, activations=names)[
        1
    ]
    assert len(outputs.activations) == 4
    at = 0
    for step in outputs.activations:
        count = step[POINT].shape[1]
        torch.testing.assert_close(step[POINT], whole[POINT][:, at : at + count], rtol=1e-4, atol=1e-4)
        pattern = whole[names[0]][:, :, at : at + count, : at + count]
        torch.testing.assert_close(step[names[0]], pattern, rtol=1e-4, atol=1e-5)
        at += count


def test_points_of_other_generations_are_refused():
    with pytest.raises(GenerationModeError, match="without `tokens_per_call`"):
        generation_model(pipelined("gpt2"), activations=[POINT], tokens_per_call=2)


def test_a_step_that_is_never_reached_is_refused():
    late = {POINT: points.steer(VECTOR, from_step=3)}
    generator = generation_model(pipelined("gpt2"), interventions=late)
    with pytest.raises(PointError, match="begins with step 3, and 3 tokens are generated, in steps 0 to 2"):
        generator.generate(IDS, max_new_tokens=3, do_sample=False)
    with pytest.raises(PointError, match="begins with step 3, and 2 tokens are generated"):
        generator.generate(IDS, max_length=TOKENS + 2, do_sample=False)


@pytest.mark.turns(4)
def test_guidance_counts_steps_from_its_own_first_token():
    kind, scale = "parallel", 1.5
    ids, alone = IDS, IDS[:, -1:]
    for _ in range(4):
        logits = []
        for tokens, prompt in ((ids, TOKENS), (alone, 1)):
            handle = block(kind, 2).register_forward_hook(added_from_step(VECTOR, 1, prompt))
            with torch.no_grad():
                logits.append(model_of(kind)(input_ids=tokens, use_cache=False).logits[:, -1].log_softmax(-1))
            handle.remove()
        token = (scale * (logits[0] - logits[1]) + logits[1]).argmax(-1, keepdim=True)
        ids, alone = torch.cat([ids, token], 1), torch.cat([alone, token], 1)
    generator = generation_model(pipelined(kind, [2, 2]), interventions={POINT: points.steer(VECTOR, from_step=1)})
    found = generator.generate(IDS, max_new_tokens=4, do_sample=False, guidance_scale=scale)
    assert torch.equal(found, ids)


@pytest.mark.skipif(importlib.util.find_spec("nnsight") is None, reason="not installed: nnsight")
def test_values_are_those_of_nnsight():
    from nnsight import NNsight

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32)
    plain = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(3, 50, (2, 5))
    wrapped = NNsight(copy.deepcopy(plain))
    with torch.no_grad(), wrapped.trace(ids):
        embed = wrapped.transformer.wte.output.save()
        stream = wrapped.transformer.h[1].input.save()
        z = wrapped.transformer.h[1].attn.c_proj.input.save()
        hidden = wrapped.transformer.h[1].mlp.c_fc.output.save()
        final = wrapped.transformer.ln_f.output.save()
    names = ["hook_embed", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_pre"]
    names.append("ln_final.hook_normalized")
    executor = inference_model(to_pipelined(plain, IPUConfig(layers_per_ipu=[1, 1])), activations=names)
    found = executor(input_ids=ids).activations
    for name, value in zip(names, (embed, stream, z, hidden, final), strict=True):
        torch.testing.assert_close(found[name].reshape(value.shape), value)
