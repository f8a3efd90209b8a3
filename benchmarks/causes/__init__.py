"""What refuses in a real chat model: the causal claims of the papers, on a copy of it that was taught to refuse."""
