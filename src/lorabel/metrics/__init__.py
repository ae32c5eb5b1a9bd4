"""One thin file per metric family over scikit-learn; arrays in, float out."""
