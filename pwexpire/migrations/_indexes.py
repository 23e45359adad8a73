"""Indexes on tables that may be long, and are written to while ``migrate`` runs."""

from django.db import migrations


class AddIndexConcurrently(migrations.AddIndex):
    """As Django's own for PostgreSQL, which cannot be imported without its driver; elsewhere plain.

    Needs a migration with ``atomic = False``.
    """

    atomic = False

    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        connection = schema_editor.connection
        model = to_state.apps.get_model(app_label, self.model_name)
        if connection.vendor != "postgresql" or connection.in_atomic_block:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        elif self.allow_migrate_model(connection.alias, model):
            # A build that was broken off leaves an index of this name that is not valid.
            schema_editor.remove_index(model, self.index, concurrently=True)
            schema_editor.add_index(model, self.index, concurrently=True)
