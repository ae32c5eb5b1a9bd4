"""The predictor that all four doors share."""
