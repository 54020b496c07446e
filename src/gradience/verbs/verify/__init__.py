"""``verify``: whether what is shipped is what was trained."""
