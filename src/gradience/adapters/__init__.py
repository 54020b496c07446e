"""Files to arrays: what an adapter folder holds, and which update each tensor belongs to."""
