"""The trigger: the ledger of runs, the events that ask for them, and who runs them."""
