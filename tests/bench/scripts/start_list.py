import os
import sys

os.listdir(sys.argv[1])
