"""How to choose one program out of a search space: extractors, and the policy that learns to.

`base` has the shared types and the registry (`extractor(name)`), `substitution` and `state` the moves that climb,
greedy-group and the learned policy share. Only `encoder`, `ppo`, `artefact` and `rl` import torch. What a program
costs is decided in `cost`, which programs exist in `egraph`.
"""
