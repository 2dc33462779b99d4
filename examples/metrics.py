# SPDX-License-Identifier: Apache-2.0
"""What the examples measure, each a plain function of predictions and references."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch

IGNORED = -100


def classification(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the accuracy, the macro F1 and Matthews' correlation of predicted classes, [B]."""
    scores = [f1_of_sets(np.flatnonzero(predicted == c), np.flatnonzero(labels == c)) for c in np.unique(labels)]
    return {
        "accuracy": float((predicted == labels).mean()),
        "f1": float(np.mean(scores)),
        "matthews": matthews(predicted, labels),
    }


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return Matthews' correlation of any number of classes; 0 where one side is constant."""
    classes = np.union1d(predicted, labels)
    ours, theirs = ((side[:, None] == classes).astype(float) for side in (predicted, labels))
    covariance = [
        ((a - a.mean(0)) * (b - b.mean(0))).sum() for a, b in ((ours, theirs), (ours, ours), (theirs, theirs))
    ]
    return float(covariance[0] / math.sqrt(covariance[1] * covariance[2])) if covariance[1] * covariance[2] else 0.0


def regression(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean squared error, and Pearson's and Spearman's correlation, of predicted numbers, [B]."""
    varied = len(set(predicted.tolist())) > 1 and len(set(labels.tolist())) > 1
    return {
        "mse": float(((predicted - labels) ** 2).mean()),
        "pearson": correlation(predicted, labels) if varied else 0.0,
        "spearman": correlation(ranks(predicted), ranks(labels)) if varied else 0.0,
    }


def correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return Pearson's correlation of two rows of numbers, [B], neither constant."""
    return float(np.corrcoef(ours, theirs)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, [B]; equal ones share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[which]


def multi_label(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the micro F1 of predicted label sets, [B, C] of 0 and 1, and the part of rows that is right throughout."""
    return {
        "f1": f1_of_sets(np.flatnonzero(predicted), np.flatnonzero(labels)),
        "exact": float((predicted == labels).all(-1).mean()),
    }


def f1_of_sets(predicted: Sequence[Hashable] | np.ndarray, gold: Sequence[Hashable] | np.ndarray) -> float:
    """Return the harmonic mean of precision and recall, counting what occurs twice twice; 1 where both are empty."""
    if not len(predicted) and not len(gold):
        return 1.0
    common = (Counter(list(predicted)) & Counter(list(gold))).total()
    return 2 * common / (len(predicted) + len(gold))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the (type, start, end) of each entity of IOB2 tags; an `I-` without its `B-` begins one."""
    found, start = set(), 0
    for i, (before, tag, after) in enumerate(zip(["O", *tags], tags, [*tags[1:], "O"], strict=False)):
        if tag == "O":
            continue
        if tag.startswith("B-") or before[2:] != tag[2:]:
            start = i
        if after != f"I-{tag[2:]}":
            found.add((tag[2:], start, i + 1))
    return found


def tagging(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and F1 of whole entities, and the accuracy of tags."""
    ours, theirs = ({(n, *e) for n, tags in enumerate(side) for e in entities(tags)} for side in (predicted, gold))
    pairs = [a == b for p, g in zip(predicted, gold, strict=True) for a, b in zip(p, g, strict=True)]
    return {
        "precision": len(ours & theirs) / len(ours) if ours else 0.0,
        "recall": len(ours & theirs) / len(theirs) if theirs else 0.0,
        "f1": f1_of_sets(list(ours), list(theirs)),
        "accuracy": sum(pairs) / len(pairs),
    }


def words_of(answer: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them: lower case, no punctuation, no articles."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def question_answering(predicted: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 over words, each answer against the best of its references; no reference means ""."""
    pairs = [(words_of(p), [words_of(g) for g in golds or [""]]) for p, golds in zip(predicted, gold, strict=True)]
    return {
        "exact_match": float(np.mean([p in golds for p, golds in pairs])),
        "f1": float(np.mean([max(f1_of_sets(p, g) for g in golds) for p, golds in pairs])),
    }


def edits(predicted: Sequence[Hashable], gold: Sequence[Hashable]) -> int:
    """Return the fewest insertions, deletions and substitutions that make one sequence the other."""
    row = list(range(len(gold) + 1))
    for i, a in enumerate(predicted, 1):
        above_left, row[0] = row[0], i
        for j, b in enumerate(gold, 1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (a != b))
    return row[-1]


def transcription(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Return the word and character error rates: edits for each word, or character, of the references."""
    word_edits = sum(edits(p.split(), g.split()) for p, g in zip(predicted, gold, strict=True))
    character_edits = sum(edits(p, g) for p, g in zip(predicted, gold, strict=True))
    return {
        "wer": word_edits / max(sum(len(g.split()) for g in gold), 1),
        "cer": character_edits / max(sum(map(len, gold)), 1),
    }


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every n words in a row."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def summarization(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L as F1, of lower-case words without stemming (Lin, 2004)."""
    pairs = [
        (re.findall(r"\w+", p.lower()), re.findall(r"\w+", g.lower())) for p, g in zip(predicted, gold, strict=True)
    ]
    scores = {f"rouge{n}": [f1_of_sets(ngrams(p, n), ngrams(g, n)) for p, g in pairs] for n in (1, 2)}
    scores["rougeL"] = [2 * common_subsequence(p, g) / max(len(p) + len(g), 1) for p, g in pairs]
    return {name: float(np.mean(values)) for name, values in scores.items()}


def common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        above_left = 0
        for j, y in enumerate(b, 1):
            above_left, row[j] = row[j], above_left + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def translation(predicted: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Return BLEU of the corpus, 0 to 100, words and punctuation apart, no smoothing (Papineni et al., 2002)."""
    pairs = [
        (re.findall(r"\w+|[^\w\s]", p), re.findall(r"\w+|[^\w\s]", g)) for p, g in zip(predicted, gold, strict=True)
    ]
    lengths = [sum(len(side[i]) for side in pairs) for i in (0, 1)]
    logs = []
    # Orders that no reference is long enough for are left out.
    for n in range(1, 1 + min(4, max(len(g) for _, g in pairs))):
        common = sum((Counter(ngrams(p, n)) & Counter(ngrams(g, n))).total() for p, g in pairs)
        total = sum(len(ngrams(p, n)) for p, _ in pairs)
        logs.append(math.log(common / total) if common else -math.inf)
    brevity = min(0.0, 1 - lengths[1] / lengths[0]) if lengths[0] else -math.inf
    return {"bleu": 100 * math.exp(brevity + sum(logs) / len(logs))}


def token_scores(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row's summed loss, right tokens and counted tokens, [B, 3], of logits [B, L, V] and labels [B, L].

    So little has to be kept of an evaluation; `perplexity` makes metrics of it.
    """
    counted = labels != IGNORED
    losses = torch.nn.functional.cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
    right = (logits.argmax(-1) == labels) & counted
    return torch.stack([losses.sum(-1), right.sum(-1), counted.sum(-1)], dim=-1)


def perplexity(scores: np.ndarray) -> dict[str, float]:
    """Return perplexity and accuracy over all tokens, from `token_scores`, [B, 3]."""
    loss, right, counted = scores.sum(0).tolist()
    return {"perplexity": math.exp(min(loss / max(counted, 1), 700)), "accuracy": right / max(counted, 1)}


def named_scores(scores: np.ndarray) -> list[dict[str, float]]:
    """Name what `token_scores` has of each row."""
    return [dict(zip(("loss", "right", "tokens"), row, strict=True)) for row in scores.tolist()]
