"""Several sub-networks of one supernet in one folder, and a loader that switches between them."""
