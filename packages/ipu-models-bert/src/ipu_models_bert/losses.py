# SPDX-License-Identifier: Apache-2.0
"""Edits of losses that pick the rows or tokens they are about by value, and so have no static shape.

The loss of everything is computed, and what is not meant counts nothing: the mean over what is meant is the same.
"""

from __future__ import annotations

from ipu_core.rewrites.source_edits import Edit

LABELLED_ROWS = tuple(
    Edit(
        target=target,
        changes=(
            (
                """
                label_index = (labels >= 0).nonzero()
                labels = labels.long()
                if label_index.size(0) > 0:
                    labeled_logits = torch.gather(
                        logits, 0, label_index.expand(label_index.size(0), logits.size(1))
                    )
                    labels = torch.gather(labels, 0, label_index.view(-1))
                    loss_fct = CrossEntropyLoss()
                    loss = loss_fct(labeled_logits.view(-1, self.num_labels).float(), labels.view(-1))
                else:
                    loss = torch.tensor(0).to(logits)
                """,
                """
                is_labelled = labels.view(-1) >= 0
                loss_fct = CrossEntropyLoss(reduction="sum")
                loss = loss_fct(
                    logits.view(-1, self.num_labels).float(), torch.where(is_labelled, labels.view(-1).long(), -100)
                )
                loss = loss / is_labelled.sum().clamp(min=1)
                """,
            ),
        ),
        digest=digest,
        reason="rows without a label are left out of the loss, so that its shape depends on the labels",
        versions=">=5.23,<5.25",
    )
    for target, digest in (
        ("transformers.models.deberta.modeling_deberta:DebertaForSequenceClassification.forward", "e6c4428435318995"),
        (
            "transformers.models.deberta_v2.modeling_deberta_v2:DebertaV2ForSequenceClassification.forward",
            "e6c4428435318995",
        ),
    )
)

ATTENDED_TOKENS = Edit(
    target="transformers.models.electra.modeling_electra:ElectraForPreTraining.forward",
    changes=(
        (
            """
            active_logits = logits.view(-1, discriminator_sequence_output.shape[1])[active_loss]
            active_labels = labels[active_loss]
            loss = loss_fct(active_logits, active_labels.float())
            """,
            """
            loss_fct = nn.BCEWithLogitsLoss(reduction="none")
            losses = loss_fct(logits.view(-1, discriminator_sequence_output.shape[1]), labels.float())
            loss = torch.where(active_loss, losses, 0.0).sum() / active_loss.sum()
            """,
        ),
    ),
    digest="035d39c199d06c6d",
    reason="padded tokens are left out of the loss, so that its shape depends on the mask",
    versions=">=5.23,<5.25",
)
