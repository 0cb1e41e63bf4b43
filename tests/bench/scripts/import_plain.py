import argparse
import json
