"""What Alembic runs: the steps, on the connection that `guard.store.migration` hands it, in that one's transaction."""

from alembic import context

from guard.store.schema import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
