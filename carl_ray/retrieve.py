"""Former name of the command `search`, for scripts that use it."""

from carl_ray.search import main

if __name__ == "__main__":
    main()
