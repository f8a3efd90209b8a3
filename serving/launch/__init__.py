"""Launch: what `foreguard serve` checks and sets before vLLM starts."""
