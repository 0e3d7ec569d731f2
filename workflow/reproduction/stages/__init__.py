"""The workflow's stages: one module each, run as `python -m reproduction.stages.NAME`.

A stage reads files that earlier stages wrote and writes its own, whole or not at all. How a stage
is started, and how its results are recorded, is `reproduction.program`; stages do not depend on it.
"""

# What the stages that load a model say of their option.
LOW_MEMORY = "1: the transformer and the VAE take turns on the device"
