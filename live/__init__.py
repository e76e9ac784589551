"""The live cluster: SGLang telemetry, NVML clocks, the P/D router, the replay client. Nothing is built here yet."""
