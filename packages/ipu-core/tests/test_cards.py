# SPDX-License-Identifier: Apache-2.0
"""What is known of cards, and code for them: all but what torch does on one, which a stand-in takes the place of."""

import contextlib
import logging
import os
from pathlib import Path

import pytest
import torch
import transformers
from ipu_core import IPUConfig, _torch, cards, generation_model, inference_model, plan, to_pipelined, training_model
from ipu_core._torch import FakeTensorMode
from ipu_core.cards import Card, card_facts, obstacle_to_compiling
from ipu_core.compile.executable import CARD_OPTIONS, write_executable
from ipu_core.compile.stages import Compilation, depends_on_its_card
from ipu_core.engines.distributed.engine import DISTRIBUTED
from ipu_core.errors import BatchError, CompileError, EngineNotAvailableError, MemoryLimitError
from ipu_core.lowering import lower
from ipu_core.memory.estimate import other_parameters, refuse_small_cards
from ipu_core.runtime.devices import readers_of_inputs, refuse_batch_on_another_card
from ipu_core.runtime.replay import Replay
from ipu_core.testing import assert_inference_equals_plain, assert_training_equals_plain
from models import Chain, Tied, batch, make
from standing_in import GIB, STAND_IN, cpu_as_card

pytestmark = pytest.mark.usefixtures("no_plugins")
CARD, OTHER = torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture
def compiler(monkeypatch):
    with cpu_as_card(monkeypatch) as made:
        yield made


def config(tmp_path=None, **options):
    return IPUConfig(compile=True, executable_cache_dir="" if tmp_path is None else str(tmp_path), **options)


@pytest.mark.parametrize("cls", [Chain, Tied])
def test_training_with_code_for_a_card_equals_plain(cls, compiler):
    assert_training_equals_plain(
        make(cls), [config(layers_per_ipu=[3]), config(layers_per_ipu=[1, 2])], batch(), atol=1e-6
    )
    assert compiler.options
    for told in compiler.options:
        assert CARD_OPTIONS.items() <= told.items()


def test_equal_layers_are_compiled_once_for_a_card(compiler, caplog, tmp_path):
    executor = inference_model(to_pipelined(make(Chain, num_layers=8), config(tmp_path, layers_per_ipu=[4, 4])))
    with caplog.at_level(logging.INFO, logger="ipu_core.compile.stages"):
        executor.compile(**batch())
    (told,) = [record.getMessage() for record in caplog.records if "executables" in record.getMessage()]
    assert len(compiler.options) == int(told.split()[4]) < 4


def test_code_for_a_card_is_kept_by_its_kind(compiler, tmp_path, monkeypatch):
    def compiled():
        before = len(compiler.options)
        inference_model(to_pipelined(make(Chain), config(tmp_path, layers_per_ipu=[3]))).compile(**batch())
        return len(compiler.options) - before

    assert compiled() > 0
    assert compiled() == 0
    for changed in (Card(name="Other", capability=(9, 0), total_bytes=GIB), STAND_IN):
        monkeypatch.setattr(cards, "card_of", lambda device, changed=changed: changed)
        assert (compiled() > 0) == (changed is not STAND_IN)
    monkeypatch.setattr(cards, "triton_version", lambda: "3.6.0")
    assert compiled() > 0


def test_generation_with_code_for_a_card_gives_the_plain_models_tokens(compiler):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64, eos_token_id=None)).eval()
    prompt = torch.randint(3, 64, (1, 6))
    wanted = model.generate(prompt, max_new_tokens=8, do_sample=False)
    generator = generation_model(to_pipelined(model, config(layers_per_ipu=[1, 1])), max_length=16)
    assert torch.equal(generator.generate(prompt, max_new_tokens=8, do_sample=False), wanted)
    assert compiler.options


def placed_on(*devices):
    """Return a lowered model whose stages are on cards that are not here."""
    made = to_pipelined(make(Chain, num_layers=4), IPUConfig(layers_per_ipu=[2, 2], inference_devices=list(devices)))
    from ipu_core.batch import micro_batches

    told = made.ipu_config.for_inference()
    return lower(made, told, next(micro_batches(batch(), told)), micro_batch_size=4)


