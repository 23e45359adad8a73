from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from pwexpire.filter_parts import FilterPart as FilterPart


class Reason(models.TextChoices):
    ADMIN = "admin", _("an administrator asked for it")
    AGE = "age", _("the password is too old")
    COMPROMISED = "compromised", _("the password may be known to others")
    INCIDENT = "incident", _("a security incident")
    LOCKOUT = "lockout", _("too many failed logins")
    FIRST_USE = "first_use", _("the password was set by somebody else")
    POLICY = "policy", _("the password rules have changed")
    MANUAL = "manual", _("the password has to be changed")


class Require(models.TextChoices):
    WARN = "warn", _("a warning, nobody is held")
    CHANGE = "change", _("change with the old password")
    RESET = "reset", _("reset by e-mail only")
    DENY = "deny", _("an administrator has to help")


class SessionAction(models.TextChoices):
    FLAG = "flag", _("hold the sessions")
    END = "end", _("end the sessions")


class BatchState(models.TextChoices):
    STAGING = "staging", _("being selected, not in force")
    STAGED = "staged", _("selected, not in force")
    ACTIVE = "active", _("in force, sessions being reached")
    DONE = "done", _("in force")
    FINISHED = "finished", _("in force, and satisfied by all")
    STOPPED = "stopped", _("stopped by hand")
    CANCELLED = "cancelled", _("cancelled")


# The cursor of a batch of which nothing is left to be given to a process.
GIVEN_OUT = "end"


