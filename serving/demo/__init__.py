"""`foreguard demo`: the whole way on one screen, from prompts to a guarded answer.

It runs the project's own commands.
"""
