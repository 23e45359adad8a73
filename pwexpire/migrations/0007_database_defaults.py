from django.db import migrations, models


class Migration(migrations.Migration):
    """Columns that are younger than their table, so that older releases can insert rows again."""

    dependencies = [
        ("pwexpire", "0006_computed_age"),
    ]

    operations = [
        migrations.AlterField(
            model_name="expirybatch",
            name="selection",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
        migrations.AlterField(
            model_name="passwordrecord",
            name="assumed",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AlterField(
            model_name="passwordrecord",
            name="given_new",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AlterField(
            model_name="passwordrecord",
            name="grace_used",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
        migrations.AlterField(
            model_name="passwordrecord",
            name="would_hold",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
    ]
