"""One file per rule for class weights."""
