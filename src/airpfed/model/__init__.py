"""Models: a frozen base with adapters of many devices, their methods and flat vectors, and export for PEFT."""
