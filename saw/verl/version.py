"""The versions of verl that this plug-in works with, and what differs between them."""

import logging
import os
import traceback

import verl

logger = logging.getLogger(__name__)

#: Each passes the contract tests (``scripts/verl_versions.sh``). The requirement files install the last one, and the
#: pipeline is tested with it.
VERSIONS = ("0.9.0", "0.9.1")
#: What 0.9.0 lacks: its validation does not say how many samples it asked for, and cannot leave None out of a mean.
VALIDATION_COUNTS_SAMPLES = verl.__version__ != "0.9.0"
#: The group filter knows the scalar reward as ``reward``; in 0.9.0 only as ``score``.
FILTER_KNOWS_REWARD = verl.__version__ != "0.9.0"
#: ``separate_async`` as we extend it; in 0.9.0 it has other settings, and a step has another order.
SEPARATE_ASYNC = verl.__version__ != "0.9.0"
#: The first part of a version that cannot work -> why.
HOPELESS = {"0.8.": "it has another trainer (no verl.trainer.ppo.v1)"}
#: The variable that, set to 1, allows any version of verl, as scripts/verl_versions.sh does.
ANY = "SAW_ANY_VERL"


def check_version() -> None:
    """Refuse any other version of verl: the functions patched here are not a stable interface.

    Raises:
        WrongVersion: naming the version found and the command that fixes it.
    """
    found = verl.__version__
    if found in VERSIONS:
        return
    reason = next((f": {why}" for start, why in HOPELESS.items() if found.startswith(start)), "")
    message = (
        f"the SAW plug-in needs verl {' or '.join(VERSIONS)}, but verl {found} is installed{reason}; "
        f"run: pip install verl=={VERSIONS[-1]}"
    )
    if os.environ.get(ANY) == "1":
        logger.warning("%s. Continuing, because %s is 1", message, ANY)
        return
    from saw.faults import WrongVersion  # only now: every process that imports verl comes here

    if _is_entry_point():  # verl swallows the error
        logger.error(message)
    raise WrongVersion(message)


def _is_entry_point() -> bool:
    """Whether the plug-in is being loaded as an entry point, and not by an import that shows its error."""
    return any(frame.f_globals.get("__name__") == "importlib.metadata" for frame, _ in traceback.walk_stack(None))