def test_cards_of_one_kind_share_files_and_each_loads_them(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "CUDA", "cuda")
    lowered = placed_on("cuda:0", "cuda:1")
    stages = Compilation(lowered.captured, lowered.stage_graphs).finish()
    assert [stage.code.device for stage in stages] == [CARD, OTHER]
    assert compiler.loaded == [CARD, OTHER]
    assert compiler.devices == [{CARD}] if len(compiler.devices) == 1 else [{CARD}, {OTHER}]


@pytest.mark.parametrize("options", [{"layers_per_ipu": [3]}, {"layers_per_ipu": [1, 2], "devices": ["cpu", "cpu"]}])
def test_a_card_without_the_memory_is_refused_before_anything_runs(options, compiler, monkeypatch):
    model = make(Chain)
    pipelined = to_pipelined(model, IPUConfig(**options))
    needed = plan(pipelined, batch()).process_peak_bytes
    small = Card(name="Small", capability=(9, 0), total_bytes=needed - 1)
    monkeypatch.setattr(cards, "card_of", lambda device: small)
    executor = training_model(pipelined, torch.optim.AdamW(model.parameters()))
    said = r"needs 0.00 GiB on cpu for its (IPU|2 IPUs), and Small has 0.00 GiB, .* GiB less; the largest module is"
    with pytest.raises(MemoryLimitError, match=said):
        executor(**batch())
    assert all(parameter.grad is None for parameter in model.parameters())
    enough = Card(name="Small", capability=(9, 0), total_bytes=needed)
    monkeypatch.setattr(cards, "card_of", lambda device: enough)
    executor(**batch())


def test_each_card_is_held_against_its_own_ipus(monkeypatch):
    made = plan(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 1, 1])), batch())
    peaks = [held.peak for held in made.memory]
    sizes = {CARD: peaks[0] + peaks[2] - 1, OTHER: peaks[1]}
    there = lambda device: Card(name="Small", capability=(9, 0), total_bytes=sizes[device])  # noqa: E731
    monkeypatch.setattr(cards, "card_of", there)
    told = IPUConfig().for_training()
    with pytest.raises(MemoryLimitError, match="on cuda:0 for its 2 IPUs"):
        refuse_small_cards(made, told, [CARD, OTHER, CARD])
    sizes[CARD] += 1
    refuse_small_cards(made, told, [CARD, OTHER, CARD])
    sizes[OTHER] -= 1
    with pytest.raises(MemoryLimitError, match="on cuda:1 for its IPU, and Small has"):
        refuse_small_cards(made, told, [CARD, OTHER, CARD])


def test_the_plan_counts_what_a_recording_keeps():
    inputs = batch(4)
    plain, recorded = (
        plan(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[3], record=record)), inputs)
        for record in (False, True)
    )
    assert plain.recording_bytes == 0
    assert recorded.recording_bytes >= sum(t.nbytes for t in inputs.values())
    assert recorded.process_peak_bytes == plain.process_peak_bytes + recorded.recording_bytes
    assert "MiB of it for its recording" in str(recorded)
    inference = plan(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[3], record=True)), inputs, for_inference=True)
    assert inference.recording_bytes == 0


def test_a_batch_on_another_card_than_the_model_is_refused():
    with FakeTensorMode():
        elsewhere = {name: torch.empty(t.shape, dtype=t.dtype, device=OTHER) for name, t in batch().items()}
    executor = inference_model(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[3])))
    with pytest.raises(BatchError, match=r"`x`, \[.*\], is on cuda:1, and what reads it is on cpu: move it there"):
        executor(**elsewhere)


def test_a_batch_is_on_the_host_or_on_a_card_that_reads_it():
    lowered = placed_on("cuda:0", "cuda:1")
    readers = readers_of_inputs(lowered.captured, lowered.stage_graphs)
    first, *_ = readers
    assert readers[first] == {CARD}
    model = make(Chain)
    with FakeTensorMode():
        there, elsewhere = (torch.empty(4, 2, device=device) for device in (CARD, OTHER))
    refuse_batch_on_another_card({first: there}, readers, model)
    refuse_batch_on_another_card({first: torch.ones(4, 2)}, readers, model)
    with pytest.raises(BatchError, match=r"is on cuda:1, and what reads it is on cuda:0: move it .*\.to.\"cuda:0\""):
        refuse_batch_on_another_card({first: elsewhere}, readers, model)


