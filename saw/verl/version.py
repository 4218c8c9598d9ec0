"""The version of verl that this plug-in requires."""

import logging

logger = logging.getLogger(__name__)

#: The pin in ``pyproject.toml`` and the requirement files; a test checks that they agree.
VERL_VERSION = "0.9.1"


def check_version() -> None:
    """Refuse any other version of verl: the functions patched here are not a stable interface.

    Raises:
        ImportError: naming the version found and the command that fixes it.
    """
    import verl

    if verl.__version__ != VERL_VERSION:
        message = (
            f"the SAW plug-in needs verl {VERL_VERSION}, but verl {verl.__version__} is installed; "
            f"run: pip install verl=={VERL_VERSION}"
        )
        # Logged as well: verl swallows an error raised while it loads an entry point.
        logger.error(message)
        raise ImportError(message)
