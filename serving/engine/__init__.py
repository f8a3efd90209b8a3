"""The part of the guard that lives in vLLM's worker and engine-core processes.

`tap` and `sensor` sit in the model's graph, `runner_v1` beside the model runner, `gate` in the scheduler. What they tell
one another rides on objects that vLLM already moves between its processes: `wire` names it.
"""
