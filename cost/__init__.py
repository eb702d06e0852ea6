"""What programs cost: roofline, measured kernels, the database that remembers them, and the final confirmation.

Not here: how a program is lowered and run (`lowering`), and how one is chosen (`policy`).
Import the submodules; this package imports none of them, so that `import xrlflow` stays light.
"""
