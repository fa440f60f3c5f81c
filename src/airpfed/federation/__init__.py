"""A federation of real devices on Flower 1.41. The server sees each device's gradient."""
