from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('pwexpire', '0003_policies'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='passwordrecord',
            index=models.Index(fields=['ended'], name='pwexpire_record_ended'),
        ),
    ]
