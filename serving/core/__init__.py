"""The engine core's process: the scheduler that asks for scores, decides, and orders what is steered or stopped."""
