"""Many runs of one settings file: which, done how, and what they say together."""