def small_llama():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64, eos_token_id=None)).eval()


def test_generation_on_a_card_that_is_not_there_is_refused():
    pipelined = to_pipelined(small_llama(), IPUConfig(layers_per_ipu=[1], devices=["cuda:7"]))
    with pytest.raises(EngineNotAvailableError, match="names `cuda:7` for IPU 0, and it is not there; there are cpu"):
        generation_model(pipelined, max_length=8).generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)


@pytest.mark.parametrize("options", [{}, {"weights": "int4"}])
def test_generation_on_a_card_without_the_memory_is_refused_before_anything_runs(options, compiler, monkeypatch):
    model = small_llama().bfloat16()
    prompt, ran = torch.ones(1, 3, dtype=torch.long), []
    run = Replay.run
    monkeypatch.setattr(Replay, "run", lambda line: ran.append(1) or run(line))
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    cached = 2 * 16 * 2 * 16  # keys and values of a layer, [1, 2, 16, 8] of two bytes each
    for total, said in (
        (held + cached - 1, r"keys and values of 1 rows and 16 tokens are 0.00 GiB, with the model 0.00 GiB on cpu"),
        (held + cached + 1, r"`StepOfPipelinedLlama.*` needs 0.00 GiB on cpu for its IPU, and Small has 0.00 GiB"),
    ):
        small = Card(name="Small", capability=(9, 0), total_bytes=total)
        monkeypatch.setattr(cards, "card_of", lambda device, small=small: small)
        generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1])), max_length=16, **options)
        with pytest.raises(MemoryLimitError, match=said):
            generator.generate(prompt, max_new_tokens=4)
    assert not ran
    monkeypatch.setattr(cards, "card_of", lambda device: STAND_IN)
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1])), max_length=16, **options)
    assert generator.generate(prompt, max_new_tokens=4).shape == (1, 7) and ran


def test_what_a_card_holds_beside_the_plan_counts(monkeypatch):
    made = plan(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 2])), batch(), for_inference=True)
    sizes = {CARD: made.memory[0].peak + 9, OTHER: made.memory[1].peak + 5}
    there = lambda device: Card(name="Small", capability=(9, 0), total_bytes=sizes[device])  # noqa: E731
    monkeypatch.setattr(cards, "card_of", there)
    told = IPUConfig().for_inference()
    refuse_small_cards(made, told, [CARD, OTHER], beside=[9, 5])
    with pytest.raises(MemoryLimitError, match="on cuda:1 for its IPU"):
        refuse_small_cards(made, told, [CARD, OTHER], beside=[9, 6])


def test_a_prompt_on_another_card_than_the_first_stages_is_refused(monkeypatch):
    with FakeTensorMode():
        ids = torch.empty(1, 3, dtype=torch.long, device=OTHER)
    pipelined = to_pipelined(small_llama(), IPUConfig(layers_per_ipu=[1]))
    for call in ({"input_ids": ids}, {"inputs": ids}, {"attention_mask": ids, "input_ids": torch.ones(1, 3).long()}):
        with pytest.raises(
            BatchError, match=r"`.*`, \[1, 3\], is on cuda:1, and what reads it is on cpu: move it there"
        ):
            generation_model(pipelined).generate(**call, max_new_tokens=2)
    with pytest.raises(BatchError, match=r"`input_ids`, \[1, 3\], is on cuda:1"):
        generation_model(pipelined).generate(ids, max_new_tokens=2)
    placed = to_pipelined(small_llama(), IPUConfig(layers_per_ipu=[1], devices=["cuda:0"]))
    with pytest.raises(BatchError, match=r"is on cuda:1, and what reads it is on cuda:0"):
        generation_model(placed).generate(ids, max_new_tokens=2)


