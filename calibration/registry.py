"""The methods and studies that are installed, found by entry points: this project's, and those of other packages."""

from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TypeVar

from calibration.fitting.contract import Method, Study
from probes.errors import CalibrationError

METHODS, STUDIES = "foreguard.methods", "foreguard.studies"
"""Entry point groups."""

_Kind = TypeVar("_Kind", Method, Study)


@cache
def methods() -> Mapping[str, Method]:
    """Return every installed method by name, in the order in which their probes stand in an artifact.

    Raises `CalibrationError` that names the package where an entry point gives no method, or two give one name.
    """
    return _installed(METHODS, Method)


@cache
def studies() -> Mapping[str, Study]:
    """Return every installed study by name, in the order in which they are measured. Raises as `methods` does."""
    return _installed(STUDIES, Study)


def plain() -> tuple[str, ...]:
    """Return the names of the methods that a plain calibration runs."""
    return tuple(name for name, method in methods().items() if method.plain)


def refitted(names: Collection[str]) -> list[Method]:
    """Return those methods of these names that are fitted without a source. Raises `CalibrationError` where none is."""
    can = [method for method in methods().values() if method.refits]
    found = [method for method in can if method.name in names]
    if not found:
        raise CalibrationError(
            "sources can be left out of none of the methods asked for",
            field="--leave-one-source-out",
            remedy=f"add one of them with --only: {', '.join(method.name for method in can)}",
        )
    return found


def users_of_a_partner() -> tuple[str, ...]:
    """Return the names of the methods and studies that contrast the model with a partner."""
    everything: list[Method | Study] = [*methods().values(), *studies().values()]
    return tuple(each.name for each in everything if each.uses_partner)


def require_known(names: Collection[str], option: str) -> None:
    """Raise `CalibrationError` unless each name, given by an option, is a method's or a study's."""
    for name in names:
        if name not in methods() and name not in studies():
            raise CalibrationError(
                f"there is no method or study {name!r}",
                field=option,
                remedy=f"methods are {', '.join(methods())}; studies are {', '.join(studies())}",
            )


def require_method(names: Collection[str]) -> None:
    """Raise `CalibrationError` unless one of the names asked for with `--only` is a method's."""
    if not methods().keys() & set(names):
        raise CalibrationError(
            "no method was asked for, so nothing would be fitted",
            field="--only",
            remedy=f"add one of {', '.join(methods())}",
        )


def _installed(group: str, kind: type[_Kind]) -> Mapping[str, _Kind]:
    packages: dict[str, str] = {}
    found: list[_Kind] = []
    for entry in entry_points(group=group):
        package = entry.dist.name if entry.dist else "an unknown package"
        if packages.setdefault(entry.name, package) != package:
            raise CalibrationError(
                f"{packages[entry.name]} and {package} both have a {kind.__name__.lower()} {entry.name!r}",
                field=group,
                remedy="uninstall one of the packages, or rename its entry point",
            )
        found.append(_loaded(entry, kind, package))
    ordered = {each.name: each for each in sorted(found, key=lambda each: (each.rank, each.name))}
    return MappingProxyType(ordered)


def _loaded(entry: EntryPoint, kind: type[_Kind], package: str) -> _Kind:
    value = entry.load()
    if not isinstance(value, kind) or value.name != entry.name:
        raise CalibrationError(
            f"entry point {entry.name!r} of {package} is no {kind.__name__} of that name",
            field=entry.group,
            remedy=f"let {entry.value} be a `calibration.fitting.contract.{kind.__name__}` named {entry.name!r}",
        )
    return value
