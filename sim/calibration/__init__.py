"""Constants of GPUs and of the published testbed, fitted to measurements."""