def test_each_rank_looks_at_its_own_card(monkeypatch):
    class Second:
        ipu = 1

    model = torch.nn.Linear(2, 2, bias=False)
    monkeypatch.setattr("ipu_core.engines.distributed.ranks.ranks_for", lambda *_: Second)
    config = IPUConfig(layers_per_ipu=[1, 1, 1]).for_training()
    assert DISTRIBUTED.cards(model, config) is None
    made = plan(to_pipelined(make(Chain), IPUConfig(layers_per_ipu=[1, 1, 1])), batch())
    with FakeTensorMode():
        there = torch.nn.ParameterList([torch.empty(600, device=OTHER)])
    cpu = torch.device("cpu")
    devices = DISTRIBUTED.cards(there, config)
    assert devices == (cpu, OTHER, cpu)
    others = other_parameters(made, there, devices)
    assert others[1] == 2400 - made.memory[1].parameters
    small = Card(name="Small", capability=(9, 0), total_bytes=made.memory[1].peak + others[1])
    monkeypatch.setattr(cards, "card_of", lambda device: small)
    refuse_small_cards(made, config, devices, beside=others)
    with pytest.raises(MemoryLimitError, match="on cuda:1 for its IPU"):
        refuse_small_cards(made, config, devices, beside=[0, others[1] + 1, 0])


def test_code_that_names_its_card_is_its_own():
    def named(x):
        return x + torch.zeros(2, device=x.device)

    def drawing(x):
        return torch.dropout(x, 0.5, True)

    def neither(x):
        return x + 1

    class Stage:
        def __init__(self, function):
            self.program = torch.fx.experimental.proxy_tensor.make_fx(function)(torch.ones(2))

    assert [depends_on_its_card(Stage(f)) for f in (named, drawing, neither)] == [True, True, False]


