"""`python -m fcn_ray ...` is `fcn-ray ...`."""

from fcn_ray.cli import main

if __name__ == "__main__":
    main()
