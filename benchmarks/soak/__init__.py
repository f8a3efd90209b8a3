"""A soak: tens of thousands of requests at saturation, among them cut, oversize and malformed ones, and the books
afterwards.

Every prompt must have been scored or counted as unscored, exactly; memory must be flat; and at rest nothing may be left
of any request: no file descriptor, no asyncio task, no object of the guard's or of vLLM's request handling. `make
soak`.
"""
