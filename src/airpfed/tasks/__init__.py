"""Tasks: sources of text, prompts and answers, splits over devices, and metrics."""
