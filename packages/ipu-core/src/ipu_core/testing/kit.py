# SPDX-License-Identifier: Apache-2.0
"""`conformance`: one test that asks of every class of a plugin's families all that a user relies on.

It builds each class with the family's `tiny` configuration, and random batches of the class's inputs. `exhaustive` asks
for training on every split, where `conformance` cuts once at every boundary, and for all of it in float64.
"""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from .._torch import pytree
from ..capture.capture import module_of
from ..config.ipu_config import IPUConfig
from ..errors import CacheError, GenerationModeError, nearest
from ..executor import Executor, inference_model
from ..generation.generator import generation_model
from ..model.mixin import PipelineMixin
from ..model.pipelined import to_pipelined
from ..partition.layout import count_layers, module_entries
from ..plugins.family import Family, load
from ..plugins.hookspecs import GROUP
from ..plugins.registry import installed
from ..samples import sample_batch
from .equality import (
    assert_inference_equals_plain,
    assert_round_trip,
    assert_training_equals_plain,
    compositions,
)
from .losses import with_loss

ATOL = {torch.float32: 1e-5, torch.float64: 1e-10}
SINGLE_PRECISION = 1e-8
ROWS, LENGTH = 3, 16
# Up to so many layers a class is compared on every split; with more on those into two, and on one layer an IPU.
MOST_LAYERS = 4
MOST_PARAMETERS = 50_000_000
# A comparison that takes longer says so before it begins.
LONG_SECONDS = 60.0
NEW_TOKENS = 4


def conformance(
    *families: Family, single_precision: Collection[str] = (), checks: Collection[str] | None = None
) -> Callable[..., None]:
    """Make a test that pytest runs once for every class of the families and everything asked of it.

    ::

        test_my_family = conformance(MY_FAMILY)

    Of each family: declaring it imports neither torch nor transformers. Of each class: the pipelined class exists and
    is mixed into it; its layout leaves no parameter out and is in the order modules run; outputs, loss and every
    gradient equal the plain model's, padded and unpadded: of inference in float32 on every split, of training in
    float64, dropout on, with a cut at every boundary and the vocabulary in shards; `parallelize` can be taken back;
    checkpoints are plain and load again; a class that generates gives the plain model's tokens.

    Args:
        families: what a plugin declares.
        single_precision: model types, or classes, that compute a part in float32 whatever their weights are; in
            float64 they equal the plain model to 1e-8, others to 1e-10.
        checks: names of what is asked, such as "infers", to make several tests of it; by default all.

    Raises:
        ValueError: there is no such check.
    """
    known = [check.__name__ for check in (*FAMILY_CHECKS, *CLASS_CHECKS)]
    for name in checks or ():
        if name not in known:
            raise ValueError(f"there is no check `{name}`{nearest(name, known)}; there are {', '.join(known)}")
    of_family, of_class = (
        [check for check in each if checks is None or check.__name__ in checks]
        for each in (FAMILY_CHECKS, CLASS_CHECKS)
    )
    return _test(families, single_precision, of_family, of_class)


def exhaustive(*families: Family, single_precision: Collection[str] = ()) -> Callable[..., None]:
    """Make a test of training on every split, of everything in float64, and of vocabularies in shards in float32.

    ::

        test_every_split = exhaustive(MY_FAMILY)

    It takes three times as long as `conformance`, and finds what one split or one type alone brings about: run it
    before a release. Its arguments are those of `conformance`.
    """
    return _test(families, single_precision, (), EXHAUSTIVE_CHECKS)


def _test(
    families: Sequence[Family],
    single_precision: Collection[str],
    family_checks: Sequence[Callable[..., None]],
    class_checks: Sequence[Callable[..., None]],
) -> Callable[..., None]:
    """Make a test with a case for every check of every family, and of every class."""
    import pytest

    cases = [
        pytest.param(check, (family,), id=f"{family.model_type}-{check.__name__}")
        for family in families
        for check in family_checks
    ] + [
        pytest.param(
            _rounded(check, {family.model_type, name} & {*single_precision}), (family, name), id=_id(check, name)
        )
        for family in families
        for name in family.models
        for check in class_checks
    ]

    @pytest.mark.parametrize(("check", "subject"), cases)
    def test(check: Callable[..., None], subject: tuple[Any, ...]) -> None:
        check(*subject)

    return test


