"""What the matrix found, as tables in `docs/compatibility.md` between two markers."""

from statistics import median
from textwrap import shorten

from tests.serving.architectures.cases import CASES, tolerance
from tests.serving.architectures.parity import Parity

BEGIN, END = "<!-- architectures: written by make compatibility -->", "<!-- end of architectures -->"


def write(found, about, document):
    """Replace the tables in `document` by those of `found`: case to `Parity`, or to what was raised."""
    text = document.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, foot = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} lacks the markers {BEGIN!r} and {END!r}")
    document.write_text(f"{head}{BEGIN}\n\n{tables(found, about)}\n\n{END}{foot}")


def tables(found, about):
    """Return the tables as Markdown."""
    plain = {key: case for key, case in CASES.items() if not case.compiled and not case.scheme}
    titles = dict.fromkeys(case.architecture.title for case in plain.values())
    rows = [
        _architecture([(key, case) for key, case in plain.items() if case.architecture.title == title], found)
        for title in titles
    ]
    others = [
        _other(key, case, found[key]) for key, case in CASES.items() if key in found and (case.compiled or case.scheme)
    ]
    header = "architecture | vLLM's class | stream, float32 | neurons, float32 | stream, bfloat16 | neurons, bfloat16"
    return "\n\n".join(
        [
            about,
            _table(f"{header} | KV-cache groups | note", [row for row in rows if row]),
            _table("further | dtype | stream | neurons | within | note", others),
        ]
    )


def _table(header, rows):
    rule = " | ".join(["---"] * len(header.split("|")))
    return "\n".join(f"| {row} |" for row in (header, rule, *rows))


def _architecture(cases, found):
    parities = [found[key] for key, _ in cases if isinstance(found.get(key), Parity)]
    errors = dict.fromkeys(
        f"{case.dtype}: {_raised(found[key])}" for key, case in cases if isinstance(found.get(key), str)
    )
    if not parities and not errors:
        return None
    cells = [cell for key, _ in cases for cell in _figures(found.get(key))]
    about = [parities[0].vllm_class, *cells, _groups(parities[0])] if parities else ["", *cells, ""]
    missing = dict.fromkeys(parity.without_neurons for parity in parities if parity.without_neurons)
    notes = [*filter(None, [cases[0][1].architecture.note]), *missing, *errors]
    return " | ".join([cases[0][1].architecture.title, *about, "; ".join(notes)])


def _other(key, case, found):
    title = case.scheme.title if case.scheme else f"{case.architecture.title}, compiled"
    within = tolerance(case)
    note = _raised(found) if isinstance(found, str) else ""
    return " | ".join([title, case.dtype, *_figures(found), f"{within.median:g} / {within.worst:g}", note])


def _raised(message):
    return f"`{shorten(message, 160, placeholder=' …')}`"


def _figures(parity):
    if not isinstance(parity, Parity):
        return ["—", "—"]
    return [
        f"{median(errors):.1e} / {max(errors):.1e}" if errors else "none" for errors in (parity.streams, parity.neurons)
    ]


def _groups(parity):
    return ", ".join(
        f"{parity.kv_cache.count(name)} × {name}" if parity.kv_cache.count(name) > 1 else name
        for name in dict.fromkeys(parity.kv_cache)
    )
