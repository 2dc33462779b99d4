# SPDX-License-Identifier: Apache-2.0
"""`MegaConfig`: the sizes and choices of a Mega, and which of them go together."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.activations import ACT2FN

BIASES = ("rotary", "simple")
NORMS = ("scalenorm", "layernorm", "rmsnorm", "batchnorm", "syncbatchnorm")
# Options that nothing reads unless another one has this value.
READ_ONLY_WITH = {
    "type_vocab_size": ("add_token_type_embeddings", True),
    "nffn_hidden_size": ("use_normalized_ffn", True),
    "normalize_before_ffn": ("use_normalized_ffn", True),
    "nffn_activation_dropout_prob": ("use_normalized_ffn", True),
}


class MegaConfig(transformers.PreTrainedConfig):
    """The configuration of a Mega; names and defaults are those of transformers up to 4.57.

    ::

        config = MegaConfig(num_hidden_layers=6, use_chunking=True, chunk_size=128)
        decoder = MegaConfig(is_decoder=True, bidirectional=False)

    Args:
        vocab_size: ids of the embedding.
        hidden_size: D, the width between layers.
        num_hidden_layers: layers.
        intermediate_size: I, the width of values in attention.
        ema_projection_size: N, moving averages for each feature.
        bidirectional: whether the moving average goes both ways; not in a decoder.
        shared_representation_size: S, the width of queries and keys, which one projection makes.
        use_chunking: whether attention stays within chunks of `chunk_size` tokens.
        chunk_size: tokens of a chunk. With the simple bias and no chunks, where the bias has its middle.
        truncation: tokens after which the moving average forgets; None for never. A decoder with it has no cache.
        normalize_before_mega: whether attention's input is normalised, or its output.
        normalization_type: "scalenorm", "layernorm", "rmsnorm", "batchnorm" or "syncbatchnorm". "rmsnorm" scales by its
            weight and does not divide, as it was in transformers, for the checkpoints trained so.
        norm_affine: whether norms have weights.
        activation: of values, outputs and the feed-forward module.
        attention_activation: "softmax", or the activation of single scores, "laplace" or "relu2".
        dropout_prob: dropout of what a module adds.
        hidden_dropout_prob: dropout of values, and before classifiers.
        attention_probs_dropout_prob: dropout of attention's weights.
        use_feature_dropout: whether the first two drop a feature of all tokens of a row at once.
        use_normalized_ffn: whether a layer has a feed-forward module.
        nffn_hidden_size: its inner width.
        normalize_before_ffn: whether its input is normalised, or its output.
        nffn_activation_dropout_prob: its inner dropout.
        max_positions: distances the simple bias has, and tokens a row may have with it. The rotary bias goes on beyond.
        add_token_type_embeddings: whether token types are embedded.
        type_vocab_size: how many there are.
        initializer_range: standard deviation of new weights.
        ema_delta_alpha_range: the same, of damping and decay.
        ema_beta_range: the same, around 1 and -1 by turns, of what expands a feature.
        ema_gamma_omega_range: the same, of what projects averages, and of the residual weight.
        relative_positional_bias: "rotary" or "simple".
        classifier_dropout: dropout before classifiers; None for `hidden_dropout_prob`.
        use_cache: whether a decoder gives the state that the next token goes on from.
        add_lm_hidden_dense_layer: whether there is a layer before the scores for tokens.
        is_decoder: whether no token sees a later one.

    Raises:
        ValueError: values that do not go together, or one that nothing would read.
    """

    model_type = "mega"

    vocab_size: int = 30522
    hidden_size: int = 128
    num_hidden_layers: int = 4
    intermediate_size: int = 256
    ema_projection_size: int = 16
    bidirectional: bool = True
    shared_representation_size: int = 64
    use_chunking: bool = False
    chunk_size: int = -1
    truncation: int | None = None
    normalize_before_mega: bool = True
    normalization_type: str = "scalenorm"
    norm_affine: bool = True
    activation: str = "silu"
    attention_activation: str = "softmax"
    dropout_prob: float | int = 0.1
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    use_feature_dropout: bool = False
    use_normalized_ffn: bool = True
    nffn_hidden_size: int = 256
    normalize_before_ffn: bool = True
    nffn_activation_dropout_prob: float | int = 0.1
    max_positions: int = 2048
    add_token_type_embeddings: bool = False
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    ema_delta_alpha_range: float = 0.2
    ema_beta_range: float = 0.02
    ema_gamma_omega_range: float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    relative_positional_bias: str = "rotary"
    classifier_dropout: float | int | None = None
    use_cache: bool = True
    add_lm_hidden_dense_layer: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # Attention has one head; checkpoints say so, and there is no other.
        kwargs.pop("num_attention_heads", None)
        super().__post_init__(**kwargs)
        self._refuse_unknown_names()
        self._refuse_sizes()
        self._refuse_unread()
        if self.is_decoder:
            self._refuse_decoder()
        if self.add_cross_attention:
            raise ValueError("this Mega has no cross-attention: leave `add_cross_attention` out")

    @property
    def num_attention_heads(self) -> int:
        """How many heads attention has."""
        return 1

    def _refuse_unknown_names(self) -> None:
        for name, known in (
            ("relative_positional_bias", BIASES),
            ("normalization_type", NORMS),
            ("activation", tuple(ACT2FN)),
            ("attention_activation", ("softmax", *ACT2FN)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}={getattr(self, name)!r}` is not known: give one of {', '.join(known)}")

    def _refuse_sizes(self) -> None:
        if self.use_chunking and self.chunk_size < 1:
            raise ValueError(
                f"`use_chunking` has chunks of `chunk_size={self.chunk_size}` tokens: give a positive number"
            )
        if self.truncation is not None and self.truncation < 1:
            raise ValueError(f"`truncation={self.truncation}` leaves no token: give a positive number, or None")
        if self.relative_positional_bias == "rotary" and self.shared_representation_size % 2:
            raise ValueError(
                f"`shared_representation_size={self.shared_representation_size}` is odd, and the rotary bias turns "
                "pairs: give an even number, or `relative_positional_bias='simple'`"
            )
        if self.chunk_size > self.max_positions and self.relative_positional_bias == "simple":
            raise ValueError(
                f"`chunk_size={self.chunk_size}` is more than the simple bias has, `max_positions="
                f"{self.max_positions}`: change one of them"
            )

    def _refuse_unread(self) -> None:
        for name, (other, value) in READ_ONLY_WITH.items():
            if getattr(self, other) != value and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"`{name}={getattr(self, name)}` has no effect with `{other}={getattr(self, other)}`: leave it "
                    f"out, or give `{other}={value}`"
                )
        if self.chunk_size != -1 and not self.use_chunking and self.relative_positional_bias == "rotary":
            raise ValueError(
                f"`chunk_size={self.chunk_size}` has no effect without `use_chunking`: leave it out, or give "
                "`use_chunking=True`"
            )

    def _refuse_decoder(self) -> None:
        if self.bidirectional:
            raise ValueError("a decoder's moving average sees no later token: give `bidirectional=False`")
        if self.truncation is not None and self.use_cache:
            raise ValueError(
                f"the state a decoder goes on from forgets nothing, and `truncation={self.truncation}`: give "
                "`use_cache=False`"
            )
