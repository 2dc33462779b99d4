# SPDX-License-Identifier: Apache-2.0
"""LayerDrop of encoder-decoders as a traced choice: `Family.edits` of BART, mBART, Pegasus, Marian and M2M-100."""

from __future__ import annotations

from ipu_core.rewrites.layerdrop import layerdrop
from ipu_core.rewrites.source_edits import Edit

VERSIONS = ">=5.23,<5.25"

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


def _encoder(target: str, digest: str) -> Edit:
    return layerdrop(
        target,
        choice=MARKED,
        guard="not to_drop",
        call="hidden_states = encoder_layer(hidden_states, attention_mask, **kwargs)",
        digest=digest,
        versions=VERSIONS,
        probe={"encoder_layerdrop": 0.5},
    )


def _decoder(target: str, digest: str, *, before_5_24: str, mask: str) -> Edit:
    def made(cache: str) -> Edit:
        call = (
            f"hidden_states = decoder_layer(hidden_states, {mask}, encoder_hidden_states, "
            f"encoder_attention_mask=encoder_attention_mask, {cache}={cache}, use_cache=use_cache, **kwargs)"
        )
        return layerdrop(
            target,
            choice=CONTINUED,
            call=call,
            digest=digest,
            versions=">=5.24,<5.25",
            probe={"decoder_layerdrop": 0.5},
        )

    return made("cache").or_for(">=5.23,<5.24", digest=before_5_24, changes=made("past_key_values").changes)


def _edits(
    name: str, encoder: str, decoder: str, *, before_5_24: str, mask: str = "attention_mask"
) -> tuple[Edit, ...]:
    """Return the edits of an encoder and a decoder, by the prefix of their classes and their digests."""
    stem = f"transformers.models.{name}"
    return (
        _encoder(f"{stem}Encoder.forward", encoder),
        _decoder(f"{stem}Decoder.forward", decoder, before_5_24=before_5_24, mask=mask),
    )


BART = _edits("bart.modeling_bart:Bart", "5b300fb1dd2ec275", "0cb6d2ed6224b1fa", before_5_24="ff94fc8dbb1968ef")
MBART = _edits(
    "mbart.modeling_mbart:MBart",
    "e481912bcfb320a3",
    "94df2254a86e7e74",
    before_5_24="b1b18073d2444276",
    mask="causal_mask",
)
M2M_100 = _edits(
    "m2m_100.modeling_m2m_100:M2M100", "e3ccf18d6e3754af", "d79bb9afffd8843e", before_5_24="e35f88269511fe11"
)
PEGASUS = _edits(
    "pegasus.modeling_pegasus:Pegasus",
    "e88ce779ebd4bde0",
    "33c0813e0b16f45b",
    before_5_24="f5e9ebbd30a8a4ee",
    mask="causal_mask",
)
MARIAN = _edits(
    "marian.modeling_marian:Marian",
    "d08af157b37ed009",
    "caee79d54b1d6dfd",
    before_5_24="b8b0aa89864ec7e2",
    mask="causal_mask",
)
