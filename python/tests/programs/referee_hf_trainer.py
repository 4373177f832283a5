"""hf_trainer with lastgood, as the module that the referee starts."""

from referee_targets import main

if __name__ == "__main__":
    main("hf_trainer")
