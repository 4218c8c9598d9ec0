"""Examples of everything that can be extended (docs/extend.md)."""