def test_what_torch_makes_for_a_card_is_kept_beside_its_entry_and_nowhere_else(compiler, tmp_path, monkeypatch):
    seen = []

    def compile_package(exported, file, options):
        seen.append((os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"]))
        Path(seen[0][0], "kernel.cubin").write_text("")
        compiler.compile(exported, file, options)

    monkeypatch.setattr("ipu_core.compile.executable.compile_package", compile_package)
    program = torch.fx.symbolic_trace(lambda x: (x + 1,))
    folder = tmp_path / "entry"
    folder.mkdir()
    before = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    write_executable(program, [torch.ones(2)], folder, with_gradients=False)
    assert {name: os.environ.get(name) for name in before} == before
    for place in seen[0]:
        assert tmp_path in Path(place).parents
        assert not Path(place).exists()


def test_code_for_a_card_runs_on_the_stream_of_that_card(monkeypatch, tmp_path):
    calls = []

    class Loaded:
        class loader:
            boxed_run = staticmethod(lambda inputs: calls.append("run") or inputs)

    def load(path, **how):
        calls.append(how)
        return Loaded

    @contextlib.contextmanager
    def current(device):
        calls.append(device)
        yield

    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    monkeypatch.setattr("torch.cuda.device", current)
    _torch.load_package(tmp_path / "code.pt2", OTHER)([])
    assert calls == [{"run_single_threaded": True, "device_index": 1}, OTHER, "run"]


@pytest.mark.parametrize(
    ("card", "triton", "compilers", "said"),
    [
        (STAND_IN, "", ["gcc"], "no package `triton` .torch calls that .cannot find a working triton installation.."),
        (STAND_IN, "3.5.0", [], "there is no C compiler .`gcc`, `clang`, `cc`.: install one, or name one by .* CC"),
        (
            Card(name="Tesla P100", capability=(6, 0), total_bytes=16 * GIB),
            *("3.5.0", ["gcc"], "cuda:0 is a Tesla P100, compute capability 6.0, and Triton makes kernels for 7.0"),
        ),
    ],
)
def test_a_card_without_a_compiler_is_refused_in_a_sentence(card, triton, compilers, said, monkeypatch):
    monkeypatch.setattr(cards, "card_of", lambda device: card)
    monkeypatch.setattr(cards, "number_of_cards", lambda: 1)
    monkeypatch.setattr(cards, "triton_version", lambda: triton)
    monkeypatch.setattr("shutil.which", lambda name: name if name in compilers else None)
    monkeypatch.delenv("CC", raising=False)
    there = (torch.device("cpu"), CARD)
    monkeypatch.setattr("ipu_core.runtime.devices.devices_there", lambda: there)
    executor = training_model(to_pipelined(make(Chain), config(layers_per_ipu=[3], devices=["cuda:0"])))
    with pytest.raises(CompileError, match=f"`compile=True` cannot be had here: .*{said}.*leave `compile` out$"):
        executor(**batch())


def test_a_compiler_that_is_named_counts_alone(monkeypatch):
    monkeypatch.setattr(cards, "card_of", lambda device: STAND_IN)
    monkeypatch.setattr(cards, "triton_version", lambda: "3.5.0")
    monkeypatch.setattr("shutil.which", lambda name: name if name == "gcc" else None)
    assert obstacle_to_compiling(CARD, {}) == obstacle_to_compiling(CARD, {"CC": "gcc -O2"}) == ""
    assert "no C compiler (`nvc`)" in obstacle_to_compiling(CARD, {"CC": "nvc"})


def test_what_torch_says_of_code_for_a_card_is_explained(compiler, tmp_path, monkeypatch):
    def compile_package(*_):
        raise RuntimeError("Cannot find a working triton installation.\nmore")

    monkeypatch.setattr("ipu_core.compile.executable.compile_package", compile_package)
    program = torch.fx.symbolic_trace(lambda x: (x + 1,))
    with pytest.raises(CompileError, match=r"Cannot find a working triton.*Triton \(`pip show triton`\).*CUDA_HOME"):
        write_executable(program, [torch.ones(2)], tmp_path / "entry", with_gradients=False)


def test_the_facts_of_a_card_are_its_kind_and_versions(monkeypatch):
    monkeypatch.setattr(cards, "card_of", lambda device: STAND_IN)
    monkeypatch.setattr(cards, "triton_version", lambda: "3.5.0")
    assert card_facts(CARD) == ("Stand-in 80GB, compute capability 9.0", f"CUDA {torch.version.cuda}", "Triton 3.5.0")


def test_executors_run_what_is_compiled_for_a_card_in_inference(compiler):
    assert_inference_equals_plain(make(Chain), config(layers_per_ipu=[1, 2]), batch(), atol=1e-6)


ON_A_CARD = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA devices"),
    pytest.mark.gpu,
]


def on_a_card(function):
    for mark in ON_A_CARD:
        function = mark(function)
    return function


def trained_on_a_card(steps=8, **options):
    """Train on a card; return the losses, and the memory that is in use after each step."""
    model = make(Chain, dropout=0.5).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
    executor = training_model(to_pipelined(model, IPUConfig(gradient_accumulation_steps=2, **options)), optimizer)
    rows = {name: tensor.cuda() for name, tensor in batch(4).items()}
    torch.manual_seed(0)
    losses, memory = [], []
    for _ in range(steps):
        executor(**rows)
        losses.append(executor.update_loss.item())
        memory.append(torch.cuda.memory_allocated())
    return losses, memory


@on_a_card
@pytest.mark.parametrize("layers", [[3], [1, 2]])
@pytest.mark.parametrize("options", [{"record": True}, {"compile": True}, {"compile": True, "record": True}])
def test_a_gpu_trains_as_without_options_dropout_included(options, layers):
    expected, _ = trained_on_a_card(layers_per_ipu=layers)
    found, _ = trained_on_a_card(layers_per_ipu=layers, **options)
    assert found == pytest.approx(expected, rel=1e-4)


@on_a_card
def test_a_gpu_holds_after_200_recorded_steps_what_it_held_after_few():
    _, memory = trained_on_a_card(200, layers_per_ipu=[3], record=True)
    assert memory[-1] <= memory[9]


@on_a_card
@pytest.mark.parametrize("options", [{"compile": True}, {"compile": True, "record": True}])
def test_a_gpu_generates_the_plain_models_tokens_with_compiled_steps(options):
    model, prompt = small_llama().cuda(), torch.randint(3, 64, (1, 4)).cuda()
    wanted = model.generate(prompt, max_new_tokens=8, do_sample=False)
    generator = generation_model(to_pipelined(model, IPUConfig(layers_per_ipu=[1], **options)), max_length=16)
    for _ in range(2):
        assert torch.equal(generator.generate(prompt, max_new_tokens=8, do_sample=False), wanted)
