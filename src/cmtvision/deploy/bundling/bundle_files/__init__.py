"""What a bundle holds besides the model; real modules, so that they are typed and tested as all others."""
