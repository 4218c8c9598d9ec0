"""The versions of TRL that :mod:`saw.trl` works with."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

#: The oldest; ``tests/contract/test_trl.py`` runs with it, with the pinned and with the newest version.
OLDEST = "1.0.0"


def check_version() -> None:
    """Refuse to work without TRL, or with one that is too old.

    Raises:
        ModuleNotFoundError: if TRL is not installed.
        ImportError: if it is too old.
    """
    try:
        found = version("trl")
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"saw.trl needs TRL {OLDEST} or newer, and none is installed: pip install 'trl>={OLDEST}'", name="trl"
        ) from error
    if Version(found) < Version(OLDEST):
        raise ImportError(f"saw.trl needs TRL {OLDEST} or newer, and {found} is installed", name="trl")
