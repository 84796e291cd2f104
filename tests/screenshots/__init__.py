"""Pictures of what people see, made with the system's Chromium: `python -m tests.screenshots [SUBJECT ...]`."""
