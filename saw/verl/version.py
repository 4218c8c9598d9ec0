"""The version of verl that this plug-in is written for."""

import logging

logger = logging.getLogger(__name__)

#: The pin in ``pyproject.toml`` and the requirement files; a test holds them together.
VERL_VERSION = "0.9.1"


def check_version() -> None:
    """Refuse another version of verl: the seams used here are not a stable interface.

    Raises:
        ImportError: naming the version found and the command that mends it.
    """
    import verl

    if verl.__version__ != VERL_VERSION:
        message = (
            f"the SAW plug-in needs verl {VERL_VERSION}, and verl {verl.__version__} is installed; "
            f"run: pip install verl=={VERL_VERSION}"
        )
        # Logged as well: verl swallows an error raised while it loads an entry point.
        logger.error(message)
        raise ImportError(message)
