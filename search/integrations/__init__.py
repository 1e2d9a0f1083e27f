"""One training that is watched: in a plain loop, by Lightning, by the Trainer of Transformers."""
