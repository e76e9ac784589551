"""Stock SGLang: its environment on a machine without a GPU, a tiny model, and the servers as processes.

`environment` builds a virtual environment with SGLang on the CPU, `tiny_llama` makes a model in it, `launch` starts
servers and stops them, `flags` says with which options. `cpu_shims` and `stubs` fill what SGLang expects of CUDA.
Nothing is imported here: SGLang loads `cpu_shims` inside its own processes.
"""
