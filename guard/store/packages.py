"""The packages of the decision store: `foreguard[store]` installs them, and no server without a store needs them."""

from importlib.util import find_spec

from guard.store.errors import StoreError

_NEEDED = ("sqlalchemy", "alembic", "cryptography")
INSTALL = "run: pip install 'foreguard[store]'"


def require_packages() -> None:
    """Raise `StoreError` where one of them is not installed."""
    for name in _NEEDED:
        if find_spec(name) is None:
            raise StoreError(f"a decision store needs the package {name}", field="store", remedy=INSTALL)
