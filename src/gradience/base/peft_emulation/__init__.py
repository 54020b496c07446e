"""What PEFT would adapt, without PEFT: the module tree of a base, and targets, ranks and sizes as PEFT sees them.

Everything that imitates another library's decisions is in this package (and `adapters.patterns`, for PEFT's matching
of rank_pattern and alpha_pattern). Imitated are PEFT 0.21.2 and transformers 5.24.0, and for the names of modules
before transformers 5 also its 4.x; tests/base holds the package against the installed libraries on small real models.
When either library moves, read again: PEFT's `tuners/tuners_utils.py` (targets), `utils/other.py` (patterns, modules
to save), `utils/constants.py` (default targets) and `utils/transformers_weight_conversion.py` (fused experts);
transformers' `conversion_mapping.py` (renamed and fused modules) and the `base_model_prefix` of its classes.
"""