class EnforcementState(models.Model):
    """The one row with the counter from which demands and changes take their numbers."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    counter = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()
    index_complete = models.BooleanField(default=False)

    class Meta:
        verbose_name = _("enforcement state")
        verbose_name_plural = _("enforcement states")

    def __str__(self) -> str:
        return str(self.counter)


# ``db_default``: younger than the table; a process of an older release goes on inserting rows.
class ExpiryBatch(models.Model):
    """One expiry: whom, why, by whom. It is in force from the moment it has a number."""

    number = models.BigIntegerField(null=True, unique=True, editable=False)
    everyone = models.BooleanField(default=False)
    holds = models.BooleanField(default=True)
    reason = models.CharField(max_length=40, default=Reason.ADMIN)
    require = models.CharField(max_length=10, choices=Require.choices, default=Require.CHANGE)
    sessions = models.CharField(
        max_length=10, choices=SessionAction.choices, default=SessionAction.FLAG
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    note = models.TextField(blank=True, default="")
    selection = models.TextField(blank=True, default="", db_default="")
    state = models.CharField(
        max_length=10, choices=BatchState.choices, default=BatchState.STAGING, db_index=True
    )
    cursor = models.TextField(blank=True, default="")
    users_expired = models.BigIntegerField(null=True)
    users_already_expired = models.BigIntegerField(null=True)
    users_not_applicable = models.BigIntegerField(null=True)
    sessions_flagged = models.BigIntegerField(null=True)
    sessions_ended = models.BigIntegerField(null=True)
    created_at = models.DateTimeField()
    activated_at = models.DateTimeField(null=True)
    cancelled_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("password expiry")
        verbose_name_plural = _("password expiries")
        permissions = [("expire_passwords", "Can expire the passwords of users")]
        indexes = [models.Index(fields=["everyone", "number"], name="pwexpire_batch_everyone")]

    def __str__(self) -> str:
        return f"{self.pk} ({self.reason})"

    @property
    def is_unfinished(self) -> bool:
        """Whether some of it was not given to any process yet."""
        return self.state in (BatchState.STAGED, BatchState.ACTIVE) and self.cursor != GIVEN_OUT


class ExpiryChunk(models.Model):
    """A part of a batch that some process is at, or was killed at: users after ``lower``."""

    batch = models.ForeignKey(ExpiryBatch, on_delete=models.CASCADE, related_name="chunks")
    lower = models.TextField(blank=True)
    upper = models.TextField(blank=True)

    class Meta:
        verbose_name = _("part of a password expiry")
        verbose_name_plural = _("parts of a password expiry")

    def __str__(self) -> str:
        return f"{self.batch_id}: {self.lower}-{self.upper}"


class PasswordRecord(models.Model):
    """What is known of one user's password. No row: unchanged since pwexpire came.

    ``given_at``: since when the password is one that somebody else chose, ``given_new``: for a new
    user. ``assumed``: ``changed_at`` was not seen, it was filled in.
    """

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="pwexpire_record", primary_key=True
    )
    satisfied = models.BigIntegerField(default=0)
    ended = models.BigIntegerField(default=0)
    changed_at = models.DateTimeField(null=True)
    renewed_at = models.DateTimeField(null=True)
    failed_changes = models.PositiveIntegerField(default=0)
    assumed = models.BooleanField(default=False, db_default=False)
    grace_used = models.PositiveIntegerField(default=0, db_default=0)
    given_at = models.DateTimeField(null=True)
    given_new = models.BooleanField(default=False, db_default=False)
    given_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    lockouts = models.PositiveIntegerField(default=0)
    lockouts_since = models.DateTimeField(null=True)
    lockout_at = models.DateTimeField(null=True)
    lockout_address = models.GenericIPAddressField(null=True)
    would_hold = models.PositiveIntegerField(default=0, db_default=0)
    would_hold_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("password record")
        verbose_name_plural = _("password records")
        indexes = [models.Index(fields=["ended"], name="pwexpire_record_ended")]

    def __str__(self) -> str:
        return str(self.pk)


class Demand(models.Model):
    """A batch wants this user. Deleted when met, so that the table is as long as the open list."""

    batch = models.ForeignKey(
        ExpiryBatch,
        on_delete=models.CASCADE,
        related_name="demands",
        db_index=False,  # the constraint below has one
        db_constraint=False,  # checked a million times, for a batch that is never deleted alone
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="pwexpire_demands"
    )

    class Meta:
        verbose_name = _("demand")
        verbose_name_plural = _("demands")
        constraints = [
            models.UniqueConstraint(fields=["batch", "user"], name="pwexpire_demand_once")
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}: {self.user_id}"


class Exclusion(models.Model):
    """A batch on everyone does not want this user."""

    batch = models.ForeignKey(
        ExpiryBatch, on_delete=models.CASCADE, related_name="exclusions", db_index=False
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="pwexpire_exclusions"
    )

    class Meta:
        verbose_name = _("exclusion")
        verbose_name_plural = _("exclusions")
        constraints = [
            models.UniqueConstraint(fields=["batch", "user"], name="pwexpire_exclusion_once")
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}: {self.user_id}"


class TraceKind(models.TextChoices):
    CANCELLED = "cancelled", _("cancelled")
    EXPIRY_REFUSED = "expiry_refused", _("expiry refused")
    CANCELLATION_REFUSED = "cancel_refused", _("cancellation refused")


class Cancellation(models.Model):
    """A cancellation, or a refusal to expire or to cancel; without ``user`` of a whole batch."""

    # Nothing cascades to it: an older table or release must not stop the deletion of a user.
    kind = models.CharField(max_length=20, choices=TraceKind.choices, default=TraceKind.CANCELLED)
    batch = models.ForeignKey(
        ExpiryBatch, models.SET_NULL, related_name="cancellations", null=True, db_constraint=False
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.DO_NOTHING,
        related_name="+",
        null=True,
        db_constraint=False,
    )
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.DO_NOTHING,
        related_name="+",
        null=True,
        db_constraint=False,
    )
    note = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        verbose_name = _("cancellation")
        verbose_name_plural = _("cancellations")

    def __str__(self) -> str:
        return f"{self.pk} ({self.kind})"


class SessionEntry(models.Model):
    """The index: which session key belongs to whom. Keys are credentials."""

    session_key = models.CharField(max_length=64, primary_key=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="pwexpire_sessions"
    )
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = _("session entry")
        verbose_name_plural = _("session entries")

    def __str__(self) -> str:
        return f"{self.session_key[:6]}…"


class OldPassword(models.Model):
    """A password that was, as the hash that the site's hasher made of it."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        related_name="pwexpire_old_passwords",
        db_index=False,
    )
    encoded = models.CharField(max_length=255)
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = _("old password")
        verbose_name_plural = _("old passwords")
        indexes = [models.Index(fields=["user", "id"], name="pwexpire_old_passwords")]

    def __str__(self) -> str:
        return str(self.pk)


class Notice(models.Model):
    """An e-mail that was sent, or is being sent: one for each user and ``key``."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="pwexpire_notices", db_index=False
    )
    key = models.CharField(max_length=100)
    created_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        constraints = [models.UniqueConstraint(fields=["user", "key"], name="pwexpire_notice_once")]

    def __str__(self) -> str:
        return f"{self.pk}: {self.key}"
