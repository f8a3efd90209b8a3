"""The decision store: every decision in a database, SQLite's or PostgreSQL's, off the path that decides."""
