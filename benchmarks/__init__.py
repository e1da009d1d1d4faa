"""For developers, from a checkout: throughput, the soak, the tables of the paper. Not part of the package."""

import carl_ray  # noqa: F401 - its signal handlers are installed while sys.argv[0] is still "-m"
