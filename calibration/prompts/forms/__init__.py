"""The forms that one request is asked in, and the texts around it."""
