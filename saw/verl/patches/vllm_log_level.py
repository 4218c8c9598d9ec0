"""A bend in vLLM 0.28.0: its import leaves the root logger at WARNING, where verl has put it.

model-hosting-container-standards, which vLLM's server imports, raises the root logger and its handlers to ERROR unless
a variable says otherwise. In the trainer, which imports the server, that swallows every warning of this package.
Contract: ``tests/contract/test_seams.py::test_vllm_leaves_warnings_alone``.
"""

import os

#: The variable that it looks at first, and the one that it looks at next.
LEVEL, NEXT = "SAGEMAKER_CONTAINER_LOG_LEVEL", "LOG_LEVEL"

os.environ.setdefault(LEVEL, os.environ.get(NEXT, "WARNING"))
