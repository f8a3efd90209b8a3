"""The steps, numbered. One that was ever released is never changed."""
