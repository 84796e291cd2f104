"""Why a training cannot start or came to nothing; what it hands back is in `tasks.records`."""


class TrainingError(Exception):
    """Training cannot start, or came to nothing; the message says which setting or input is wrong."""
