"""The live cluster: SGLang telemetry, GPU clocks, the P/D router, emulated servers, profiling of real GPUs."""
