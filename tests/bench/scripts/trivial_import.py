import trivial_floor  # noqa: F401

import meticulous  # noqa: F401
