"""The evidence pack: what leaves the house. `build` seals one, `verify` trusts nothing in one.

`build` -> collect (which file of a run directory goes where), provenance, checksums, manifest, signature.
`verify` -> inventory (bytes of a closed directory), signature and trust, checksums, manifest, recheck (recompute).
"""
