"""A real federation of the same experiment, on Flower 1.41. The server sees each device's gradient."""
