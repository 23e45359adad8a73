"""The table of the filters that large batches carry."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _


class FilterPart(models.Model):
    """A part of the Bloom filter of a large batch: whom it wants, without a row for each.

    ``size``: bytes of all parts together. ``users_seen``: how many users the batch had looked at
    when the filter was built; where it looked at more since, the filter lacks some and is not used.
    """

    batch = models.ForeignKey(
        "pwexpire.ExpiryBatch",
        on_delete=models.CASCADE,
        related_name="filter_parts",
        db_index=False,  # the constraint below has one
        db_constraint=False,  # an older release deletes batches and does not know of this table
    )
    part = models.PositiveIntegerField()
    size = models.PositiveBigIntegerField()
    users_seen = models.PositiveBigIntegerField()
    bits = models.BinaryField()

    class Meta:
        verbose_name = _("part of the filter of a password expiry")
        verbose_name_plural = _("parts of filters of password expiries")
        constraints = [
            models.UniqueConstraint(fields=["batch", "part"], name="pwexpire_filter_part_once")
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}: {self.part}"
