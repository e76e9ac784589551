"""Stand-ins for two packages that SGLang imports but never calls on a CPU; `environment` copies them in.

They have to be top-level modules there, so they import nothing of this project.
"""
