# SPDX-License-Identifier: Apache-2.0
"""Texts to tokens to numbers: splitting, vocabularies that are built, given or learned, and those of checkpoints.

A `Vocabulary` is a value; it is written beside a model as JSON and read back.
"""

from __future__ import annotations

import collections
import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from ..errors import RecipeError
from .schema import BASIC_ENGLISH, BPE, InputTypeInfo

PAD, UNKNOWN = SPECIAL = ("<pad>", "<unk>")
OWN_MIN_FREQ = 10
BPE_TOKENS = 32_000
# A word, or one of the marks that are tokens by themselves; the other marks separate.
_BASIC = re.compile(r"[.,!?()']|[^\s.,!?()'\";:]+")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """How the texts of one input become numbers.

    Attributes:
        kind: "words" (pieces, as they are or in basic English), "bpe", or "pretrained".
        split_on: what stands between pieces; " " for any white space, None for characters.
        tokenizer: `basic_english`, or None for pieces as they are.
        numbers: of each token of "words".
        backend: the tokenizer of tokenizers, or of the checkpoint, of the other kinds.
        pad: the number of padding.
        unknown: the number of a token that the vocabulary does not have.
        rare: numbers of tokens that are read as unknown.
    """

    kind: str
    split_on: str | None
    tokenizer: str | None = None
    numbers: dict[str, int] = field(default_factory=dict)
    backend: Any = None
    pad: int = 0
    unknown: int = 1
    rare: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.numbers) if self.kind == "words" else len(self.backend.get_vocab())

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the tokens of a text."""
        if self.kind == "words":
            return [self.numbers.get(token, self.unknown) for token in words(text, self.split_on, self.tokenizer)]
        if self.kind == "pretrained":
            ids = self._pretrained(text)
        else:
            ids = [number for piece in pieces(text, self.split_on) for number in self.backend.encode(piece).ids]
        return [self.unknown if number in self.rare else number for number in ids] if self.rare else ids

    def _pretrained(self, text: str) -> list[int]:
        quiet: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if self.split_on == " ":  # as the checkpoint reads texts
            return list(self.backend(text, **quiet)["input_ids"])
        return [n for piece in pieces(text, self.split_on) for n in self.backend(piece, **quiet)["input_ids"]]

    @functools.cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """Return the numbers that a checkpoint expects before and after those of a text."""
        if self.kind != "pretrained":
            return [], []
        probe = self.backend("a", add_special_tokens=False)["input_ids"]
        whole = list(self.backend("a")["input_ids"])
        for start in range(len(whole) - len(probe) + 1):
            if whole[start : start + len(probe)] == list(probe):
                return whole[:start], whole[start + len(probe) :]
        return [], []

    def save(self, folder: Path) -> None:
        """Write the vocabulary to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {
            "kind": self.kind,
            "split_on": self.split_on,
            "tokenizer": self.tokenizer,
            "pad": self.pad,
            "unknown": self.unknown,
            "rare": sorted(self.rare),
            "numbers": self.numbers,
        }
        text = json.dumps(said, ensure_ascii=False, indent=0)
        (folder / "vocabulary.json").write_text(text, encoding="utf-8")
        if self.kind == "bpe":
            self.backend.save(str(folder / "tokenizer.json"))
        elif self.kind == "pretrained":
            self.backend.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            RecipeError: the folder has no vocabulary.
        """
        try:
            said = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            made = cls(**{**said, "rare": frozenset(said["rare"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecipeError(f"`{folder}` has no vocabulary that was saved with a model: {error}") from error
        if made.kind == "bpe":
            return replace(made, backend=tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
        if made.kind == "pretrained":
            return replace(made, backend=transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))
        return made


def pieces(text: str, split_on: str | None) -> list[str]:
    """Return the pieces of a text that are not empty.

    >>> pieces("to be  or", " ")
    ['to', 'be', 'or']
    """
    if not split_on:
        return list(text)
    return text.split() if split_on == " " else [piece for piece in text.split(split_on) if piece]


def basic_english(text: str) -> list[str]:
    """Return words in lower case, and the marks . , ! ? ( ) ' as words of their own; other marks are left out.

    >>> basic_english('He is "here", is he?')
    ['he', 'is', 'here', ',', 'is', 'he', '?']
    """
    return _BASIC.findall(text.lower().replace("<br />", " "))


def words(text: str, split_on: str | None, tokenizer: str | None) -> list[str]:
    """Return the tokens of a text, each piece tokenized by itself."""
    found = pieces(text, split_on)
    return [word for piece in found for word in basic_english(piece)] if tokenizer == BASIC_ENGLISH else found


def vocabulary_of(info: InputTypeInfo, texts: Sequence[str], *, checkpoint: str | None) -> Vocabulary:
    """Return the vocabulary that an input asks for, of its training texts.

    Args:
        info: what the recipe says.
        texts: the training texts.
        checkpoint: whose tokenizer is used unless the recipe has a tokenizer or a vocabulary; None for none.

    Raises:
        RecipeError: a vocabulary that is not there or cannot be read, or that has no token of the texts.
    """
    if checkpoint is not None and info.tokenizer is None and info.vocab_file is None:
        made = _of_checkpoint(checkpoint, info)
    elif info.tokenizer == BPE:
        made = _of_pairs(info, texts)
    else:
        made = _of_words(info, texts)
    if made.kind != "words" and (info.min_freq or 1) > 1:
        made = _without_rare(made, texts, info.min_freq or 1)
    if not any(number != made.unknown for text in texts for number in made.encode(text)):
        raise RecipeError(
            f"no token of {len(texts)} training texts is in the vocabulary: lower `min_freq` (now "
            f"{info.min_freq or OWN_MIN_FREQ}), or give another `split_on` or `vocab_file`"
        )
    return made


def _of_words(info: InputTypeInfo, texts: Sequence[str]) -> Vocabulary:
    if info.vocab_file is not None:
        numbers = read_vocabulary(info.vocab_file)
    else:
        counted: collections.Counter[str] = collections.Counter()
        for text in texts:
            counted.update(words(text, info.split_on, info.tokenizer))
        least = OWN_MIN_FREQ if info.min_freq is None else info.min_freq
        kept = sorted((token for token, count in counted.items() if count >= least), key=lambda t: (-counted[t], t))
        numbers = {token: number for number, token in enumerate((*SPECIAL, *(t for t in kept if t not in SPECIAL)))}
    made = Vocabulary(
        kind="words",
        split_on=info.split_on,
        tokenizer=info.tokenizer,
        numbers=numbers,
        pad=numbers[PAD],
        unknown=numbers[UNKNOWN],
    )
    if info.vocab_file is not None and (info.min_freq or 1) > 1:
        counts = collections.Counter(number for text in texts for number in made.encode(text))
        rare = {number for number in numbers.values() if counts[number] < (info.min_freq or 1)}
        kept_numbers = {t: n for t, n in numbers.items() if n not in rare or n in (made.pad, made.unknown)}
        made = replace(made, numbers={token: place for place, token in enumerate(kept_numbers)})
        made = replace(made, pad=made.numbers[PAD], unknown=made.numbers[UNKNOWN])
    return made


def read_vocabulary(file: str) -> dict[str, int]:
    """Return the numbers of the tokens of a file: a token a line, or JSON that maps tokens to 0, 1, 2 ...

    Padding and the unknown token come first where the file has none.

    Raises:
        RecipeError: it is not there, has a token twice, or numbers with gaps.
    """
    path = Path(file)
    if not path.is_file():
        raise RecipeError(f"`vocab_file: {file}` is not there: give a file with a token a line, or JSON")
    try:
        text = path.read_text(encoding="utf-8")
        said = json.loads(text) if path.suffix == ".json" else [line for line in text.split("\n") if line]
    except ValueError as error:
        raise RecipeError(f"`vocab_file: {file}` cannot be read: {error}") from error
    if isinstance(said, dict):
        if sorted(map(str, said.values())) != sorted(map(str, range(len(said)))):
            last = len(said) - 1
            raise RecipeError(f"`vocab_file: {file}` maps {len(said)} tokens to other numbers than 0 to {last}")
        numbers = said
        said = sorted(numbers, key=lambda token: int(numbers[token]))
    if not isinstance(said, list) or not all(isinstance(token, str) for token in said):
        raise RecipeError(f"`vocab_file: {file}` is no list of tokens, nor a mapping of tokens to numbers")
    twice = [token for token, count in collections.Counter(said).items() if count > 1]
    if twice:
        raise RecipeError(f"`vocab_file: {file}` has {len(twice)} tokens twice, such as {twice[0]!r}")
    return {token: number for number, token in enumerate((*(s for s in SPECIAL if s not in said), *said))}


def _of_pairs(info: InputTypeInfo, texts: Sequence[str]) -> Vocabulary:
    if info.vocab_file is not None:
        backend = _given_pairs(info.vocab_file)
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=UNKNOWN))
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=info.adaptive_tokenizer_max_vocab_size or BPE_TOKENS,
            min_frequency=OWN_MIN_FREQ if info.min_freq is None else info.min_freq,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
        # Without a pre-tokenizer an item is one word: pieces, which is what `split_on` is about.
        backend.train_from_iterator(_pieces(texts, info.split_on), trainer)
    pad, unknown = (backend.token_to_id(token) for token in SPECIAL)
    return Vocabulary(kind="bpe", split_on=info.split_on, backend=backend, pad=pad, unknown=unknown)


def _pieces(texts: Iterable[str], split_on: str | None) -> Iterable[str]:
    return (piece for text in texts for piece in pieces(text, split_on))


def _given_pairs(file: str) -> Any:
    if not Path(file).is_file():
        raise RecipeError(f"`vocab_file: {file}` is not there: give the tokenizer.json of a `bpe` tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_file(file)
    except Exception as error:  # the library raises this class
        raise RecipeError(f"`vocab_file: {file}` is no tokenizer.json: {error}") from error
    missing = [token for token in SPECIAL if backend.token_to_id(token) is None]
    if missing:
        raise RecipeError(f"`vocab_file: {file}` has no {' and '.join(missing)}: add them to its tokens")
    return backend


def _of_checkpoint(checkpoint: str, info: InputTypeInfo) -> Vocabulary:
    try:
        backend = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"`{checkpoint}` has no tokenizer that can be loaded: give `tokenizer` or `vocab_file` "
            f"({' '.join(str(error).split())[:150]})"
        ) from error
    pad = backend.pad_token_id if backend.pad_token_id is not None else backend.eos_token_id
    unknown = backend.unk_token_id if backend.unk_token_id is not None else -1
    return Vocabulary(kind="pretrained", split_on=info.split_on, backend=backend, pad=pad or 0, unknown=unknown)


def _without_rare(made: Vocabulary, texts: Sequence[str], least: int) -> Vocabulary:
    """Return a vocabulary that reads tokens as unknown that are rarer in some texts."""
    if made.unknown < 0:
        raise RecipeError(
            f"`min_freq: {least}` makes rare tokens unknown, and the checkpoint's tokenizer has no unknown token"
        )
    counted = collections.Counter(number for text in texts for number in made.encode(text))
    rare = {number for number in made.backend.get_vocab().values() if counted[number] < least}
    return replace(made, rare=frozenset(rare - {made.unknown, made.pad}))
