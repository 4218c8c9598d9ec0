"""GRPO and SAW on a small tool-calling task, on any machine."""
