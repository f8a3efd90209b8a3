"""What a person must mend about the decision store."""

from probes.errors import ForeguardError


class StoreError(ForeguardError):
    """The decision store cannot be used."""
