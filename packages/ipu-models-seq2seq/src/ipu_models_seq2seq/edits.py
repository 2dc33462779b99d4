# SPDX-License-Identifier: Apache-2.0
"""LayerDrop of encoder-decoders as a traced choice: `Family.edits` of BART, mBART, Pegasus, Marian and M2M-100."""

from __future__ import annotations

from ipu_core.rewrites.edits import Edit
from ipu_core.rewrites.layerdrop import layerdrop

VERSIONS = ">=5.23,<5.24"

MARKED = """
to_drop = False
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    if dropout_probability < self.layerdrop:
        to_drop = True
"""
CONTINUED = """
if self.training and self.layerdrop > 0.0:
    dropout_probability = torch.rand([])
    if dropout_probability < self.layerdrop:
        continue
"""


def _encoder(target: str, digest: str, *, mask: str = "attention_mask") -> Edit:
    return layerdrop(
        target,
        choice=MARKED,
        guard="not to_drop",
        call=f"hidden_states = encoder_layer(hidden_states, {mask}, **kwargs)",
        digest=digest,
        versions=VERSIONS,
        probe={"encoder_layerdrop": 0.5},
    )


def _decoder(
    target: str,
    digest: str,
    *,
    mask: str = "attention_mask",
    encoder_mask: str = "encoder_attention_mask",
    cache: str = "past_key_values",
) -> Edit:
    call = (
        f"hidden_states = decoder_layer(hidden_states, {mask}, encoder_hidden_states, "
        f"encoder_attention_mask={encoder_mask}, past_key_values={cache}, use_cache=use_cache, **kwargs)"
    )
    return layerdrop(
        target,
        choice=CONTINUED,
        call=call,
        digest=digest,
        versions=VERSIONS,
        probe={"decoder_layerdrop": 0.5},
    )


BART = (
    _encoder("transformers.models.bart.modeling_bart:BartEncoder.forward", "5b300fb1dd2ec275"),
    _decoder("transformers.models.bart.modeling_bart:BartDecoder.forward", "ff94fc8dbb1968ef"),
)
MBART = (
    _encoder("transformers.models.mbart.modeling_mbart:MBartEncoder.forward", "e481912bcfb320a3"),
    _decoder("transformers.models.mbart.modeling_mbart:MBartDecoder.forward", "b1b18073d2444276", mask="causal_mask"),
)
M2M_100 = (
    _encoder("transformers.models.m2m_100.modeling_m2m_100:M2M100Encoder.forward", "e3ccf18d6e3754af"),
    _decoder("transformers.models.m2m_100.modeling_m2m_100:M2M100Decoder.forward", "e35f88269511fe11"),
)
PEGASUS = (
    _encoder("transformers.models.pegasus.modeling_pegasus:PegasusEncoder.forward", "e88ce779ebd4bde0"),
    _decoder(
        "transformers.models.pegasus.modeling_pegasus:PegasusDecoder.forward", "f5e9ebbd30a8a4ee", mask="causal_mask"
    ),
)
MARIAN = (
    _encoder("transformers.models.marian.modeling_marian:MarianEncoder.forward", "d08af157b37ed009"),
    _decoder(
        "transformers.models.marian.modeling_marian:MarianDecoder.forward", "b8b0aa89864ec7e2", mask="causal_mask"
    ),
)
