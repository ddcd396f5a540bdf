"""Networks: elastic (supernet, blocks, ops) and plain (subnet), and batch-norm calibration."""
