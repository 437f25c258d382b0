"""The trigger: the ledger of runs, the events that request them, and the runners."""
