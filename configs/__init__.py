"""The configuration tree, which Hydra reads as ``pkg://saw.configs``."""
