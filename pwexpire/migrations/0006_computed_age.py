from django.db import migrations, transaction
from django.db.models import Exists, F, OuterRef, Subquery
from django.db.models.functions import Greatest

CHUNK = 2_000


def remove_batches_of_ages(apps, schema_editor):
    """Take away the batches that were written when a password aged out: an age is computed now.

    An age that the last change did not satisfy stays a demand, because its date is gone.
    """
    using = schema_editor.connection.alias
    ExpiryBatch = apps.get_model("pwexpire", "ExpiryBatch")
    Demand = apps.get_model("pwexpire", "Demand")
    needed = Demand.objects.filter(
        batch=OuterRef("pk"),
        batch__number__gt=F("user__pwexpire_record__satisfied"),
        batch__activated_at__lte=F("user__pwexpire_record__changed_at"),
        batch__cancelled_at=None,
    )
    written = ExpiryBatch.objects.using(using).filter(
        ~Exists(needed),
        reason="age",
        actor=None,
        everyone=False,
        note="",
        selection__startswith="user ",
    )
    last = 0
    # A chunk a transaction, so that a site that is running waits for no more than one.
    while pks := list(
        written.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:CHUNK]
    ):
        last = pks[-1]
        with transaction.atomic(using=using):
            demands = Demand.objects.using(using).filter(batch__in=pks)
            keep_ends(demands.filter(batch__sessions="end", batch__number__isnull=False))
            demands.delete()
            ExpiryBatch.objects.using(using).filter(pk__in=pks).delete()


def keep_ends(demands):
    """What was demanded goes, that older sessions are ended stays: with the record of the user."""
    PasswordRecord = demands.model._meta.apps.get_model("pwexpire", "PasswordRecord")
    records = PasswordRecord.objects.using(demands.db)
    users = set(demands.values_list("user_id", flat=True))
    records.bulk_create([PasswordRecord(user_id=pk) for pk in users], ignore_conflicts=True)
    newest = demands.filter(user=OuterRef("pk")).order_by("-batch__number")
    number = Subquery(newest.values("batch__number")[:1])
    records.filter(pk__in=users).update(ended=Greatest("ended", number))


class Migration(migrations.Migration):

    atomic = False
    dependencies = [
        ("pwexpire", "0005_trace"),
    ]

    operations = [
        migrations.RunPython(remove_batches_of_ages, migrations.RunPython.noop, elidable=True),
    ]
