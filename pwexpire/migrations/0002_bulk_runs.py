import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('pwexpire', '0001_initial'),
    ]

    operations = [
        migrations.AlterField(
            model_name='demand',
            name='batch',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='demands', to='pwexpire.expirybatch'),
        ),
        migrations.AlterField(
            model_name='exclusion',
            name='batch',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='exclusions', to='pwexpire.expirybatch'),
        ),
        migrations.AlterField(
            model_name='expirybatch',
            name='cursor',
            field=models.TextField(blank=True, default=''),
        ),
        migrations.AlterField(
            model_name='expirybatch',
            name='state',
            field=models.CharField(choices=[('staging', 'being selected, not in force'), ('staged', 'selected, not in force'), ('active', 'in force, sessions being reached'), ('done', 'in force'), ('stopped', 'stopped by hand'), ('cancelled', 'cancelled')], db_index=True, default='staging', max_length=10),
        ),
        migrations.CreateModel(
            name='ExpiryChunk',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('lower', models.TextField(blank=True)),
                ('upper', models.TextField(blank=True)),
                ('batch', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='chunks', to='pwexpire.expirybatch')),
            ],
            options={
                'verbose_name': 'part of a password expiry',
                'verbose_name_plural': 'parts of a password expiry',
            },
        ),
    ]
