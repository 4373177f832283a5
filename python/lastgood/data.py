"""Data loaders (being written)."""
def adapt(obj): return None
