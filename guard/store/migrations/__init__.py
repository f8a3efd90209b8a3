"""How the store's tables came to be, a step a file. `guard.store.migration` runs the steps."""
