"""A prompt's text, as whoever decides hands it on: what it takes to make the text is left to the thread that writes."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from guard.store.batch import KeptText

LONGEST_TEXT = 65_536
"""Characters of a prompt that are kept, from its end: the last turn is what is judged."""
Text = str | Callable[[], str]
"""A text, or what makes one, in another thread."""


@dataclass(frozen=True, slots=True)
class AskedText:
    """A prompt that the operator wants kept."""

    event_id: str
    text: Text
    at: datetime

    def read(self) -> KeptText:
        """Return the text itself, or the end of it. Raises what making it raises."""
        text = self.text if isinstance(self.text, str) else self.text()
        return KeptText(self.event_id, text[-LONGEST_TEXT:], self.at)
