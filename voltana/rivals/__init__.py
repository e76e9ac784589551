"""Published frequency controllers that EcoFreq is compared with, one module each."""
