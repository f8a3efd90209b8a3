"""Decisions, labels and texts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_ALWAYS = ("judged", "decision", "action", "mode")
_SOMETIMES = ("caller", "tenant", "route", "model", "rule", "category", "unscored", "constraint")
_POLICY = ("policy_digest", "replica", "would", "would_policy", "would_rule", "would_category")


def upgrade() -> None:
    """Make the tables."""
    for name in ("foreguard_words", "foreguard_probe_sets"):
        op.create_table(
            name,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("digest", sa.Text, nullable=False, unique=True),
            sa.Column("text", sa.Text, nullable=False),
        )
    op.create_table(
        "foreguard_decisions",
        sa.Column("key", _KEY, primary_key=True, autoincrement=False),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("request_id", sa.Text, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in _ALWAYS),
        *(sa.Column(name, sa.Integer) for name in _SOMETIMES),
        sa.Column("policy", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Integer) for name in _POLICY),
        sa.Column("probes", sa.Integer),
        sa.Column("scores", sa.LargeBinary),
        sa.Column("prompt_tokens", sa.Integer, nullable=False),
        sa.Column("answer_tokens", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("decision_seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "foreguard_labels",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("who", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("chance", sa.Float),
    )
    op.create_index("foreguard_labels_by_event", "foreguard_labels", ["event_id", "id"])
    op.create_table(
        "foreguard_texts",
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_index("foreguard_texts_by_time", "foreguard_texts", ["time"])
