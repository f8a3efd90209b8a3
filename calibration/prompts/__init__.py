"""Prompts: labelled requests read from files, checked, written in many forms, and encoded as token ids."""
