import argparse
import json

import meticulous
