"""Run records -> tables and figures. Everything here reads run records and nothing else."""
