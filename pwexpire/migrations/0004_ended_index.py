from django.db import migrations, models

from pwexpire.migrations._indexes import AddIndexConcurrently


class Migration(migrations.Migration):

    atomic = False
    dependencies = [
        ('pwexpire', '0003_policies'),
    ]

    operations = [
        AddIndexConcurrently(
            model_name='passwordrecord',
            index=models.Index(fields=['ended'], name='pwexpire_record_ended'),
        ),
    ]