def tiny_model(family: Family, name: str, **options: Any) -> Any:
    """Make a plain model of one class of a family in its tiny size, with the same weights every time.

    `options` are values of its configuration.

    Raises:
        AssertionError: it has more than 50 million parameters, and a test makes many of them.
    """
    cls = declared_class(family, name).plain_class()
    values = {**family.tiny_values(name), **options}
    _refuse_large(cls, values)
    torch.manual_seed(0)
    return _made(cls, values)


def _made(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Make a model of the values of its configuration; a class without one of its own takes them as arguments."""
    return cls(cls.config_class(**values)) if hasattr(cls, "config_class") else cls(**values)


def _refuse_large(cls: type[Any], values: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in _made(cls, values).parameters())
    assert num_parameters <= MOST_PARAMETERS, (
        f"`{cls.__name__}` with the values of `Family.tiny` has {num_parameters / 1e6:,.0f} million parameters, and "
        f"the kit builds at most {MOST_PARAMETERS / 1e6:.0f} million: give `tiny` values that make it smaller"
    )


def declared_class(family: Family, name: str) -> type[PipelineMixin]:
    """Return the pipelined class a family declares for a class."""
    found: type[PipelineMixin] = load(family.targets[name])
    return found


def light(family: Family) -> None:
    """Check that a plugin declares the family, and that declaring it imports nothing heavy."""
    plugin = next((plugin.name for plugin in installed().plugins if family in plugin.families), None)
    assert plugin, f"no installed plugin declares the family {family.model_type}: see `ipu plugins`"
    (point,) = importlib.metadata.entry_points(group=GROUP, name=plugin)
    code = f"import sys, {point.module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).strip()
    assert printed == "[]", f"importing {point.module} imports {printed}"


def declared(family: Family, name: str) -> None:
    """Check that the declared class is there, is pipelined, and is what `to_pipelined` makes."""
    cls = declared_class(family, name)
    assert issubclass(cls, PipelineMixin), f"`{family.targets[name]}` is no PipelineMixin class"
    assert cls.plain_class().__name__ == name, f"`{cls.__name__}` is mixed into `{cls.plain_class().__name__}`"
    model = tiny_model(family, name)
    made = type(to_pipelined(model, IPUConfig()))
    assert made is cls, f"`to_pipelined` makes a `{made.__name__}`: is the package installed, with its entry point?"


def infers(family: Family, name: str) -> None:
    """Check equality of inference in float32 on every split, and for a layout in the order modules run.

    Padded on every split, and unpadded on the last: the same graph runs both.
    """
    model = tiny_model(family, name)
    batches = _batches(model, torch.float32)
    _skip_if_not_finite(model, batches[0], torch.float32)
    splits = list(_splits(model, family, batches[0]))
    _warn_if_long(model, batches, splits)
    *unpadded, padded = batches
    used = assert_inference_equals_plain(model, splits, padded, atol=ATOL[torch.float32], last=unpadded)
    _assert_run_order(model, family, used[0])


def exact(family: Family, name: str, *, atol: float = ATOL[torch.float64]) -> None:
    """Check equality of training in float64, cut at every boundary, the vocabulary in shards where there is one."""
    model = tiny_model(family, name).to(torch.float64)
    batches = _batches(model, torch.float64)
    _skip_if_not_finite(model, batches[0], torch.float64)
    *_, apart = _splits(model, family, batches[0])
    shards = _shards(model)
    config = apart if shards is None else apart.replace(embedding_serialization_factor=shards)
    _assert_training(model, [config], batches, name, atol=atol)


def trains(family: Family, name: str) -> None:
    """Check equality of training in float32 on every split."""
    _assert_training_on(family, name, torch.float32, atol=ATOL[torch.float32])


def equal_in_float64(family: Family, name: str, *, atol: float = ATOL[torch.float64]) -> None:
    """Check equality of inference and training in float64 on every split."""
    model = tiny_model(family, name).to(torch.float64)
    batches = _batches(model, torch.float64)
    _skip_if_not_finite(model, batches[0], torch.float64)
    assert_inference_equals_plain(model, list(_splits(model, family, batches[0])), batches, atol=atol)
    _assert_training_on(family, name, torch.float64, atol=atol)


def in_shards(family: Family, name: str) -> None:
    """Check that training equals plain when the vocabulary works in shards, where there is a vocabulary."""
    model = tiny_model(family, name)
    shards = _shards(model)
    if shards is None:
        return
    config = IPUConfig(layers_per_ipu=[-1, -1], embedding_serialization_factor=shards)
    batches = _batches(model, torch.float32)
    assert_training_equals_plain(_trainable(model, batches[0]), config, batches, atol=ATOL[torch.float32])


def generates(family: Family, name: str) -> None:
    """Check the plain model's tokens of a class that can generate, with caches, on two IPUs."""
    import pytest

    model = tiny_model(family, name).eval()
    if not model.can_generate():
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # weights that are all but zero say one token for ever
                torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.update(pad_token_id=0, eos_token_id=None, bos_token_id=1)
    if model.config.is_encoder_decoder:
        model.generation_config.update(decoder_start_token_id=2)
    batch = sample_batch(model, batch_size=ROWS, length=LENGTH // 2, labels=False)
    if not model.config.is_encoder_decoder:
        batch = {given: batch[given] for given in (model.main_input_name, "attention_mask")}
    inputs = {given: _of_one_choice(value) for given, value in batch.items() if not given.startswith("decoder_")}
    asked: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    wanted = model.generate(**inputs, **asked)
    pipelined = to_pipelined(model, IPUConfig(layers_per_ipu=[-1, -1]), family=family)
    try:
        found = generation_model(pipelined).generate(**inputs, **asked)
    except (CacheError, GenerationModeError) as error:
        pytest.skip(f"{name} is refused: {error}")
    assert torch.equal(found, wanted), f"tokens are {found.tolist()}, and the plain model's {wanted.tolist()}"


def _of_one_choice(value: torch.Tensor) -> torch.Tensor:
    """Return the ids or the mask of the first choice, [B, L], where there are several, [B, C, L]."""
    return value[:, 0] if value.dim() == 3 and not value.is_floating_point() else value


def reversible(family: Family, name: str) -> None:
    """Check that `parallelize` is taken back, and that a checkpoint is a plain one with the configuration beside it."""
    model = tiny_model(family, name)
    ipu_config = IPUConfig(layers_per_ipu=[-1, -1])
    assert_round_trip(model, ipu_config)
    pipelined = to_pipelined(model, ipu_config, family=family)
    with tempfile.TemporaryDirectory() as directory:
        with pipelined.parallelized():
            pipelined.save_pretrained(directory)
        for cls in (type(model), type(pipelined)):
            loaded = cls.from_pretrained(directory)
            assert type(loaded) is cls
            _assert_same_state(loaded, model)
        assert loaded.ipu_config == ipu_config


FAMILY_CHECKS = (light,)
CLASS_CHECKS = (declared, infers, exact, reversible, generates)
EXHAUSTIVE_CHECKS = (trains, equal_in_float64, in_shards)


def _rounded(check: Callable[..., None], names: Collection[str]) -> Callable[..., None]:
    """Return a check for a class that rounds to single precision, where its names are among those that do."""
    return functools.partial(check, atol=SINGLE_PRECISION) if names and check in (exact, equal_in_float64) else check


def _id(check: Callable[..., None], name: str) -> str:
    return f"{name}-{check.__name__}"


def _assert_training_on(family: Family, name: str, dtype: torch.dtype, *, atol: float) -> None:
    """Assert equality of training on every split."""
    model = tiny_model(family, name).to(dtype)
    batches = _batches(model, dtype)
    _skip_if_not_finite(model, batches[0], dtype)
    splits = list(_splits(model, family, batches[0]))
    _warn_if_long(model, batches, splits)
    _assert_training(model, splits, batches, name, atol=atol)


def _assert_training(
    model: torch.nn.Module, splits: Sequence[IPUConfig], batches: Sequence[dict[str, Any]], name: str, *, atol: float
) -> None:
    """Assert equality of training for the batches whose plain gradients are numbers."""
    trainable = _trainable(model, batches[0])
    comparable = [batch for batch in batches if _has_gradients(trainable, batch)]
    if comparable:
        assert_training_equals_plain(trainable, splits, comparable, atol=atol)
    _skip_if_fewer(comparable, batches, name, next(model.parameters()).dtype)


def _warn_if_long(model: torch.nn.Module, batches: Sequence[dict[str, Any]], splits: Sequence[IPUConfig]) -> None:
    """Warn before a comparison that will take longer than a minute, by the time of one forward of the plain model."""
    with torch.no_grad():
        started = time.perf_counter()
        model.eval()(**batches[0])
        # A training pass is some three forwards, and the plain model runs too.
        seconds = (time.perf_counter() - started) * 4 * len(batches) * (len(splits) + 1)
    if seconds > LONG_SECONDS:
        warnings.warn(
            f"comparing `{type(model).__name__}` on {len(splits)} splits will take some {seconds / 60:.0f} minutes: "
            "smaller `tiny` values make it faster",
            stacklevel=2,
        )


def _splits(model: torch.nn.Module, family: Family, batch: dict[str, Any]) -> Iterator[IPUConfig]:
    num_layers = count_layers(model, family.layout) or _layers_run(model, batch)
    splits = compositions(num_layers) if num_layers <= MOST_LAYERS else _some_compositions(num_layers)
    return (IPUConfig(layers_per_ipu=split) for split in splits)


def _layers_run(model: torch.nn.Module, batch: dict[str, Any]) -> int:
    """Count the layers of a model whose lists do not say it, such as one shared layer that runs several times."""
    return sum(inference_model(to_pipelined(model, IPUConfig())).compile(**batch).plan.layers_per_ipu)


def _some_compositions(num_layers: int) -> list[list[int]]:
    return [[num_layers], *([n, num_layers - n] for n in range(1, num_layers)), [1] * num_layers]


def _assert_run_order(model: torch.nn.Module, family: Family, executor: Executor) -> None:
    """Assert that what runs, on one IPU, runs in the order the family's layout declares."""
    ran = dict.fromkeys(module_of(path) for stage in executor.plan.stages for path in stage.modules)
    entries = [entry.path for entry in module_entries(model, family.layout) if entry.path in ran]
    # Heads are not declared: they are modules beside the base model.
    named = [path for path in entries if "." in path or path in family.layout]
    order = [path for path in ran if path in named]
    assert order == named, f"the layout of {family.model_type} is declared as {named}, and runs as {order}"


def _batches(model: torch.nn.Module, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Make an unpadded and a padded batch of the same shapes, one where there is nothing to pad."""
    made = [sample_batch(model, batch_size=ROWS, length=LENGTH, padded=padded) for padded in (False, True)]
    batches = [{name: _to(value, dtype) for name, value in batch.items()} for batch in made]
    return batches if "attention_mask" in batches[0] or "labels" in batches[0] else batches[:1]


def _to(value: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, value)


def _skip_if_not_finite(model: torch.nn.Module, batch: dict[str, Any], dtype: torch.dtype) -> None:
    """Skip a comparison with a plain model that itself computes nothing finite, as with masks that overflow."""
    import pytest

    with torch.no_grad():
        leaves = pytree.tree_leaves(model.eval()(**batch))
    if any(leaf.isnan().any() for leaf in leaves if isinstance(leaf, torch.Tensor)):
        pytest.skip(f"the plain {type(model).__name__} gives no numbers in {dtype}")


def _has_gradients(model: torch.nn.Module, batch: dict[str, Any]) -> bool:
    """Return whether the plain model's gradients are numbers."""
    model.train()
    model(**batch)["loss"].backward()
    are_numbers = all(p.grad is None or not p.grad.isnan().any() for p in model.parameters())
    model.zero_grad()
    return are_numbers


def _skip_if_fewer(comparable: Sequence[Any], batches: Sequence[Any], name: str, dtype: torch.dtype) -> None:
    """Call a test skipped, once all else is compared, where the plain model's gradients are no numbers."""
    import pytest

    if len(comparable) < len(batches):
        which = "" if not comparable else ", padded" if comparable[0] is batches[0] else ", unpadded"
        pytest.skip(f"gradients of the plain {name} are no numbers in {dtype}{which}; all else is equal")


def _trainable(model: torch.nn.Module, batch: dict[str, Any]) -> torch.nn.Module:
    """Return the model, with a loss where it has none for a batch."""
    with torch.no_grad():
        outputs = model.eval()(**batch)
    return model if outputs.get("loss") is not None else with_loss(model)


def _shards(model: Any) -> int | None:
    """Return a number of equal shards of a model's vocabulary; None where there is no vocabulary."""
    embedding = _embedding(model)
    if embedding is None:
        return None
    shards = next((n for n in range(2, 10) if embedding.num_embeddings % n == 0), None)
    assert shards, f"{embedding.num_embeddings} ids do not divide into 2 to 9 shards: choose another tiny vocabulary"
    return shards


def _embedding(model: Any) -> torch.nn.Embedding | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(embedding, torch.nn.Embedding) else None


def _assert_same_state(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys(), f"keys differ: {sorted(ours.keys() ^ theirs.keys())}"
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"loaded otherwise than saved: {different}"
