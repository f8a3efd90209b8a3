"""The tables of the store. `migrations/` makes them; a test holds the two against each other.

Words that come again and again (tenants, rules, actions) are stored once, in `foreguard_words`, and decisions hold
their numbers. Scores are packed: doubles, little-endian, in the order of the probes' names in `foreguard_probe_sets`.
A row is then narrow enough that a million of them are read in well under a second.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

METADATA = MetaData()
VERSION_TABLE = "foreguard_store_version"
WORDS = (
    "judged",
    "decision",
    "action",
    "mode",
    "caller",
    "tenant",
    "route",
    "model",
    "rule",
    "category",
    "unscored",
    "constraint",
    "policy",
    "policy_digest",
    "replica",
    "would",
    "would_policy",
    "would_rule",
    "would_category",
)
"""Columns of decisions that hold the number of a word."""
ALWAYS = ("judged", "decision", "action", "mode", "policy")
"""Those of them that every decision has."""
_KEY = BigInteger().with_variant(Integer(), "sqlite")  # SQLite's own row number, which costs no index


def _dictionary(name: str) -> Table:
    return Table(
        name,
        METADATA,
        Column("id", Integer, primary_key=True),
        # PostgreSQL indexes no long texts, and a server may have many probes.
        Column("digest", Text, nullable=False, unique=True),
        Column("text", Text, nullable=False),
    )


words = _dictionary("foreguard_words")
probe_sets = _dictionary("foreguard_probe_sets")
"""JSON lists of probes' names, each sorted."""

decisions = Table(
    "foreguard_decisions",
    METADATA,
    Column("key", _KEY, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False, unique=True),
    Column("request_id", Text, nullable=False),
    *(Column(name, Integer, nullable=name not in ALWAYS) for name in WORDS),
    Column("probes", Integer),
    Column("scores", LargeBinary),
    Column("prompt_tokens", Integer, nullable=False),
    Column("answer_tokens", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("decision_seconds", Float, nullable=False),
)
"""`key` is `row_key.row_key`: the time, with room for ties."""

labels = Table(
    "foreguard_labels",
    METADATA,
    Column("id", _KEY, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("time", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("chance", Float),
    Index("foreguard_labels_by_event", "event_id", "id"),
)
"""Rows are only ever added. `time` is Unix time in microseconds."""

texts = Table(
    "foreguard_texts",
    METADATA,
    Column("event_id", Text, primary_key=True),
    Column("time", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("foreguard_texts_by_time", "time"),
)
"""Prompts, for operators who want them kept: encrypted, as `cipher.py` says."""
