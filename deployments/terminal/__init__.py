"""What a person sees in a terminal: a run that is followed, and tables."""
