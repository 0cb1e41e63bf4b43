import sys

from meticulous import main

sys.exit(main())
