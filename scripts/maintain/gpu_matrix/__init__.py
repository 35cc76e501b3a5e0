"""The most valuable cells on a GPU in the minutes there are."""
