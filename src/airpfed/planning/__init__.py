"""Planning before a run: designs compared over random channels, and Psi_T and costs predicted for settings."""
