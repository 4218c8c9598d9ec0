"""What is collected."""

from importlib.util import find_spec

#: TRL is not in the environment of the other tests, see test_trl_versions.py.
collect_ignore = [] if find_spec("trl") else ["test_trl.py"]
