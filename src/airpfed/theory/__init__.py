"""The paper's equations (38) to (43) and our own bounds, from numbers only: constants, bounds, predictions."""
