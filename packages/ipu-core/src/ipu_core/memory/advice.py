# SPDX-License-Identifier: Apache-2.0
"""What would make a plan fit the memory it is held against: changes, planned one by one and then all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..config.device_memory import HOST
from ..config.ipu_config import IPUConfig
from ..config.layers_per_ipu import AUTO
from ..errors import IPUError
from ..partition.plan import Plan
from ..report.plan_svg import MIB

# More shards than this an IPU make lookups slow for little memory.
MAX_SHARDS_PER_IPU = 16


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is planned: a configuration, the rows of a micro-batch, the mode, the rows of the model's embedding."""

    ipu_config: IPUConfig
    rows: int
    inference: bool = False
    vocabulary: int | None = None
    changes: tuple[str, ...] = ()

    def changed(self, change: str, **options: object) -> Setup:
        """Change options, those that inference has of its own for inference; `change` says it."""
        names = {name: name for name in options}
        if self.inference:
            own = {name: f"inference_{name}" for name in options}
            names |= {name: other for name, other in own.items() if hasattr(self.ipu_config, other)}
        ipu_config = self.ipu_config.replace(**{names[name]: value for name, value in options.items()})
        return replace(self, ipu_config=ipu_config, changes=(*self.changes, change))

    @property
    def num_ipus(self) -> int:
        """IPUs of a replica."""
        view = self.ipu_config.for_inference() if self.inference else self.ipu_config.for_training()
        return view.ipus_per_replica


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A change, and what it leads to: a plan, or why there is none. It prints as one line."""

    change: str
    plan: Plan | None = None
    obstacle: str = ""

    @property
    def fits(self) -> bool:
        """Whether the change is enough."""
        return self.plan is not None and not self.plan.excess

    @property
    def is_too_much(self) -> bool:
        """Whether the change is possible, and not enough."""
        return self.plan is not None and bool(self.plan.excess)

    @property
    def peak(self) -> float:
        """What the fullest IPU, or this process, holds; infinite where there is no plan."""
        return max(self.plan.limited.values()) if self.plan is not None else math.inf

    def __str__(self) -> str:
        return f"  {self.change}: {self._result()}"

    def _result(self) -> str:
        if self.plan is None:
            return self.obstacle
        where, held = max(self.plan.limited.items(), key=lambda item: item[1])
        excess = self.plan.excess.get(where, 0)
        return f"{where} at {held / MIB:.1f} MiB, {f'{excess / MIB:.1f} MiB too much' if excess else 'fits'}"


@dataclass(frozen=True)
class Impossible:
    """Why a change cannot be made."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing to try: its name, and the set-up after it."""

    name: str
    apply: Callable[[Setup], Setup | Impossible]


def recompute(setup: Setup) -> Setup | Impossible:
    """Keep only what crosses between layers."""
    if setup.ipu_config.recompute_checkpoint_every_layer:
        return Impossible("it is set already")
    return setup.changed(RECOMPUTE.name, recompute_checkpoint_every_layer=True)


def state_offchip(setup: Setup) -> Setup | Impossible:
    """Keep the optimizer's state beside the IPU."""
    if setup.ipu_config.optimizer_state_offchip:
        return Impossible("it is set already")
    return setup.changed(OFFCHIP.name, optimizer_state_offchip=True)


def spread_vocabulary(setup: Setup) -> Setup | Impossible:
    """Spread the rows of the embedding over the IPUs, in as few equal shards as will do."""
    num_ipus, rows = setup.num_ipus, setup.vocabulary
    if rows is None:
        return Impossible("the model has no embedding of a vocabulary")
    if num_ipus == 1:
        return Impossible("there is one IPU")
    most = num_ipus * MAX_SHARDS_PER_IPU
    num_shards = next((n for n in range(num_ipus, most + 1) if rows % n == 0), None)
    if num_shards is None:
        return Impossible(
            f"the vocabulary's {rows:,} rows are no multiple of any number from {num_ipus} to {most}, and shards are "
            f"equal; {-rows % num_ipus} more rows would make {num_ipus} shards"
        )
    share, left = divmod(num_shards, num_ipus)
    splits = [share + (ipu < left) for ipu in range(num_ipus)]
    return setup.changed(
        f"{VOCABULARY.name}={splits}",
        serialized_embedding_splits_per_ipu=splits,
        embedding_serialization_factor=None,
    )


def half_rows(setup: Setup) -> Setup | Impossible:
    """Halve the micro-batch."""
    if setup.rows < 2:
        return Impossible("a micro-batch has one row")
    return replace(setup, rows=setup.rows // 2, changes=(*setup.changes, f"{setup.rows // 2} rows a micro-batch"))


def more_ipus(factor: int) -> Change:
    """Multiply the IPUs, and balance the layers anew."""

    def apply(setup: Setup) -> Setup | Impossible:
        num_ipus = setup.num_ipus * factor
        name = f'ipus_per_replica={num_ipus}, layers_per_ipu="{AUTO}"'
        return setup.changed(name, layers_per_ipu=AUTO, ipus_per_replica=num_ipus)

    return Change(name=f"{factor} times the IPUs", apply=apply)


RECOMPUTE = Change(name="recompute_checkpoint_every_layer=True", apply=recompute)
OFFCHIP = Change(name="optimizer_state_offchip=True", apply=state_offchip)
VOCABULARY = Change(name="serialized_embedding_splits_per_ipu", apply=spread_vocabulary)
HALF_ROWS = Change(name="half the rows a micro-batch", apply=half_rows)
TWICE, FOUR_TIMES = more_ipus(2), more_ipus(4)


def advise(setup: Setup, made: Plan, plan_of: Callable[[IPUConfig, int], Plan]) -> Iterator[Advice]:
    """Plan a set-up that does not fit with one change after the other, then with all that helped.

    Args:
        setup: what does not fit.
        made: its plan.
        plan_of: plans a configuration and a number of rows a micro-batch.
    """
    on_host = setup.ipu_config.device_memory == HOST
    training = () if setup.inference else (RECOMPUTE,) if on_host else (RECOMPUTE, OFFCHIP)
    helping = []
    for change in (*training, *(() if on_host else (VOCABULARY,)), HALF_ROWS):
        advice = _tried([change], setup, plan_of)
        helping += [change] if advice.peak < max(made.limited.values()) else []
        yield advice
    # One process runs every stage, however many IPUs there are.
    for change in () if on_host else (TWICE, FOUR_TIMES):
        yield (advice := _tried([change], setup, plan_of))
        if advice.fits:
            break
    for more in ((),) if on_host else ((), (TWICE,), (FOUR_TIMES,)):
        if len(changes := [*more, *helping]) > 1:
            yield (advice := _tried(changes, setup, plan_of))
            if advice.fits:
                break


def vocabulary_size(model: torch.nn.Module) -> int | None:
    """Return the rows of a model's input embedding, None where it has none."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return embedding.num_embeddings if isinstance(embedding, torch.nn.Embedding) else None


def _tried(changes: Sequence[Change], setup: Setup, plan_of: Callable[[IPUConfig, int], Plan]) -> Advice:
    """Plan with the changes; of several, those that cannot be made after the others are left out."""
    label = changes[0].name
    try:
        for change in changes:
            changed = change.apply(setup)
            if isinstance(changed, Setup):
                setup = changed
            elif len(changes) == 1:
                return Advice(change=label, obstacle=f"not possible: {changed.reason}")
        label = "; ".join(setup.changes)
        return Advice(change=label, plan=plan_of(setup.ipu_config, setup.rows))
    except IPUError as error:
        return Advice(change=label, obstacle=f"not possible: {error}")
