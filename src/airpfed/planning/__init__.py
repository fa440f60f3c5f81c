"""`airpfed plan`: before a run, its Psi_T and its price over power, antennas, design, access and split."""
