"""What a run leaves behind: metrics, answers, and what it was."""
