"""Tasks: where samples come from, how they are split over devices, how they become prompts."""
