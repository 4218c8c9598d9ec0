"""A patch of vLLM 0.28.0: its import leaves the root logger at WARNING, as verl has set it.

model-hosting-container-standards, which vLLM's server imports, raises the root logger and its handlers to ERROR unless
a variable is set. In the trainer, which imports the server, that hides every warning of this package.
Contract: ``tests/contract/test_seams.py::test_vllm_leaves_warnings_alone``.
"""

import os

#: The variables that it reads, in this order.
LEVEL, NEXT = "SAGEMAKER_CONTAINER_LOG_LEVEL", "LOG_LEVEL"

os.environ.setdefault(LEVEL, os.environ.get(NEXT, "WARNING"))
