"""The API process: reads requests, hands out verdicts and refusals, keeps keys and metrics. It decides nothing."""
