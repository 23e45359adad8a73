import re

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import migrations, models

CHUNK = 2_000
# ``--user bob``, ``--exclude 'Bob O'"'"'Hara'``, cut off at the end perhaps: as a shell quotes it.
NAMED = re.compile(r"""(--(?:user|exclude)) (?:'[^']*(?:'|$)|"[^"]*(?:"|$)|[^\s'"])+""")
QUOTED = re.compile(r"'([^']*)'")
COLUMN = re.compile(r'["`](\w+)["`]')
SIGNED = re.compile(r"^([^:\n]{1,150}): ", re.MULTILINE)
# What was kept of an address names nobody.
DOMAIN = re.compile(r"[…%]*@[^']*")


def remove_names(apps, schema_editor):
    """Take the names of users out of what batches keep of their selection, as it is kept now."""
    user = apps.get_model(settings.AUTH_USER_MODEL)
    texts = (models.CharField, models.TextField)
    hidden = {field.column for field in user._meta.concrete_fields if isinstance(field, texts)}
    ExpiryBatch = apps.get_model("pwexpire", "ExpiryBatch")
    batches = ExpiryBatch.objects.using(schema_editor.connection.alias).order_by("pk")
    last = 0
    while rows := list(batches.filter(pk__gt=last)[:CHUNK]):
        last = rows[-1].pk
        for batch in rows:
            selection, note = scrub(batch.selection, hidden), batch.note
            if batch.cancelled_at is not None:
                note = scrub_note(note, user.objects.using(batches.db))
            if (selection, note) != (batch.selection, batch.note):
                batches.filter(pk=batch.pk).update(selection=selection, note=note)


def scrub(said, hidden):
    """Return ``said`` without values that were compared with the columns ``hidden``."""
    if said.startswith("--"):
        return NAMED.sub(r"\1 …", said)
    if said.count("'") % 2:  # a quote inside a value, or a value that was cut off: keep none
        return said.partition("'")[0] + "…"

    def hide(value):
        before = COLUMN.findall(QUOTED.sub("", said[: value.start()]))
        named = not before or before[-1] in hidden
        return "…" if named and not DOMAIN.fullmatch(value[1]) else value[0]

    return QUOTED.sub(hide, said)


def scrub_note(note, users):
    """Return ``note`` without the name before the last colon that begins a line, if it is a user's.

    There 0.3 wrote who cancelled a batch. Of other words before a colon nobody knows.
    """
    for found in reversed(list(SIGNED.finditer(note))):
        if users.filter(**{get_user_model().USERNAME_FIELD: found[1]}).exists():
            return f"{note[: found.start()]}…{note[found.end(1) :]}"
    return note


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("pwexpire", "0007_database_defaults"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RunPython(remove_names, migrations.RunPython.noop, elidable=True),
    ]
