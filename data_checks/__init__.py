"""Great Expectations as the gate for data: the suite, the run, the quarantine, the guidance."""
