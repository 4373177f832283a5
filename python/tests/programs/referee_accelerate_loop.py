"""accelerate_loop with lastgood, as the module that the referee starts."""

from referee_targets import main

if __name__ == "__main__":
    main("accelerate_loop")
