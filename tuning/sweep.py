"""The command `carl-ray sweep` under its earlier name: `python tuning/sweep.py [SPACE] ...`."""

from carl_ray import errors

if __name__ == "__main__":
    errors.handle_signals()  # Before slow imports.

    from carl_ray.sweep import main

    main()
