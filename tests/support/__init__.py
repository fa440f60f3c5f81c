"""What tests share: tiny models, data and settings, networks, experiments, runs and commands in this process."""
